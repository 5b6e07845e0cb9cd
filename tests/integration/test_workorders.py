"""Paper forms through the daemon and a real worker: one record a sheet in the spool, in status and at the receiver."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from gateway.__main__ import main
from models.workorder import fetch
from sdk.ingest import Ingest
from tests.integration.harness import broker, daemon, free_port, until, uplink

EXAMPLES = fetch.FOLDER / "examples"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recogniser, fetched and packed, signed by a key of this test."""
    folder = tmp_path_factory.mktemp("reader")
    fetch.build(folder / "workorder.octo", folder / "key")
    return folder


def rows(db: Path, sql: str) -> list[tuple[str, ...]]:
    if not db.exists():
        return []
    with sqlite3.connect(db) as connection:
        return connection.execute(sql).fetchall()


def config(folder: Path, reader: Path, port: int) -> str:
    return f"""
[gateway]
id = "test"
data_dir = "data"
[trust]
keys = ["{reader / "key.pub.pem"}"]
[[source]]
kind = "pictures"
name = "order-desk"
folder = "{EXAMPLES}"
fps = 0.5
[[model]]
name = "workorder"
bundle = "{reader / "workorder.octo"}"
deadline_ms = 60000
[[pipeline]]
name = "work-orders"
source = "order-desk"
model = "workorder"
form = "{fetch.FOLDER / "order.toml"}"
{uplink(port)}
"""


@pytest.mark.timeout(240)
def test_forms_become_records_and_doubtful_ones_events(tmp_path: Path, reader: Path) -> None:
    db = tmp_path / "consumer.db"
    select = "select label, result from v_inference where stream = 'work-orders'"
    events = "select message, detail from v_event where name = 'form.review'"

    async def scenario() -> None:
        port = free_port()
        with broker(port):
            async with Ingest.open(db, port=port), daemon(tmp_path, config(tmp_path, reader, port)) as gateway:
                await until(
                    lambda: {label for label, _ in rows(db, select)} == {"accepted", "review"} and bool(rows(db, events)),
                    "one form accepted and one to be reviewed",
                    180,
                )  # fmt: skip
                status = await gateway.status()
                assert [p.name for p in status.pipelines] == ["work-orders"]
                newest = status.pipelines[0].newest
                assert newest is not None
                assert newest.result.text.startswith(f"{newest.result.label}: order WO-")
                assert await gateway.end() == 0

    asyncio.run(scenario())
    read = {}
    for _, result in rows(db, select):
        fields = {field["name"]: field for field in json.loads(result)["fields"]}
        read[fields["order"]["text"]] = fields
    first, second = read["WO-145947"], read["WO-607641"]
    assert (first["start"]["value"], first["end"]["value"], first["date"]["value"]) == ("16:00", "18:52", "2026-09-13")
    assert (first["machine"]["value"], first["weight"]["value"], first["first-piece"]["value"]) == (
        "Lathe 1",
        "204.95",
        "yes",
    )
    assert not any("doubt" in field for field in first.values())
    assert second["end"]["doubt"] == "end is not after start"
    message, detail = rows(db, events)[0]
    assert "end is not after start" in message
    kept = json.loads(detail)
    assert (tmp_path / "data" / "pictures" / kept["picture"]).read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.timeout(120)
def test_at_a_desk(reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, bundle = str(fetch.FOLDER / "order.toml"), str(reader / "workorder.octo")
    command = ["form", "read", form, "--model", bundle, "--key", str(reader / "key.pub.pem")]
    assert main([*command, str(EXAMPLES / "1-order.jpg")]) == 0
    assert "WO-145947" in capsys.readouterr().out
    assert main([*command, "--json", *map(str, sorted(EXAMPLES.iterdir()))]) == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["result"]["label"] for line in said] == ["accepted", "review", "accepted"]


@pytest.mark.timeout(120)
def test_a_template_from_a_photo_of_the_blank_form(
    reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    from gateway import forms
    from models.workorder import data

    blank, made = tmp_path / "blank.png", tmp_path / "new.toml"
    cv2.imwrite(str(blank), data.blank(data.template()))
    look = tmp_path / "look.png"
    command = ["form", "new", str(blank), str(made), "--page", "210x148", "--look", str(look)]
    assert main([*command, "--model", str(reader / "workorder.octo")]) == 0
    names = {field.name: field.kind for field in forms.load(made).field}
    wanted = {
        "order-no": "code",
        "quantity-ordered": "number",
        "date": "date",
        "start": "time",
        "first-piece-checked": "tick",
    }
    assert wanted.items() <= names.items()
    assert look.read_bytes()[:4] == b"\x89PNG"
    assert main(command) == 1  # it is there already
    assert main(["form", "print", str(made)]) == 0
    assert made.with_suffix(".pdf").read_bytes().startswith(b"%PDF-1.4")
    assert "13 fields" in capsys.readouterr().out
