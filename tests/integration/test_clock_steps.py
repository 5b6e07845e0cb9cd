"""A real daemon whose wall clock steps by years: libfaketime gives it the time of a file, which the test writes.

Only what the C library calls the time of day is changed; monotonic time, files' dates and everybody else's clocks are
the machine's. The kernel says nothing of such a step, so the gateway sees it at its next commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.clock import STEP_NS
from gateway.contract import GatewayStatus, SourceState
from gateway.store.ledger import read_ledger
from gateway.store.query import Query
from sdk.ingest import Ingest
from tests.integration.harness import (
    COUNTS,
    ROOT,
    Daemon,
    assert_whole,
    broker,
    delivered_count,
    free_port,
    node,
    stored,
    until,
)
from tests.integration.mosquitto import SECRET, mosquitto
from tests.unit.live_bench import assert_consecutive
from tests.unit.sparkplug_host import Told, told

YEAR_S = 365 * 86_400
YEARS = (
    5,
    -8,
    0,
    60,
    -60,
    0,
)  # from now: ahead, before this software, right, further than any certificate, 1966, right
KEEPALIVE_S = 5


def config(folder: Path, port: int, panel: int, more: str = "") -> str:
    return f"""
[gateway]
id = "test"
data_dir = "data"
[[store.stream]]
match = "*"
keep_days = 1
[[source]]
kind = "node"
name = "press"
port = "{folder / "tty"}"
silent_s = 3
[panel]
port = {panel}
[uplink]
host = "127.0.0.1"
port = {port}
keepalive_s = {KEEPALIVE_S}
backoff_max_s = 0.5
{more}
[uplink.live]
group = "plant"
min_interval_ms = 100
"""


class Stepped(Daemon):
    """A daemon with a clock of its own."""

    def __init__(self, folder: Path, config: str) -> None:
        super().__init__(folder, config)
        self._offset = folder / "offset"

    def set_clock(self, offset_s: int) -> None:
        """The time of day is that of the machine plus this, from now on."""
        part = self._offset.with_suffix(".part")
        part.write_text(f"{offset_s:+d}\n")
        part.rename(self._offset)

    async def start(self) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        assert library, "libfaketime is missing: ./inv test --integration installs faketime or names it"
        env = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", "run", "--config", str(self.config), stderr=log, cwd=ROOT, env=env
            )


@asynccontextmanager
async def stepped(folder: Path, text: str, offset_s: int) -> AsyncIterator[Stepped]:
    made = Stepped(folder, text)
    made.set_clock(offset_s)
    await made.start()
    try:
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            await made.kill()


@contextmanager
def host(port: int) -> Iterator[list[Told]]:
    """What a Sparkplug host is told."""
    heard: list[Told] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("spBv1.0/#")
    client.on_message = lambda _c, _u, m: heard.append(told(m.topic, bytes(m.payload), m.qos, m.retain))
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def events(db: Path) -> list[tuple[str, str, float | None, int | None]]:
    """The events about the clock in the consumer's table: name, state, step, time."""
    with contextlib.closing(sqlite3.connect(db)) as table:
        return table.execute(
            "SELECT name, state, json_extract(detail, '$.step_s'), wall_ns FROM v_event WHERE origin = 'clock' ORDER BY seq"
        ).fetchall()


def walls(db: Path) -> list[int | None]:
    with contextlib.closing(sqlite3.connect(db)) as table:
        return [wall for (wall,) in table.execute(f'SELECT wall_ns FROM "v_{COUNTS}" ORDER BY seq')]


def offsets(db: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(db)) as table:
        return [found for (found,) in table.execute(f'SELECT wall_ns - mono_ns FROM "v_{COUNTS}"')]


def stored_of(status: GatewayStatus) -> int:
    return next((stream.next_seq for stream in status.streams if stream.name == COUNTS), 0)


def delivered_of(status: GatewayStatus) -> int:
    return next((stream.delivered_seq for stream in status.streams if stream.name == COUNTS), 0)


async def fetch(port: int, path: str) -> int:
    def get() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)

    return await asyncio.to_thread(get)


async def step(gateway: Stepped, db: Path, years: int, panel: int) -> int:
    """Set the clock, and see that everything goes on as if nothing had been; how often sending went back so far."""
    before = await gateway.status()
    gateway.set_clock(years * YEAR_S)
    name = "clock.unknown" if years < 0 or before.events[0].stamp.wall_ns is None else "clock.stepped"
    await gateway.until(lambda s: any(e.name == name and e not in before.events for e in s.events), f"{years}: {name}")
    until_s = time.monotonic() + 1.2 * KEEPALIVE_S / len(YEARS) + 0.5  # all together longer than twice the keepalive
    after = await gateway.until(
        lambda s: stored_of(s) > stored_of(before) + 300 and time.monotonic() > until_s, "it goes on storing"
    )
    await until(lambda: delivered_count(db, COUNTS) >= stored_of(after), "it goes on delivering")
    assert (after.uplink.state, after.uplink.reconnects) == ("up", 0)
    assert after.sources[0].state is SourceState.OK
    assert after.sources[0].gaps == before.sources[0].gaps
    assert await fetch(panel, "/healthz") == await fetch(panel, "/api/status") == 200
    return after.uplink.rewinds


