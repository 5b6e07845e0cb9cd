"""Two ledgers, one truth: `octogate ledger` and `octogate-ingest ledger` name the same numbers, stream by stream.

Gateway and receiver as processes with mosquitto between them: an outage under load with a spool so small that its
policy drops, and then a batch that somebody deletes behind the gateway's back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bench.campaign import Process, broker_command
from gateway.store.ledger import read_ledger
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, PATIENCE_S, ROOT, Daemon, daemon, free_port
from tests.integration.proxy import Proxy

STREAM = "press/noise"
WIDTH, RATE = 12, 500  # 96 bytes a reading that nothing compresses: the spool of 1 MiB is full in half a minute

Ledger = dict[str, Any]
Ranges = list[tuple[int, int]]


def node(folder: Path) -> MicroPythonNode:
    settings = {
        "node": "press", "stream": "noise", "sensor": "replay", "file": "noise.bin", "rate": RATE, "frame": 10, "ring": 400,
        "channels": [[f"c{i}", "q", ""] for i in range(WIDTH)],
    }  # fmt: skip
    files = {"noise.bin": os.urandom(8 * WIDTH * 2000)}
    return MicroPythonNode(FIRMWARE, folder / "node", folder / "tty", config=settings, files=files, heap_kib=2048)


def config(folder: Path, port: int) -> str:
    return f"""
