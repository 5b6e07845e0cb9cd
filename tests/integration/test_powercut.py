"""The power fails at 1,000 moments of a spool's life: whatever it acknowledged is there when it is opened again.

The system calls of a real run are recorded (strace). A power cut keeps what was synced; of what was written to a file
since its last sync it keeps any part, in any order, torn at sectors. Each state is made, opened and looked at.
"""

from __future__ import annotations

import ast
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.contract import Mark
from gateway.store.columns import Codec, expand
from gateway.store.ledger import read_ledger
from gateway.store.tables import Tables
from tests.integration.harness import ROOT
from tests.integration.power_cut_run import LOW, MAX_BYTES, POLICY, STREAM

COMMITS, CUTS, SEED = 700, 1000, 20261123
SECTOR = 512
CALL = re.compile(r'^(\w+)\((?:\d+<([^>]*)>|"([^"]*)")(?:, (.*))?\) += (-?\w+)')


@dataclass
class Disk:
    """One file: what is surely there, and what was done to it since (offset, data; None is a truncation)."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()

    def after_cut(self, dice: random.Random) -> bytes:
        """What might be found."""
        content = bytearray(self.synced)
        kept = [change for change in self.pending if dice.random() < 0.6]
        if dice.random() < 0.7:
            dice.shuffle(kept)
        for offset, data in kept:
            if data is not None and dice.random() < 0.3:
                data = data[: dice.randrange(0, len(data) + 1, SECTOR) if len(data) >= SECTOR else len(data)]
            _apply(content, offset, data)
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


@dataclass(frozen=True)
class Call:
    name: str
    path: str
    args: str

    def data(self) -> bytes:
        return bytes(ast.literal_eval("b" + self.args[: self.args.rindex('"') + 1]))


def record(folder: Path) -> list[Call]:
    trace = folder / "trace"
    command = ["strace", "-o", str(trace), "-y", "-xx", "-s", "1000000"]
    command += ["-e", "trace=write,pwrite64,fdatasync,fsync,ftruncate,unlink"]
    run = [sys.executable, "-m", "tests.integration.power_cut_run", str(folder), str(COMMITS)]
    subprocess.run([*command, *run], cwd=ROOT, check=True, timeout=120)
    calls = []
    with trace.open() as lines:
        for line in lines:
            if (found := CALL.match(line)) and found[5] != "-1":
                path = found[2] or found[3] or ""
                if "\\x" in path:
                    path = ast.literal_eval(f"b'{path}'").decode()
                calls.append(Call(found[1], path, found[4] or ""))
    return [call for call in calls if str(folder) in call.path]


@dataclass
class World:
    """The files at a moment, and the last that was acknowledged."""

    files: dict[str, Disk] = field(default_factory=dict)
    acked: dict[str, object] = field(default_factory=dict)

    def play(self, call: Call) -> bool:
        """Whether a power cut after this call is of interest."""
        name = Path(call.path).name
        if name == "acks":
            self.acked = json.loads(call.data())
            return True
        if not name.startswith("spool.db") or name.endswith(("-shm", ".ballast")):
            return False
        disk = self.files.setdefault(name, Disk())
        if call.name == "pwrite64":
            disk.pending.append((int(call.args.rsplit(", ", 1)[1]), call.data()))
        elif call.name == "ftruncate":
            disk.pending.append((int(call.args), None))
        elif call.name == "unlink":
            del self.files[name]
        else:
            disk.sync()
        return True


def states(calls: list[Call], cuts: int, seed: int) -> Iterator[tuple[World, random.Random]]:
    """The worlds after `cuts` calls that are chosen by chance; some are chosen more than once."""
    world, dice = World(), random.Random(seed)
    playing = [call for call in calls if World().play(call)]
    begun = next(i for i, call in enumerate(playing) if Path(call.path).name == "acks")
    chosen = sorted(dice.randrange(begun, len(playing)) for _ in range(cuts))
    for i, call in enumerate(playing):
        world.play(call)
        while chosen and chosen[0] == i:
            yield world, random.Random(f"{seed} {len(chosen)}")
            chosen.pop(0)


def look(folder: Path, acked: dict[str, object]) -> None:
    """Open what the cut has left, as the gateway would: everything acknowledged is there."""
    following, confirmed = acked["next"], acked["confirmed"]
    assert isinstance(following, dict)
    assert isinstance(confirmed, dict)
    tables = Tables(folder / "spool.db", Clock(), MAX_BYTES, POLICY)
    assert tables.recovered is None, tables.recovered
    try:
        for stream, seq in following.items():
            assert tables.state.next_seq[stream] >= seq
        mark = tables.state.marks["press"]
        assert mark.next_seq >= int(str(acked["mark"]))
        assert isinstance(mark, Mark)
        _readings(tables, int(confirmed.get(STREAM, 0)), following[STREAM])
        tables.commit({}, {}, {})
    finally:
        tables.close()
    with closing(sqlite3.connect(folder / "spool.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ledger = read_ledger(folder / "spool.db", ("main",), check=True)
    assert ledger.whole, ledger
    assert {entry.stream for entry in ledger.dropped} <= {LOW}, "only the low priority may go"


def _readings(tables: Tables, confirmed: int, acked: int) -> None:
    """Every reading that is not delivered is there with its own number; `tests.unit.samples.counted` numbers them."""
    codec, seen = Codec(), set()
    for batch in tables.read_after(0, 1 << 30):
        if batch.stream == STREAM:
            _, sample = codec.decode_samples(batch.blob)
            numbers = [int(values[0]) for _, values in expand(sample)]
            assert numbers == list(range(batch.seq_first, batch.seq_first + batch.n))
            seen.update(numbers)
    assert seen.issuperset(range(confirmed, acked))


@pytest.mark.timeout(170)
def test_whatever_was_acknowledged_survives_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    calls = record(tmp_path)
    memory = Path("/dev/shm")
    done = torn = 0
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        for world, dice in states(calls, CUTS, SEED):
            for file in folder.iterdir():
                file.unlink()
            for file_name, disk in world.files.items():
                torn += bool(disk.pending)
                (folder / file_name).write_bytes(disk.after_cut(dice))
            look(folder, world.acked)
            done += 1
    assert done == CUTS
    assert torn > CUTS // 10, "the run was cut where nothing was under way"


@pytest.mark.timeout(170)
def test_the_model_sees_a_store_that_does_not_sync(tmp_path: Path) -> None:
    """Were a commit's sync left out, the same look at the same run must fail: else it proves nothing."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    calls = [call for call in record(tmp_path) if not (call.name == "fdatasync" and call.path.endswith("-wal"))]
    folder = tmp_path / "cut"
    folder.mkdir()
    with pytest.raises((AssertionError, sqlite3.Error, KeyError)):
        for world, dice in states(calls, 50, SEED):
            for file in folder.iterdir():
                file.unlink()
            for file_name, disk in world.files.items():
                (folder / file_name).write_bytes(disk.after_cut(dice))
            look(folder, world.acked)
