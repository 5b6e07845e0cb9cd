"""Fakes that users may build their tests on: a MicroPython node without a board.

`MicroPythonNode` runs the node firmware in the real unix port of MicroPython behind a pseudo terminal. The port's path
is a symbolic link, so that the node can be unplugged and replugged while it runs on and keeps its readings.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tty
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.errors import SourceError

_READ_BYTES = 65536
_START_S = 15.0
_WORDS_KEPT = 4096

# Runs in the child: the terminal becomes its controlling one because it leads a session that has none.
_LAUNCH = """
import os, sys
port, folder, heap = sys.argv[1:]
fd = os.open(port, os.O_RDWR | os.O_NONBLOCK)
for number in (0, 1, 2):
    os.dup2(fd, number)
os.chdir(folder)
if heap == "0":
    os.execv(sys.executable, [sys.executable, "-u", "main.py"])
from micropython_unix import run_main
sys.exit(run_main(["micropython", "-X", "heapsize=" + heap, "main.py"]))
"""


class _Line:
    """A pseudo terminal: `master` is our end, `path` the other, which we hold open so that it outlives its user."""

    def __init__(self) -> None:
        self.master, self._slave = os.openpty()
        self.path = os.ttyname(self._slave)
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.master)
        loop.remove_writer(self.master)
        os.close(self.master)
        os.close(self._slave)


class MicroPythonNode:
    """A node that runs the project's firmware, as an async context manager; entered when it has said HELLO.

    Args:
        firmware: the folder with main.py, octolink.py, sensors.py and config.json.
        work: an empty folder for the node's files; it is left behind.
        port: where the gateway shall find it (a symbolic link is made there).
        config: keys that replace those of config.json.
        files: more files for the node, name -> contents.
        heap_kib: MicroPython's heap; an RP2040 has about 190.
        cpython: run the firmware under CPython; None does so where there is no MicroPython.

    Attributes:
        on_line: called with the bytes that the node puts on the line, as they come and while it is plugged in; they may
            begin and end within a frame.
    """

    def __init__(
        self,
        firmware: Path,
        work: Path,
        port: Path,
        *,
        config: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        heap_kib: int = 192,
        cpython: bool | None = None,
    ) -> None:
        if cpython is None:
            cpython = importlib.util.find_spec("micropython_unix") is None
        self.is_micropython = not cpython
        self.port = port
        self._work = work
        self._heap = f"{heap_kib}K" if self.is_micropython else "0"
        shutil.copytree(firmware, work, dirs_exist_ok=True)
        for name, content in (files or {}).items():
            (work / name).write_bytes(content)
        settings = json.loads((firmware / "config.json").read_text())
        # no USB buffer to respect behind a pseudo terminal
        (work / "config.json").write_text(json.dumps({**settings, "piece": 4096, **(config or {})}))
        self.on_line: Callable[[bytes], None] = lambda _: None
        self._process: asyncio.subprocess.Process | None = None
        self._node: _Line | None = None  # towards the process
        self._host: _Line | None = None  # towards the gateway; None while unplugged
        self._to_host = b""
        self._said = bytearray()
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the simulated node; 0 while it is off."""
        return self._process.pid if self._process else 0

    @property
    def plugged(self) -> bool:
        return self._host is not None

    async def __aenter__(self) -> Self:
        self.replug()
        async with contextlib.AsyncExitStack() as failed:
            failed.push_async_exit(self)
            await self.start()
            failed.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        self.unplug()

    # --- the node -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Power on.

        Raises:
            SourceError: the program ended, or said nothing; with what it printed.
        """
        self._node = _Line()
        self._ready.clear()
        self._said.clear()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._node.master, self._from_node)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LAUNCH, self._node.path, str(self._work), self._heap,
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S), asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._until_ended(self._process), name="node process")
                await self._ready.wait()
                watch.cancel()
        if self._said.count(0) < 2:
            words = self._said.decode(errors="replace").strip()
            await self.kill()
            raise SourceError(f"the node in {self._work} did not start: {words}", hint="see its main.py")

    async def _until_ended(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._ready.set()

    async def kill(self) -> None:
        """Power off at once: what is in its memory is gone. The line stays."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
        if self._node is not None:
            self._node.close()
            self._node = None

    async def restart(self) -> None:
        """Off and on: a new session."""
        await self.kill()
        await self.start()

    # --- the line -------------------------------------------------------------------------------------------

    def unplug(self) -> None:
        """Cuts the line: the gateway's descriptor hangs up, the path is gone, the node runs on unheard."""
        if self._host is None:
            return
        self.port.unlink(missing_ok=True)
        self._host.close()
        self._host, self._to_host = None, b""
        self._listen()

    def replug(self) -> None:
        """Makes the line again, as another terminal under the same path."""
        if self._host is not None:
            return
        self._host, self._to_host = _Line(), b""
        asyncio.get_running_loop().add_reader(self._host.master, self._from_host)
        new = self.port.with_name(self.port.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(self._host.path)
        new.replace(self.port)

    def _from_node(self) -> None:
        assert self._node is not None
        try:
            data = os.read(self._node.master, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the process has ended
            asyncio.get_running_loop().remove_reader(self._node.master)
            return
        if not self._ready.is_set():
            self._said += data
            del self._said[:-_WORDS_KEPT]
            if self._said.count(0) >= 2:  # its first frame is HELLO
                self._ready.set()
        if self._host is not None:  # else: into the air
            self.on_line(data)
            self._to_host += data
            self._flush()

    def _flush(self) -> None:
        """Towards the gateway; when it does not read, the node is not read either and holds its readings."""
        assert self._host is not None
        loop = asyncio.get_running_loop()
        try:
            sent = os.write(self._host.master, self._to_host)
        except BlockingIOError:
            sent = 0
        self._to_host = self._to_host[sent:]
        if not self._to_host:
            loop.remove_writer(self._host.master)
            self._listen()
        else:
            loop.add_writer(self._host.master, self._flush)
            if self._node is not None:
                loop.remove_reader(self._node.master)

    def _listen(self) -> None:
        if self._node is not None:
            asyncio.get_running_loop().add_reader(self._node.master, self._from_node)

    def _from_host(self) -> None:
        assert self._host is not None
        try:
            data = os.read(self._host.master, _READ_BYTES)
        except BlockingIOError:
            return
        if self._node is not None:
            # lines are short and the node listens always; what it does not take is lost, as on a real line
            with contextlib.suppress(BlockingIOError):
                os.write(self._node.master, data)