[gateway]
id = "test"
data_dir = "data"
[store]
max_mib = 1
when_full = "drop"
[[source]]
kind = "node"
name = "press"
port = "{folder / "tty"}"
[uplink]
host = "127.0.0.1"
port = {port}
backoff_max_s = 0.5
"""


class Pair:
    """Both ends, and what their commands print."""

    def __init__(self, gateway: Daemon, db: Path) -> None:
        self.gateway = gateway
        self._db = db

    async def gateways(self) -> tuple[int, Ledger]:
        """Exit status and streams of `octogate ledger`."""
        return await _run("gateway", "ledger", "--json", "--config", str(self.gateway.config))

    async def receivers(self) -> tuple[int, Ledger]:
        """The same of `octogate-ingest ledger`."""
        return await _run("sdk.ingest", "ledger", "--json", "--count", "--db", str(self._db))

    async def until(self, agreed: Callable[[Ledger, Ledger], bool], what: str) -> tuple[Ledger, Ledger]:
        """Both ledgers, as soon as they fulfil `agreed`."""
        ours: Ledger = {}
        theirs: Ledger = {}
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                while True:
                    ours, theirs = (await self.gateways())[1], (await self.receivers())[1]
                    if agreed(ours, theirs):
                        return ours, theirs
        except TimeoutError:
            raise AssertionError(f"not in time: {what}\n{ours}\n{theirs}\n{self.gateway.log.read_text()}") from None


async def _run(module: str, *arguments: str) -> tuple[int, Ledger]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode in (0, 1)
    ledger = json.loads(said)
    by_name = {stream["stream"]: stream for stream in ledger["streams"]}
    return process.returncode, {**ledger, "streams": by_name}


def everything_has_come(ours: Ledger, theirs: Ledger) -> bool:
    """What the gateway has taken, the receiver has, committed or dropped, and the gateway knows."""
    return ours["streams"].keys() == theirs["streams"].keys() and all(
        stream["taken"] == theirs["streams"][name]["next_seq"] == stream["delivered"]["main"]
        for name, stream in ours["streams"].items()
    )


def joined(ranges: Ranges) -> Ranges:
    """Ranges that touch are one."""
    made: Ranges = []
    for first, end in sorted(ranges):
        if made and made[-1][1] == first:
            made[-1] = made[-1][0], end
        else:
            made.append((first, end))
    return made


def theirs_of(stream: Ledger, state: str) -> Ranges:
    return joined([(run["seq_first"], run["seq_end"]) for run in stream["runs"] if run["state"] == state])


def assert_agreed(ours: Ledger, theirs: Ledger) -> None:
    """Number by number."""
    assert ours["live"]
    assert ours["epoch"] == next(iter(theirs["streams"].values()))["epoch"]
    assert ours["streams"].keys() == theirs["streams"].keys()
    for name, one in ours["streams"].items():
        other = theirs["streams"][name]
        lines = [line for line in ours["dropped"] if line["stream"] == name]
        assert joined([(d["seq_first"], d["seq_first"] + d["n"]) for d in lines]) == theirs_of(other, "dropped")
        assert sum(one["dropped"].values()) == other["dropped"]
        assert set(one["dropped"]) == {run["why"] for run in other["runs"] if run["state"] == "dropped"}
        assert [tuple(pair) for pair in one["missing"]] == theirs_of(other, "missing")
        assert one["delivered"] == {"main": other["next_seq"]}
        assert other["rows"] == other["committed"]
        sums = other["committed"] + other["dropped"] + other["missing"] + other["waiting"]
        assert one["taken"] == sums
        for run in other["runs"]:
            if run["state"] == "dropped":  # when: ours in whole seconds
                times = [datetime.fromisoformat(line[at]).timestamp() for line in lines for at in ("first", "last")]
                assert min(times) - 1 <= run["when_ns"] / 1e9 <= max(times) + 1


def delete_behind_its_back(spool: Path) -> tuple[int, int]:
    """One batch that was not delivered, away; its numbers."""
    with closing(sqlite3.connect(spool)) as db:
        rows = db.execute(
            "SELECT b.id, b.seq_first, b.seq_first + b.n FROM batch b JOIN stream s ON s.id = b.stream"
            " JOIN watermark w ON w.stream = s.id WHERE s.name = ? AND b.seq_first > w.seq ORDER BY b.id",
            (STREAM,),
        ).fetchall()
        assert len(rows) > 1
        id, first, end = rows[-2]  # what follows shows that it is missing
        db.execute("DELETE FROM batch WHERE id = ?", (id,))
        db.commit()
    return first, end


@pytest.mark.timeout(300)
def test_both_ends_name_the_same_numbers(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        async with AsyncExitStack() as stack:
            broker = Process(tmp_path / "broker.log", *broker_command("mosquitto", port, tmp_path))
            stack.push_async_callback(broker.kill)
            await broker.start()
            link = await stack.enter_async_context(Proxy.open(port))
            receiver = Process(
                tmp_path / "receiver.log", sys.executable, "-m", "sdk.ingest", "--port", str(port), "--db", str(db)
            )
            stack.push_async_callback(receiver.kill)
            await receiver.start()
            press = await stack.enter_async_context(node(tmp_path))
            gateway = await stack.enter_async_context(daemon(tmp_path, config(tmp_path, link.port)))
            pair = Pair(gateway, db)
            await delivered_exactly(pair, press)
            await dropped_exactly(pair, press, link)
            await missing_exactly(pair, press, link)

    asyncio.run(scenario())


def taken(ledger: Ledger) -> int:
    return int(ledger["streams"].get(STREAM, {}).get("taken", 0))


async def delivered_exactly(pair: Pair, press: MicroPythonNode) -> None:
    """The running gateway says what is delivered though its file does not know yet."""
    await pair.gateway.until(lambda s: any(t.delivered_seq > 500 for t in s.streams), "it streams")
    press.unplug()
    assert_agreed(*await pair.until(everything_has_come, "all is delivered"))
    stored = {s.stream: s for s in read_ledger(pair.gateway.spool, ("main",)).streams}
    assert stored[STREAM].delivered["main"] < stored[STREAM].taken, "then asking proves nothing"
    assert (await pair.gateways())[0] == (await pair.receivers())[0] == 0
    press.replug()


async def dropped_exactly(pair: Pair, press: MicroPythonNode, link: Proxy) -> None:
    """An outage in full flow, until the policy has dropped for a while."""
    before = taken((await pair.gateways())[1])
    await pair.gateway.until(
        # what is under way is spared up to a limit, so the consumer must have kept up
        lambda s: any(t.next_seq > before + 500 for t in s.streams) and 0 < s.spool.backlog < 500,
        "it streams again",
    )
    await link.cut()
    await pair.gateway.until(lambda s: s.spool.dropped > 2000, "readings are dropped")
    await link.mend()
    press.unplug()
    ours, theirs = await pair.until(everything_has_come, "all that is left is delivered")
    assert_agreed(ours, theirs)
    assert set(ours["streams"][STREAM]["dropped"]) == {"full"} and theirs["streams"][STREAM]["dropped"] > 2000
    assert (await pair.gateways())[0] == (await pair.receivers())[0] == 0
    press.replug()


async def missing_exactly(pair: Pair, press: MicroPythonNode, link: Proxy) -> None:
    """A batch is not there any more, and no policy did it: both say which, and end with 1."""
    await link.cut()
    at = taken((await pair.gateways())[1])
    await pair.gateway.until(lambda s: any(t.next_seq > at + 3000 for t in s.streams), "readings wait")
    press.unplug()
    await pair.gateway.kill()  # in good order it would pack what waits
    hole = delete_behind_its_back(pair.gateway.spool)
    await pair.gateway.start()
    await link.mend()

    def settled(ours: Ledger, theirs: Ledger) -> bool:
        return ours["live"] and all(
            stream["taken"] == other["next_seq"] + other["waiting"] + other["missing"]
            and stream["delivered"]["main"] == other["next_seq"]
            for stream, other in ((stream, theirs["streams"][name]) for name, stream in ours["streams"].items())
        )

    ours, theirs = await pair.until(settled, "the hole is noticed, and what follows waits")
    assert_agreed(ours, theirs)
    assert ours["streams"][STREAM]["missing"] == [list(hole)]
    assert not ours["whole"] and not theirs["ok"]
    assert (await pair.gateways())[0] == (await pair.receivers())[0] == 1
