"""Charts, exports and the ledger's command: what a person gets out of a spool."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from array import array
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.__main__ import FAILED, MISUSED, OK, main
from gateway.contract import CHANNEL_TYPES, BatchKind, Channel, Sample, Schema
from gateway.errors import StoreError
from gateway.store import export
from gateway.store.query import Query
from gateway.store.rollup import MINUTE_NS, Minute, cells, column, minutes, unpack
from tests.unit.samples import SCHEMA, counted
from tests.unit.spools import Bench, Times

STREAM = "press/power"
SECOND = 10**9
CONFIG = '[gateway]\nid = "t"\ndata_dir = "data"\n'


def bench(tmp_path: Path) -> Bench:
    (tmp_path / "data").mkdir()
    (tmp_path / "gateway.toml").write_text(CONFIG + '[uplink]\nhost = "127.0.0.1"\n')
    return Bench(tmp_path / "data" / "spool.db", max_bytes=64 << 20)


def run(tmp_path: Path, *args: str) -> int:
    return main([args[0], "-c", str(tmp_path / "gateway.toml"), *args[1:]])


# --- charts ------------------------------------------------------------------------------------------------------


def an_hour(made: Bench) -> tuple[int, int]:
    """3,600 readings, one a second, part of them not in the books yet; their span (UTC, ns)."""
    start = made.times.wall
    for i in range(120):
        made.times.wait(30 * SECOND)
        made.commit(STREAM, timed(i * 30, 30, made.times.mono - 30 * SECOND))
        if i == 90:
            made.upkeep()
    return start, made.times.wall


def timed(first: int, n: int, mono_ns: int) -> Sample:
    sample = counted(STREAM, first, n, step_ns=SECOND)
    sample.firsts[0] = mono_ns
    return sample


def test_a_short_range_is_drawn_from_the_readings(tmp_path: Path) -> None:
    made = bench(tmp_path)
    start, end = an_hour(made)
    with Query(made.path) as query:
        points = query.series(STREAM, "count", start, end, 360)
    assert [(p.n, p.low, p.high, p.mean) for p in points] == [
        (10, 10 * i, 10 * i + 9, 10 * i + 4.5) for i in range(360)
    ]
    assert points[0].wall_ns == start + 5 * SECOND


def test_a_long_range_is_drawn_from_the_minutes_and_what_is_newer_than_the_books(tmp_path: Path) -> None:
    made = bench(tmp_path)
    start, end = an_hour(made)
    with Query(made.path) as query:
        points = query.series(STREAM, "half", start, end, 6)
        assert sum(p.n for p in points) == 3600, "each reading once, whether the books know it or not"
        assert (points[0].low, points[-1].high) == (0.0, 3599 / 2)
        assert math.isclose(sum(p.mean * p.n for p in points) / 3600, 3599 / 4)
        part = query.series(STREAM, "half", start + 1200 * SECOND, start + 1800 * SECOND, 5)
        assert abs(sum(p.n for p in part) - 600) <= 120, "to the minute"


def test_a_chart_of_nothing_says_what_there_is(tmp_path: Path) -> None:
    made = bench(tmp_path)
    start, end = an_hour(made)
    made.row("events", b"{}")
    with Query(made.path) as query:
        assert query.series(STREAM, "count", start - 10**15, start - 10**14, 10) == []
        for args, message in (
            ((STREAM, "volts", start, end, 10), "no channel 'volts'"),
            ((STREAM, "volts", start, end, 3600), "no channel 'volts'"),
            (("press/pover", "count", start, end, 10), "there are: events, press/power"),
            (("events", "count", start, end, 10), "no numbers"),
            ((STREAM, "count", end, start, 10), "not a range"),
            ((STREAM, "count", start, end, 0), "not a range"),
        ):
            with pytest.raises(StoreError, match=message):
                query.series(*args)
    with pytest.raises(StoreError, match="there is no spool"):
        Query(tmp_path / "none.db")


def test_the_books_say_the_same_after_a_kill(tmp_path: Path) -> None:
    made = bench(tmp_path)
    start, end = an_hour(made)
    with Query(made.path) as query:
        before = query.series(STREAM, "count", start, end, 1)
    made.again()  # what was committed after the books were written is read once more
    made.upkeep()
    with Query(made.path) as query:
        assert query.series(STREAM, "count", start, end, 1) == before
        rows = query.db.execute("SELECT sum(n), min(seq) FROM rollup").fetchone()
    assert rows == (3600, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5 * MINUTE_NS), st.integers(1, 9)), min_size=1, max_size=20), st.randoms())
def test_minutes_hold_every_reading_once(segments: list[tuple[int, int]], dice: random.Random) -> None:
    schema = Schema((Channel("a", "h"), Channel("b", "d"), Channel("c", "f")))
    n = sum(count for _, count in segments)
    values = [(dice.randint(-99, 99), dice.choice([math.nan, math.inf, 0.5, -2.25]), float(i)) for i in range(n)]
    data = b"".join(struct.pack(schema.format, *value) for value in values)
    sample = Sample(
        "s", schema, array("q", [at for at, _ in segments]), array("q", [0] * len(segments)),
        array("H", [count for _, count in segments]), data,
    )  # fmt: skip
    whole = Minute(0)
    for minute, found in minutes(100, sample):
        assert 0 <= minute <= 5
        whole.merge(unpack(found.seq, found.n, found.pack()))
    assert whole.n == n
    finite = [b for _, b, _ in values if math.isfinite(b)]
    a, b, c = whole.cells
    assert (a.n, a.low, a.high, a.total) == (
        n,
        min(v[0] for v in values),
        max(v[0] for v in values),
        sum(v[0] for v in values),
    )
    assert b.n == len(finite)
    assert (b.low, b.high) == (min(finite, default=math.inf), max(finite, default=-math.inf))
    assert c.total == n * (n - 1) / 2


def test_a_column_is_cut_out_of_the_records() -> None:
    data = b"".join(struct.pack("<If", i, i / 2) for i in range(7))
    assert list(column(data, 8, 0, "I")) == list(range(7))
    assert list(column(data, 8, 4, "f")) == [i / 2 for i in range(7)]
    assert cells(SCHEMA, b"") == cells(SCHEMA, data[:0])


# --- exports -----------------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench(tmp_path)
    made.readings(STREAM, 3)
    made.upkeep()
    assert run(tmp_path, "export", "--stream", STREAM) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seq,time,boot,mono_ns,count,half"
    assert lines[3].startswith("2,2026-12-01T") or lines[3].startswith("2,2026-1")
    assert lines[3].endswith(",2,1.0")
    assert len(lines) == 4


def test_json_lines_of_events_and_of_a_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench(tmp_path)
    for i in range(4):
        stamp = {"boot": made.times.boot, "mono_ns": made.times.mono, "wall_ns": None, "uncertainty_ns": 0}
        made.row("events", json.dumps({"name": f"event-{i}", "stamp": stamp}).encode())
        made.times.wait(3600 * SECOND)
    made.upkeep()
    out = tmp_path / "events.jsonl"
    start = export.iso(made.times.wall - 3 * 3600 * SECOND - 1000)
    assert run(tmp_path, "export", "-s", "events", "--from", start, "-f", "jsonl", "-o", str(out)) == OK
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["event-1", "event-2", "event-3"]
    assert rows[0]["time"][:13] == start[:13] or rows[0]["time"] > start
    assert "3 rows of events" in capsys.readouterr().err


def test_gaps_and_other_channels(tmp_path: Path) -> None:
    made = bench(tmp_path)
    for _ in range(3):
        made.readings(STREAM, 5)
    made.tables.upkeep.mend(2)
    with Query(made.path) as query:
        assert [row[0] for row in export.Export(query, STREAM, None, None).rows()] == [*range(5), *range(10, 15)]
    other = Sample(STREAM, Schema((Channel("x", "f"),)), array("q", [1]), array("q", [1]), array("H", [1]), bytes(4))
    made.commit(STREAM, other)
    with Query(made.path) as query, pytest.raises(StoreError, match="other channels from reading 15 on"):
        list(export.Export(query, STREAM, None, None).rows())


def test_parquet_names_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench(tmp_path)
    made.readings(STREAM, 3)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "x.parquet"
    assert run(tmp_path, "export", "-s", STREAM, "-f", "parquet", "-o", str(out)) == FAILED
    assert "octogate[export]" in capsys.readouterr().err
    assert list(tmp_path.glob("x.parquet*")) == [], "no half file stays"
    assert run(tmp_path, "export", "-s", STREAM, "-f", "parquet") == MISUSED


def read_back(path: Path) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """Column -> type, and the rows: by DuckDB, which has a Parquet reader of its own."""
    with duckdb.connect() as db:
        kinds = {
            name: kind
            for name, kind, *_ in db.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)]).fetchall()
        }
        return kinds, db.execute("SELECT * FROM read_parquet(?) ORDER BY seq", [str(path)]).fetchall()


def test_parquet_is_read_back_by_another_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CHUNK", 100)  # several row groups
    made, out = bench(tmp_path), tmp_path / "x.parquet"
    schema = Schema(tuple(Channel(f"c{i}", code) for i, code in enumerate(CHANNEL_TYPES)))
    made_up = random.Random(2)
    sent = []
    for _ in range(250):
        whole = [made_up.getrandbits(8 * struct.calcsize(code)) for code in "BBHHIIQQ"]
        signed = [v - (1 << 8 * struct.calcsize(c)) if c.islower() and v >> (8 * struct.calcsize(c) - 1) else v
                  for v, c in zip(whole, "bBhHiIqQ", strict=True)]  # fmt: skip
        sent.append((*signed, made_up.randrange(1 << 20) / 64, made_up.gauss(0, 1e9)))
    data = b"".join(struct.pack(schema.format, *row) for row in sent)
    made.commit(STREAM, Sample(STREAM, schema, array("q", [7]), array("q", [1000]), array("H", [250]), data))
    assert run(tmp_path, "export", "-s", STREAM, "-f", "parquet", "-o", str(out)) == OK
    kinds, rows = read_back(out)
    assert [row[0] for row in rows] == list(range(250))
    assert [row[3] for row in rows] == [7 + 1000 * i for i in range(250)]
    assert [row[4:] for row in rows] == sent
    assert list(kinds.values())[4:] == [
        "TINYINT", "UTINYINT", "SMALLINT", "USMALLINT", "INTEGER", "UINTEGER", "BIGINT", "UBIGINT", "FLOAT", "DOUBLE",
    ]  # fmt: skip


def test_events_in_parquet_are_json(tmp_path: Path) -> None:
    made, out = bench(tmp_path), tmp_path / "x.parquet"
    made.tables.commit({}, {("events", BatchKind.EVENTS): [b'{"name": "a", "n": null}', b'{"name": "b"}']}, {})
    assert run(tmp_path, "export", "-s", "events", "-f", "parquet", "-o", str(out)) == OK
    kinds, rows = read_back(out)
    assert kinds["value"] == "VARCHAR"
    assert [json.loads(row[-1]) for row in rows] == [{"name": "a", "n": None}, {"name": "b"}]


def test_export_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path)
    assert run(tmp_path, "export", "-s", "nothing") == FAILED
    assert "no stream 'nothing'" in capsys.readouterr().err
    assert run(tmp_path, "export", "-s", "nothing", "--from", "yesterday") == MISUSED
    assert "'yesterday' is not a time" in capsys.readouterr().err


def test_progress_is_told_after_two_seconds() -> None:
    said: list[int] = []
    now = iter(i / 1000 for i in range(10_000))
    rows = export.with_progress(iter([(i,) for i in range(5_000_000 // 1000)]), said.append, lambda: next(now))
    assert len(list(rows)) == 5000
    assert said == []
    later = iter([0.0, 1.0, 2.5, 2.5, 3.0, 9.0, 9.0, 9.1])  # due at 2.0, at 4.5 and at 11.0
    assert len(list(export.with_progress(iter([(i,) for i in range(5000)]), said.append, lambda: next(later)))) == 5000
    assert said == [2000, 4000]


# --- the ledger --------------------------------------------------------------------------------------------------


def test_the_ledger_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench(tmp_path)
    for _ in range(3):
        made.readings(STREAM, 5)
    made.deliver(STREAM, 5)
    made.upkeep()
    made.tables.upkeep.mend(2)
    assert run(tmp_path, "ledger") == OK
    text = capsys.readouterr().out
    assert "nothing is missing" in text
    assert "5 to 9 (5): damaged" in text
    assert run(tmp_path, "ledger", "--json", "--check") == OK
    answer = json.loads(capsys.readouterr().out)
    assert answer["whole"] is True
    assert answer["streams"][0] == {
        "stream": STREAM, "kind": "samples", "taken": 15, "oldest": 0, "delivered": {"main": 5},
        "dropped": {"damaged": 5}, "missing": [], "unreadable": 0,
    }  # fmt: skip
    made.tables._writer.execute("DELETE FROM dropped")
    assert run(tmp_path, "ledger") == FAILED
    assert "5 to 9" in capsys.readouterr().out


def test_a_spool_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = bench(tmp_path)
    made.tables._writer.execute("PRAGMA user_version = 1")
    assert run(tmp_path, "ledger") == FAILED
    assert "start the gateway once" in capsys.readouterr().err


def test_nothing_is_written_by_looking(tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.readings(STREAM, 5)
    before = made.path.stat().st_mtime_ns, made.path.with_name("spool.db-wal").stat().st_mtime_ns
    assert run(tmp_path, "ledger", "--json") == OK
    assert run(tmp_path, "export", "-s", STREAM, "-o", str(tmp_path / "x.csv")) == OK
    assert (made.path.stat().st_mtime_ns, made.path.with_name("spool.db-wal").stat().st_mtime_ns) == before
    assert isinstance(made.times, Times)
    assert made.tables.state.kinds[STREAM] is BatchKind.SAMPLES
