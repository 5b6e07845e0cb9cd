"""A node's firmware onto its board: only what differs, checked there, put in place by renames, taken back if it fails."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from firmware_tools.boards import ANY, Board
from firmware_tools.rawrepl import RawRepl, raw_repl
from firmware_tools.wire import Wire
from gateway.errors import LinkError, SourceError
from gateway.link import messages
from gateway.link.framing import Deframer
from gateway.link.messages import Hello, SayHello

FIRMWARE = Path(__file__).with_name("node_firmware")
HELLO_S = 10.0  # a node that has started says HELLO within
MAX_FILES, MAX_BYTES = 64, 2 << 20  # of a firmware
CHUNK = 1024  # bytes of a file in one piece of code
_AGAIN_S = 0.5
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,47}")
_OWN = "config.json"  # what makes the node this one: never overwritten unless it is given

# One name a line of what is asked, its digest, or nothing.
_DIGESTS = """
import hashlib, binascii
def _sha(name):
    h = hashlib.sha256()
    b = bytearray(512)
    try:
        with open(name, 'rb') as f:
            while True:
                n = f.readinto(b)
                if not n:
                    break
                h.update(memoryview(b)[:n])
    except OSError:
        return ''
    return binascii.hexlify(h.digest()).decode()
for _n in {names!r}:
    print(_n, _sha(_n))
"""
# The old file is copied first, so that a rename alone replaces it; FAT does not rename over a file, littlefs does.
_KEEP = """
def _copy(a, b):
    with open(a, 'rb') as f, open(b, 'wb') as g:
        while True:
            d = f.read(512)
            if not d:
                break
            g.write(d)
for _n in {old!r}:
    _copy(_n, _n + '.old')
"""
_PLACE = """
import os
def _over(a, b):
    try:
        os.rename(a, b)
    except OSError:
        os.remove(b)
        os.rename(a, b)
for _n in {names!r}:
    _over(_n + '.new', _n)
if hasattr(os, 'sync'):
    os.sync()
"""
_ROLL_BACK = """
import os
def _over(a, b):
    try:
        os.rename(a, b)
    except OSError:
        os.remove(b)
        os.rename(a, b)
for _n in {old!r}:
    _over(_n + '.old', _n)
for _n in {added!r}:
    os.remove(_n)
