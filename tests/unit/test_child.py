"""Child processes: every way to end, nothing left behind, nobody outlives the daemon."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from typing import Self

import pytest

from gateway.child import Child, TalkingChild, python_env, python_module
from tests.unit.held import descriptors


def script(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


async def read(fd: int) -> bytes:
    """One read of a pipe, when there is something."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, ready.set_result, None)
    await ready
    loop.remove_reader(fd)
    return os.read(fd, 4096)


def test_exit_status_and_last_words() -> None:
    async def main() -> None:
        code = "import sys; print('x' * 9000 + '\\nthe end', file=sys.stderr); sys.exit(3)"
        async with Child(script(code), capture_stderr=True) as child:
            assert child.pid
            assert await child.wait() == 3
            assert child.tail().endswith("\nthe end") and len(child.tail()) <= 4096
            assert not child.running and child.returncode == 3

    asyncio.run(main())


def test_a_stubborn_child_is_killed_after_its_grace() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        code = f"import os, signal; signal.signal(15, signal.SIG_IGN); os.write({writer}, b'!'); signal.pause()"
        async with Child(script(code), pass_fds=(writer,)) as child:
            assert await read(reader) == b"!"
            assert await child.stop(0.05) == -signal.SIGKILL
        async with Child(["sleep", "1000"]) as obedient:
            assert await obedient.stop(30) == -signal.SIGTERM
        os.close(reader)
        os.close(writer)

    asyncio.run(main())


def test_leaving_the_block_kills_a_stopped_child() -> None:
    async def main() -> None:
        async with Child(["sleep", "1000"]) as child:
            child.send_signal(signal.SIGSTOP)
        assert child.returncode == -signal.SIGKILL
        child.kill()  # nothing to do, and no error

    asyncio.run(main())


def test_nothing_is_left_after_many_children() -> None:
    async def main() -> None:
        async with Child(["true"], capture_stderr=True) as child:
            await child.wait()
        before = descriptors()
        for i in range(50):
            async with Child(["sleep", str(1000 * (i % 2))], nice=1, capture_stderr=True) as child:
                if i % 2 == 0:
                    await child.wait()
        assert descriptors() == before

    asyncio.run(main())


def test_a_program_that_is_not_there() -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            Child(["/nonexistent/program"]).start()
        with pytest.raises(RuntimeError, match="not started"):
            await Child(["true"]).wait()

    asyncio.run(main())


def test_nice_and_environment_arrive() -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        code = f"import gateway, os; os.write({writer}, os.environ['OCTO'].encode()); os.read(0, 1)"
        async with Child(script(code), env=python_env(OCTO="eight"), pass_fds=(writer,), nice=7) as child:
            assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 7
            assert await read(reader) == b"eight"
            assert await child.wait() == 0
        os.close(reader)
        os.close(writer)

    asyncio.run(main())
    assert python_module("gateway.child", "a")[-3:] == ["-m", "gateway.child", "a"]


def test_a_child_dies_with_its_parent() -> None:
    grandchild = "from gateway.child import die_with_parent; import os, signal; die_with_parent(os.getppid()); "
    grandchild += "print(os.getpid(), flush=True); signal.pause()"
    parent = f"import subprocess, sys, signal; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); signal.pause()"
    with subprocess.Popen(script(parent), env=python_env(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
        # the end of the pipe comes when its last holder is gone; the test's time limit is the deadline
        assert process.stdout.read() == b""


def test_a_child_whose_parent_is_gone_already_exits() -> None:
    code = "from gateway.child import die_with_parent; die_with_parent(1 << 22)"
    assert subprocess.run(script(code), env=python_env(), check=False).returncode == 1


class Talker(TalkingChild):
    """Collects what is said, up to the end of it; `late` listens only when the child has ended."""

    def __init__(self, program: str, *, late: bool = False) -> None:
        super().__init__(10.0)
        self.program, self.late = program, late
        self.said: list[bytes] = []
        self.over = asyncio.Event()

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", self.program, str(theirs.fileno())]
            self.child = Child(argv, pass_fds=(theirs.fileno(),))
            self.child.start()
        ours.send(b"nobody reads this")
        if self.late:
            await self.child.wait()
        self.listen(ours)
        return self

    def _readable(self) -> None:
        packet = memoryview(bytearray(100))
        n = self._receive(packet)
        if n:
            self.said.append(bytes(packet[:n]))
        elif n == 0:
            self.close()
            self.over.set()


SAYS_AND_ENDS = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.send(b'last'); s.send(b'words')"


def test_what_a_child_said_last_is_heard_though_it_left_packets_unread() -> None:
    async def story() -> Talker:
        async with asyncio.timeout(20), Talker(SAYS_AND_ENDS, late=True) as talker:
            await talker.over.wait()
        return talker

    talker = asyncio.run(story())
    assert talker.said == [b"last", b"words"]
    assert talker.child.returncode == 0


def test_a_talking_child_is_killed_at_the_end() -> None:
    async def story() -> int | None:
        async with asyncio.timeout(20), Talker("import signal; signal.pause()") as talker:
            assert talker.child.running
        return talker.child.returncode

    assert asyncio.run(story()) == -9
