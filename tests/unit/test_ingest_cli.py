"""`octogate-ingest`: the ledger it prints, and how it explains misuse."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sdk.ingest.__main__ import main
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import Table
from tests.unit.ingest_samples import gap, readings


def take(path: Path, batches: Sequence[Arrived]) -> None:
    async def within() -> None:
        sink = SqliteSink(path)
        await Table(sink).take(batches, Counts())
        await sink.close()

    asyncio.run(within())


def test_the_ledger_says_what_is_there_dropped_and_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "db"

    take(path, [readings(0, 10), gap(10, 5, "disk full"), readings(15, 5)])
    assert main(["ledger", "--db", str(path), "--count"]) == 0
    said = capsys.readouterr().out
    assert "dropped 10 to 14: disk full" in said and "whole" in said
    assert main(["ledger", "--db", str(path), "--json"]) == 0
    (stream,) = json.loads(capsys.readouterr().out)["streams"]
    assert (stream["committed"], stream["dropped"], stream["missing"]) == (15, 5, 0)

    take(path, [readings(30, 5)])  # behind a hole
    assert main(["ledger", "--db", str(path)]) == 1
    assert "missing 20 to 29: not yet here" in capsys.readouterr().out
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM parked")
        db.execute("DELETE FROM reading WHERE seq = 3")
        db.commit()
    assert main(["ledger", "--db", str(path)]) == 0
    assert main(["ledger", "--db", str(path), "--count"]) == 1  # the tables are what counts
    assert "the tables hold 14 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name one database"),
        (["--db", "x", "--postgres", "postgresql://h/d"], "name one database"),
        (["--postgres", "postgresql://u:hunter2@h/d"], "PGPASSFILE"),
        (["--postgres", "postgresql://u@h/d?password=hunter2"], "PGPASSFILE"),
        (["--db", "x", "--share", "a/b"], "not a name"),
        (["--db", "x", "--cert-file", "c"], "go together"),
        (["--db", "x", "--prefix", "/octo/#"], "beginning of a topic"),
        (["--db", "x", "--port", "0"], "no port"),
        (["ledger"], "name one database"),
    ],
)
def test_misuse_is_explained(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said and "hunter2" not in said


def test_a_missing_database_or_file_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--db", str(tmp_path / "none.db")]) == 1
    assert main(["--db", str(tmp_path / "d" / "none.db")]) == 1
    assert main(["--db", str(tmp_path / "db"), "--ca-file", str(tmp_path / "none.pem")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
