"""A real sshd on loopback, with keys of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.harness import free_port
from tests.integration.real_images import program, run


@contextmanager
def sshd(folder: Path) -> Iterator[list[str]]:
    """Gives the options that ssh and scp need to log in there as this user."""
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "authorized_keys").write_bytes((folder / "user.pub").read_bytes())
    port = free_port()
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd locks itself in there before a login
    command = [program("sshd"), "-D", "-e", "-f", str(folder / "config")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Server listening" in line:
                break
        else:
            raise AssertionError("sshd did not start")
        try:
            yield [
                f"-oPort={port}", f"-oIdentityFile={folder}/user", f"-oUserKnownHostsFile={folder}/known_hosts",
                "-oIdentitiesOnly=yes", "-oGlobalKnownHostsFile=none", "-F", "none",
            ]  # fmt: skip
        finally:
            process.terminate()
            process.stderr.read()