"""

Progress = Callable[[str, int, int], None]  # file, bytes done and bytes in all, of the whole deploy


class NodeDead(SourceError):
    """Something was put in place, and the node does not run, or nobody knows whether it does."""


class Plan(msgspec.Struct, frozen=True):
    """What a deploy does: file -> size. `old` are replaced and kept as `.old`, `added` are new, `same` stay."""

    old: dict[str, int]
    added: dict[str, int]
    same: dict[str, int]

    @property
    def names(self) -> list[str]:
        """What is written, main.py last: until then the old program is what starts."""
        return sorted({**self.old, **self.added}, key=lambda name: (name == "main.py", name))


class Outcome(msgspec.Struct, frozen=True):
    """`hello` is of what runs now; `failed` says why that is the firmware from before, empty when it is the new one."""

    plan: Plan
    hello: Hello | None = None
    failed: str = ""


def read_firmware(folder: Path, config: Path | None = None) -> dict[str, bytes]:
    """The files of a firmware: name -> contents. `config` becomes config.json.

    Raises:
        SourceError: no main.py, names that a board does not take, or too much.
    """
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}", hint="--firmware names one with main.py in it")
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}
    if config is not None:
        files[_OWN] = config
    if "main.py" not in files:
        raise SourceError(f"{folder} has no main.py", hint="--firmware names the folder with the node's program")
    for name in files:
        if not _NAME.fullmatch(name) or name.endswith((".new", ".old")):
            raise SourceError(f"{folder}: '{name}' is no name for a file on a node", hint="rename or remove it")
    try:
        contents = {name: path.read_bytes() for name, path in files.items()}
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
    if len(contents) > MAX_FILES or sum(map(len, contents.values())) > MAX_BYTES:
        raise SourceError(
            f"{folder}: more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB", hint="is it the right one?"
        )
    return contents


async def deploy(
    wire: Wire,
    files: Mapping[str, bytes],
    board: Board = ANY,
    *,
    replace_config: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
    hello_s: float | None = None,
) -> Outcome:
    """Bring the node to `files`; its program is stopped meanwhile and runs again at the end.

    A config.json that the node has is kept unless `replace_config`.

    Raises:
        SourceError: no board, or it failed before anything was put in place.
        NodeDead: later than that.
    """
    async with raw_repl(wire, board) as repl:
        try:
            plan = await make_plan(repl, files, replace_config)
            if dry_run:
                return Outcome(plan)
            await _upload(repl, plan, files, progress)
            await repl.exec(_KEEP.format(old=list(plan.old)), timeout_s=30.0)
            if plan.names:
                await _place(repl, plan)
        finally:
            await repl.soft_reset()
    try:
        return await _prove(wire, plan, board, HELLO_S if hello_s is None else hello_s)
    except NodeDead:
        raise
    except SourceError as error:
        raise NodeDead(
            f"the new firmware is in place, then: {error}", hint="./inv node.monitor shows what it says"
        ) from error


async def _place(repl: RawRepl, plan: Plan) -> None:
    try:
        await repl.exec(_PLACE.format(names=plan.names), timeout_s=30.0)
    except SourceError as error:
        raise NodeDead(f"while the files were put in place: {error}", hint="deploy again") from error


async def _prove(wire: Wire, plan: Plan, board: Board, hello_s: float) -> Outcome:
    """Wait for HELLO of the new firmware; without it put the old files back and wait for theirs."""
    hello, said = await greet(wire, hello_s)
    if hello is not None:
        return Outcome(plan, hello)
    why = f"the new firmware did not say HELLO within {hello_s:g} s" + (f"; it says: {said}" if said else "")
    if not plan.names:
        raise NodeDead(f"nothing differs, but the node's program does not run; it says: {said}", hint="see config.json")
    async with raw_repl(wire, board) as repl:
        await repl.exec(_ROLL_BACK.format(old=list(plan.old), added=list(plan.added)), timeout_s=30.0)
        await repl.soft_reset()
    hello, _ = await greet(wire, hello_s)
    return Outcome(plan, hello, why)


async def make_plan(repl: RawRepl, files: Mapping[str, bytes], replace_config: bool) -> Plan:
    """Compare by digests made on the node."""
    there = await _digests(repl, list(files))
    plan = Plan({}, {}, {})
    for name, content in files.items():
        keep = name == _OWN and there[name] and not replace_config
        same = keep or there[name] == hashlib.sha256(content).hexdigest()
        (plan.same if same else plan.old if there[name] else plan.added)[name] = len(content)
    return plan


async def _digests(repl: RawRepl, names: list[str]) -> dict[str, str]:
    printed = await repl.exec(_DIGESTS.format(names=names), timeout_s=30.0)
    lines = printed.decode(errors="replace").split("\n")
    found = {name: digest.strip() for name, _, digest in (line.strip().partition(" ") for line in lines)}
    if missing := [name for name in names if name not in found]:
        raise SourceError(f"the board does not answer for {missing[0]}", hint="unplug it and try again")
    return {name: found[name] for name in names}


async def _upload(repl: RawRepl, plan: Plan, files: Mapping[str, bytes], progress: Progress) -> None:
    """As `.new` beside the old ones, and read back as a digest."""
    total, done = sum({**plan.old, **plan.added}.values()), 0
    for name in plan.names:
        content = files[name]
        await repl.exec(f"import binascii\n_f = open({name + '.new'!r}, 'wb')\n_w = _f.write\n_a = binascii.a2b_base64")
        for at in range(0, len(content), CHUNK):
            piece = content[at : at + CHUNK]
            await repl.exec(f"_w(_a({binascii.b2a_base64(piece, newline=False)!r}))")
            done += len(piece)
            progress(name, done, total)
        await repl.exec("_f.close()")
    new = await _digests(repl, [name + ".new" for name in plan.names])
    for name in plan.names:
        if new[name + ".new"] != hashlib.sha256(files[name]).hexdigest():
            raise SourceError(f"{name} has arrived damaged", hint="the node is as before; try another cable")


async def greet(wire: Wire, timeout_s: float) -> tuple[Hello | None, str]:
    """Ask for HELLO until it comes; with the last line of text that came instead."""
    deframer, loop = Deframer(), asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while (left := end - loop.time()) > 0:
        await wire.write(SayHello().to_line())
        again = min(loop.time() + _AGAIN_S, end)
        while (wait := again - loop.time()) > 0:
            if (hello := _hello(deframer.feed(await wire.some(min(wait, left))))) is not None:
                return hello, ""
    lines = [*deframer.lines, *deframer.rest().splitlines()]
    said = [line.strip() for line in lines if len(line.strip()) > len(">>>") and "HELLO 1" not in line]
    failed = [line for line in said if re.match(r"\w*(Error|Interrupt|Exception)\b", line)]
    # the first failure: after it our own HELLO is a syntax error to the REPL
    return None, (failed[:1] or said[-1:] or [""])[0][:200]


def _hello(frames: list[bytes]) -> Hello | None:
    for frame in frames:
        try:
            message = messages.decode(frame)
        except LinkError:
            continue
        if isinstance(message, Hello):
            return message
    return None
