"""The fault campaign in short: OCTOGATE_FAULTS=200 makes it the long one (bench/campaign.py says what is broken)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bench.campaign import KINDS, Verdict, campaign, judge
from tests.integration.machine import can_mount, faketime

FAULTS = int(os.environ.get("OCTOGATE_FAULTS", "20"))


@pytest.mark.timeout(120 + 4 * FAULTS)
@pytest.mark.parametrize(("broker", "protocol"), [("mosquitto", "5"), ("iotcore", "3.1.1")])
def test_whatever_breaks_every_reading_is_there_once_and_in_order(tmp_path: Path, broker: str, protocol: str) -> None:
    verdict = asyncio.run(campaign(tmp_path, broker, FAULTS, seed=FAULTS, protocol=protocol))
    print(verdict)
    assert sum(verdict.faults.values()) == FAULTS
    possible = {"disk_filled": can_mount(), "clock_stepped": faketime() is not None}
    assert verdict.left_out == tuple(kind for kind, can in possible.items() if not can)
    assert min(verdict.faults[kind] for kind in KINDS if possible.get(kind, True)) >= FAULTS // len(KINDS)
    assert (verdict.clock_jumps > 0) == (possible["clock_stepped"] and 2 * len(KINDS) < FAULTS)  # the steps were real
    assert verdict.rows >= verdict.stored > 100 * FAULTS  # it did stream in between
    assert (verdict.lost, verdict.doubled, verdict.inverted) == (0, 0, 0)


def test_the_verdict_sees_what_is_wrong(tmp_path: Path) -> None:
    """A table with a hole, a repeated reading and a swap."""
    import sqlite3

    db = tmp_path / "consumer.db"
    with sqlite3.connect(db) as table:
        # what `judge` reads of the consumer's tables
        table.execute("CREATE TABLE stream (id INTEGER PRIMARY KEY, stream TEXT)")
        table.execute(
            "CREATE TABLE reading (stream INTEGER, seq INTEGER, mono_ns INTEGER, wall_ns INTEGER, value TEXT)"
        )
        table.execute("INSERT INTO stream VALUES (1, 'press/count')")
        numbers = [0, 1, 1, 4, 3, 5]  # 2 is lost, 1 is there twice, 4 and 3 are swapped
        rows = [(1, seq, seq, None, f"[{number}]") for seq, number in enumerate(numbers)]
        table.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?)", rows)
    table.close()
    verdict = Verdict("none", {}, stored=6)
    judge(db, verdict)
    assert (verdict.rows, verdict.lost, verdict.doubled, verdict.inverted) == (6, 1, 1, 1)
