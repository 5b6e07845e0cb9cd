"""The root as a folder: Debian's, the kernel's, the wheels', ours; and every time in it made the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from firmware_tools.board import Board
from firmware_tools.imaging import host, kernel

OVERLAYS = Path(__file__).resolve().parents[1] / "rootfs"
REPOSITORY = Path(__file__).resolve().parents[2]
SITE = "opt/octogate/lib/python{python}/site-packages"
# What Debian's packages bring that a gateway has no use for, or that must not be the same on two of them.
REMOVED = (
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bash-completion"),
    *("usr/share/zsh", "usr/share/common-licenses/*.gz", "usr/share/perl5/debconf*", "usr/share/pixmaps"),
    *("var/cache/*", "var/lib/apt", "var/log/*", "var/lib/dpkg/*-old", "var/backups", "etc/ssh/ssh_host_*"),
    *("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf", "etc/localtime", "boot/*"),
    *("usr/lib/python3*/test", "usr/lib/python3*/idlelib", "usr/lib/python3*/turtledemo", "usr/lib/python3*/ensurepip"),
    *("usr/lib/binfmt.d/*",),
    *("usr/lib/systemd/boot", "usr/lib/systemd/catalog", "etc/systemd/system/*.wants", "etc/systemd/system/dbus-*"),
)
# Units that Debian's systemd starts whatever the presets say, and that have nothing to do here.
MASKED = ("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount")
FILLED_IN = ("etc/rauc/system.conf",)
PYTHON_COMPILE: tuple[str, ...] = ("-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash")


def make_base(
    root: Path, tar: Path, board: Board, unpacked: Path, version: str, site: Path, python: str, compiler: Path
) -> None:
    """Debian, the kernel with this board's modules, the wheels; compiled."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    host.run("tar", "-xf", tar, "-C", root, "--numeric-owner")
    remove(root, REMOVED)
    patterns = kernel.parse_patterns((kernel.HERE / "modules.txt").read_text())
    kernel.install_modules(unpacked, version, root, (*patterns, *board.modules))
    (root / "boot").mkdir(exist_ok=True)
    shutil.copyfile(unpacked / f"boot/vmlinuz-{version}", root / "boot/vmlinuz")
    target = root / SITE.format(python=python)
    target.parent.mkdir(parents=True)
    host.run("cp", "--archive", "--no-preserve=ownership", site, target)
    venv(root / "opt/octogate", python)
    for cache in [*root.glob("usr/lib/python3*/**/__pycache__")]:  # they hold times
        shutil.rmtree(cache)
    compile_python(compiler, root, f"usr/lib/python{python}", "usr/lib/python3", f"{target.relative_to(root)}")


def venv(folder: Path, python: str) -> None:
    """A virtual environment, made without running the Python it is of."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to("/usr/bin/python3")
    command = folder / "bin/octogate"
    command.write_text(
        "#!/opt/octogate/bin/python3 -P\nimport sys\n\nfrom gateway.__main__ import main\n\nsys.exit(main())\n"
    )
    command.chmod(0o755)


def compile_python(compiler: Path, root: Path, *folders: str) -> None:
    """Compile below `folders` of the root. What cannot be compiled, such as a template, is left as it is.

    `compiler` has a Python of the same version for this machine: bytecode is the same for every processor, and under
    emulation this takes twenty times as long.
    """
    libraries = [str(path) for path in sorted(compiler.glob("usr/lib/*-linux-gnu*"))]
    loader = next(iter(sorted(compiler.glob("usr/lib/*/ld-linux-*.so.*"))), None)
    python = next(iter(sorted(compiler.glob("usr/bin/python3.*"))), None)
    if loader is None or python is None:
        raise host.BuildError(f"{compiler}: there is no Python in it", hint="./inv image.build --refresh")
    present = [root / folder for folder in folders if (root / folder).is_dir()]
    search = ":".join(libraries)
    said = host.run(
        loader, "--library-path", search, python, *PYTHON_COMPILE, "-s", root, "-p", "/", *present,
        env={"PYTHONHOME": str(compiler / "usr"), "PYTHONHASHSEED": "0"},
        accept=(0, 1),
    )  # fmt: skip
    for folder in present:
        if not any(folder.rglob("__pycache__/*.pyc")) and any(folder.rglob("*.py")):
            raise host.BuildError(f"nothing below {folder} was compiled: {said.decode(errors='replace')[-500:]}")


def finish(root: Path, board: Board, python: str, compiler: Path, initrd: bytes, keyring: bytes, version: str) -> None:
    """Everything of ours: overlays, gateway, models, users, enabled units."""
    for name in board.overlays:
        host.run("cp", "--archive", "--no-preserve=ownership", f"{OVERLAYS / name}/.", root)
    for name in FILLED_IN:
        path = root / name
        path.write_text(path.read_text().replace("@BOARD@", board.name))
    install_gateway(root, python, compiler)
    (root / "boot/initrd.img").write_bytes(initrd)
    (root / "etc/rauc/keyring.pem").write_bytes(keyring)
    (root / "data").mkdir(exist_ok=True)
    identify(root, board, version)
    host.run("systemd-sysusers", f"--root={root}", env={"SOURCE_DATE_EPOCH": "0"})
    host.run("systemctl", f"--root={root}", "preset-all")
    host.run("systemctl", f"--root={root}", "mask", *MASKED)
    remove(root, ("etc/*-", "etc/.pwd.lock", "etc/.updated", "var/.updated"))


def install_gateway(root: Path, python: str, compiler: Path) -> None:
    """The package, the models' bundles with the key that signed them, and the licence."""
    site, share = root / SITE.format(python=python), root / "usr/share/octogate"
    for path in tracked(REPOSITORY / "gateway"):
        target = site / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (share / "bundles").mkdir(parents=True, exist_ok=True)
    for bundle in sorted(REPOSITORY.glob("models/*/*.octo")):
        shutil.copyfile(bundle, share / "bundles" / bundle.name)
    for path in (REPOSITORY / "models/keys/octogate-models.pub.pem", REPOSITORY / "gateway/example.toml"):
        shutil.copyfile(path, share / path.name)
    shutil.copyfile(REPOSITORY / "LICENSE", share / "LICENSE")
    compile_python(compiler, root, f"{site.relative_to(root)}/gateway")


def tracked(folder: Path) -> Iterator[Path]:
    """The files of a package, sorted; nothing that was made from them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path


def identify(root: Path, board: Board, version: str) -> None:
    """Which image this is (os-release), and what is of this boot only: machine id, host name, time zone, DNS."""
    release = root / "usr/lib/os-release"
    kept = [line for line in release.read_text().splitlines() if not line.startswith("IMAGE_")]
    release.write_text("\n".join([*kept, f"IMAGE_ID=octogate-{board.name}", f"IMAGE_VERSION={version}"]) + "\n")
    (root / "usr/lib/clock-epoch").write_text("")  # systemd lets no clock be behind its time, which is the image's
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("octogate\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost octogate\n::1 localhost octogate\n")
    for name, target in (
        ("localtime", "/run/octogate-localtime"),
        ("resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
    ):
        (root / "etc" / name).unlink(missing_ok=True)
        (root / "etc" / name).symlink_to(target)


def remove(root: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def settle(root: Path, epoch: int) -> int:
    """No time later than `epoch`, nothing writable for others; the bytes of all files."""
    size = 0
    for folder, names, files in os.walk(root):
        for name in (".", *names, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if status.st_mtime > epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)
            size += status.st_size if name in files else 0
    return size