@pytest.mark.timeout(180)
def test_steps_of_years_disturb_no_order_no_retention_and_no_watchdog(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, panel, db = free_port(), free_port(), tmp_path / "consumer.db"
        with broker(port), host(port) as heard:
            async with (
                Ingest.open(db, port=port) as ingest,
                node(tmp_path),
                stepped(tmp_path, config(tmp_path, port, panel), 0) as gateway,
            ):
                await gateway.until(lambda s: delivered_of(s) > 300, "it streams, and has heard of the consumer")
                for years in YEARS:
                    rewinds = await step(gateway, db, years, panel)
                # the connection, the consumer's first word, and where the broker dropped something: not for the clock
                assert rewinds <= 2 + ingest.counts.gaps
                assert await gateway.end() == 0
                await until(lambda: any(m.kind == "NDEATH" for m in heard), "the host is told of the end")
                session = list(heard)
                on_disk = stored(gateway.spool)[COUNTS]
                await gateway.start()
                await until(lambda: delivered_count(db, COUNTS) >= on_disk, "everything delivered")
                await gateway.end()
                assert (ingest.counts.refused, ingest.counts.missing, ingest.counts.dropped) == (0, 0, 0)
        assert_whole(db, on_disk)
        ledger = read_ledger(gateway.spool, ("main",), check=True)
        assert ledger.whole and not ledger.dropped  # nothing became a day old, or sixty years
        said = [(name, state) for name, state, *_ in events(db)]
        assert said == [
            ("clock.stepped", "point"),  # ahead
            ("clock.unknown", "raised"),  # before this software
            ("clock.unknown", "cleared"),
            ("clock.stepped", "point"),
            ("clock.unknown", "raised"),  # before 1970
            ("clock.unknown", "cleared"),
        ]
        sizes = [round(found / YEAR_S) for _, _, found, _ in events(db) if found is not None]
        assert sizes == [b - a for a, b in zip((0, *YEARS), YEARS, strict=False)]
        with Query(gateway.spool) as query:  # a chart: every reading once, where the clock of its boot now says
            now = time.time_ns()
            points = query.series(COUNTS, "n", now - 3600 * 10**9, now + 60 * 10**9, 60)
        assert sum(point.n for point in points) == stored(gateway.spool)[COUNTS]
        assert_session(session)

    asyncio.run(scenario())


def assert_session(heard: list[Told]) -> None:
    """One session of the edge node, reborn at each step with the time as it then was, and no message missing."""
    assert [m.kind for m in heard].count("NDEATH") == 1  # the end
    assert_consecutive(heard)
    births = [m for m in heard if m.kind == "NBIRTH"]
    assert {m.metric("bdSeq").value for m in births} == {births[0].metric("bdSeq").value}
    assert [m.metric("Clock/known").value for m in births] == [True, True, False, True, True, False, True]
    now = time.time()
    for birth, years in zip(births, (0, *YEARS), strict=True):
        assert birth.timestamp is not None
        assert abs(birth.timestamp / 1000 - max(0, now + years * YEAR_S)) < 120
    data = [m for m in heard if m.kind == "DDATA"]
    assert len(data) > 20 and all(m.timestamp is not None and m.timestamp >= 0 for m in data)


@pytest.mark.timeout(120)
def test_what_was_delivered_before_the_clock_was_known_is_dated_at_the_receiver(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        began = time.time_ns()
        with broker(port):
            async with (
                Ingest.open(db, port=port),
                node(tmp_path),
                stepped(tmp_path, config(tmp_path, port, free_port()), -40 * YEAR_S) as gateway,
            ):
                await until(lambda: db.exists() and delivered_count(db, COUNTS) > 400, "readings arrive")
                assert set(walls(db)) == {None}
                before = delivered_count(db, COUNTS)
                gateway.set_clock(0)
                await until(
                    lambda: delivered_count(db, COUNTS) > before + 400 and None not in walls(db), "all are dated"
                )
                await gateway.end()
        found = [wall for wall in walls(db) if wall is not None]
        assert began < found[0] and found[-1] < time.time_ns()
        assert max(offsets(db)) - min(offsets(db)) < STEP_NS  # one boot, one clock
        assert 0 < found[before] - found[0] < 120 * 10**9
        told = events(db)
        assert [(name, state) for name, state, *_ in told] == [
            ("clock.unknown", "raised"),
            ("clock.unknown", "cleared"),
        ]
        assert told[0][3] is not None and began < told[0][3] < found[before]  # even of the event that it was not known

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_a_certificate_that_is_not_valid_yet_is_taken_once_the_clock_is_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as tls:
            (tmp_path / "secret").write_text(SECRET)
            more = f'username = "press"\npassword_file = "secret"\nca_file = "{tls.folder}/ca.pem"'
            text = config(tmp_path, tls.tls, free_port(), more)
            async with node(tmp_path), stepped(tmp_path, text, -30 * YEAR_S) as gateway:
                await gateway.until(lambda s: "certificate" in s.uplink.detail, "the certificate is refused")
                gateway.set_clock(0)
                await gateway.until(lambda s: s.uplink.state == "up", "it is connected")

    asyncio.run(scenario())
