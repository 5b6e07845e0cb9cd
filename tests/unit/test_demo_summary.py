"""What the demo counts as lost, duplicated and reordered, from consumers' tables that are right and wrong."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import struct
import tomllib
from pathlib import Path

import msgspec
import pytest

from gateway import config
from gateway.errors import OctogateError
from sdk import demo_factory
from sdk.demo_summary import Row, Stored, Summary, audit, count, delivered_rows, recording, summarise
from tests.unit import status_samples

PERIOD = 7


def expected(i: int) -> tuple[float, float]:
    return float(i % PERIOD), 0.5


def rows(*numbers: int) -> list[Row]:
    return [(i, list(expected(i))) for i in numbers]


def counted(arrived: list[Row], sent: int) -> tuple[int, int, int, int]:
    found = audit(arrived, sent, expected)
    return found.delivered, found.lost, found.duplicated, found.reordered


@pytest.mark.parametrize(
    ("arrived", "sent", "delivered", "lost", "duplicated", "reordered"),
    [
        (rows(*range(20)), 20, 20, 0, 0, 0),
        ([], 20, 0, 20, 0, 0),
        ([], 0, 0, 0, 0, 0),
        (rows(0, 1, 3, 4), 5, 4, 1, 0, 0),
        (rows(0, 1, 2), 5, 3, 2, 0, 0),
        (rows(0, 1, 1, 2), 3, 3, 0, 1, 0),
        (rows(0, 2, 1, 3), 4, 4, 0, 0, 1),
        (rows(*range(6)), 5, 6, 0, 1, 0),  # one more than was sent: something came twice under a new number
    ],
)
def test_counts(arrived: list[Row], sent: int, delivered: int, lost: int, duplicated: int, reordered: int) -> None:
    assert counted(arrived, sent) == (delivered, lost, duplicated, reordered)


def test_right_numbers_with_the_wrong_readings_are_seen() -> None:
    swapped = rows(*range(10))
    swapped[3], swapped[4] = (3, swapped[4][1]), (4, swapped[3][1])
    assert counted(swapped, 10) == (10, 0, 0, 2)
    # reading 4 was lost before it got a number, so that all later ones are a place too early
    shifted: list[Row] = [(i, list(expected(i if i < 4 else i + 1))) for i in range(9)]
    assert counted(shifted, 10) == (9, 1, 0, 5)


def test_a_recording_is_replayed_over_and_over(tmp_path: Path) -> None:
    shape = tmp_path / "shape.bin"
    shape.write_bytes(struct.pack("<ffffff", 1, 2, 3, 4, 5, 6.1))
    reading = recording(shape, "<ff")
    assert reading(0) == reading(3) == (1, 2)
    assert reading(5) == (5, struct.unpack("<f", struct.pack("<f", 6.1))[0])


def make_databases(folder: Path) -> tuple[Path, Path]:
    spool, consumer = folder / "spool.db", folder / "consumer.db"
    with contextlib.closing(sqlite3.connect(spool)) as db:
        db.executescript("""
            CREATE TABLE stream (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, next_seq INTEGER DEFAULT 0);
            CREATE TABLE batch (id INTEGER PRIMARY KEY, stream INTEGER, seq_first INTEGER, n INTEGER);
            INSERT INTO stream VALUES (1, 'press-4/power', 'samples', 10), (2, 'events', 'events', 0),
                (3, 'press-state', 'inferences', 4);
            INSERT INTO batch VALUES (1, 1, 10, 20), (2, 2, 0, 3);
        """)
    with contextlib.closing(sqlite3.connect(consumer)) as db:
        db.executescript("""
            CREATE TABLE stream (id INTEGER PRIMARY KEY, stream TEXT);
            CREATE TABLE reading (stream INTEGER, seq INTEGER, value TEXT);
            INSERT INTO stream VALUES (1, 'press-4/power'), (2, 'press-state');
            INSERT INTO reading VALUES (1, 0, '[1.5, 2]'), (1, 1, '[2, 3]'), (2, 0, '{}');
        """)
    return spool, consumer


def test_stored_and_delivered_are_read_from_both_databases(tmp_path: Path) -> None:
    spool, consumer = make_databases(tmp_path)
    assert count(spool, consumer) == {
        "press-4/power": Stored("samples", 30, 2),
        "events": Stored("events", 3, 0),
        "press-state": Stored("inferences", 4, 1),
    }
    assert delivered_rows(consumer, "press-4/power") == [(0, [1.5, 2]), (1, [2, 3])]


def summary(tmp_path: Path, sent: int, gateway_status: int = 0) -> Summary:
    streams = {
        "press-4/power": Stored("samples", 20, 20),
        "press-state": Stored("inferences", 5, 5),
        "dock-objects": Stored("inferences", 4, 3),
        "events": Stored("events", 9, 8),
    }
    return summarise(
        audit(rows(*range(20)), sent, expected),
        streams,
        status_samples.status(),
        stream="press-4/power",
        sent=sent,
        outage_s=8.04,
        seconds=60.2,
        node="MicroPython",
        repeats=2,
        gateway_status=gateway_status,
    )


def test_a_whole_run_is_ok_and_says_so(tmp_path: Path) -> None:
    whole = summary(tmp_path, 20)
    assert whole.ok
    assert whole.verdict() == "All 20 readings arrived, once and in order, through 8 s without a broker."
    plain = msgspec.to_builtins(whole)
    wanted: dict[str, float] = {"sent": 20, "stored": 20, "delivered": 20, "lost": 0, "duplicated": 0, "reordered": 0}
    wanted |= {"outage_s": 8.0, "inferences": 9, "inferences_delivered": 8, "events": 9, "events_delivered": 8}
    assert {name: plain[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("sent", "gateway_status", "says"),
    [(21, 0, "1 lost"), (19, 0, "1 duplicated"), (20, -9, "the gateway ended with status -9")],
)
def test_a_run_that_is_not_whole_says_what_is_wrong(tmp_path: Path, sent: int, gateway_status: int, says: str) -> None:
    broken = summary(tmp_path, sent, gateway_status)
    assert not broken.ok
    assert says in broken.verdict()


def test_a_run_without_readings_is_not_ok(tmp_path: Path) -> None:
    nothing = msgspec.structs.replace(summary(tmp_path, 20), sent=0, stored=0, delivered=0)
    assert not nothing.ok
    assert "sent nothing" in nothing.verdict()


# --- the example config with the demo's values --------------------------------------------------------------------


def test_the_example_config_takes_the_demos_values() -> None:
    example = demo_factory.EXAMPLE
    text = demo_factory.configured(
        example.read_text(),
        example.parent,
        {("gateway", "data_dir"): '/tmp/a "b"', ("source", "port"): "/tmp/tty", ("uplink", "port"): 1884},
    )
    raw = tomllib.loads(text)
    original = tomllib.loads(example.read_text())
    assert raw["gateway"]["data_dir"] == '/tmp/a "b"'
    assert raw["source"][0]["port"] == "/tmp/tty"
    assert raw["uplink"]["port"] == 1884
    assert Path(raw["model"][0]["bundle"]).is_absolute()
    assert Path(raw["trust"]["keys"][0]).is_absolute()
    assert raw["rule"] == original["rule"]
    assert raw["pipeline"] == original["pipeline"]


def test_a_value_that_the_example_has_no_place_for_is_an_error() -> None:
    with pytest.raises(OctogateError, match=r"no \[panel\] colour"):
        demo_factory.configured("[panel]\nport = 1\n", Path(), {("panel", "colour"): 1})


def test_the_example_shows_every_key() -> None:
    text = demo_factory.EXAMPLE.read_text()
    shown = set(re.findall(r"^#?([a-z_]+) = ", text, re.MULTILINE)) | set(
        re.findall(r"^#?\[+([a-z.]+)", text, re.MULTILINE)
    )
    shown |= {part for name in shown for part in name.split(".")}
    assert config._all_keys() - {"base"} <= shown
