"""octogate plan: every difference is named, what it costs is told, its exit status means something."""

from __future__ import annotations

import asyncio
import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from gateway import diagnostics
from gateway.__main__ import main
from gateway.clock import Clock
from gateway.command import Change
from gateway.config import load
from gateway.contract import BatchKind
from gateway.plan import Plan, plan, plan_text
from gateway.store.spool import Spool
from tests.unit.bundles import make
from tests.unit.samples import counted
from tests.unit.status_samples import status

BASE = """
[gateway]
id = "line-1"
data_dir = "data"
[store]
max_mib = 64
[uplink]
host = "broker"
[uplink.live]
[[source]]
kind = "node"
name = "press"
port = "/dev/a"
[trust]
allow_unsigned = true
[[model]]
name = "state"
bundle = "state.octo"
[[pipeline]]
name = "press-state"
source = "press"
stream = "power"
model = "state"
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def planned(folder: Path, old: str, new: str) -> Plan:
    if not (folder / "state.octo").exists():
        make(folder / "state.octo")
    return plan(load(write(folder, "old.toml", old)), load(write(folder, "new.toml", new)))


def test_the_same_is_no_change(tmp_path: Path) -> None:
    same = planned(tmp_path, BASE, "# a comment\n" + BASE)
    assert (same.changes, same.appear, same.go, same.warnings) == ((), (), (), ())
    assert plan_text(same).startswith("no change\n") and "nothing is measured yet" in plan_text(same)


def test_every_difference_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    new = (
        BASE.replace('port = "/dev/a"', 'port = "/dev/b"\nbaud = 9600')
        .replace("[uplink.live]", "[uplink.live]\nmin_interval_ms = 500")
        .replace('name = "press-state"', 'name = "press-other"')
        + '[[source]]\nkind = "pictures"\nname = "cam"\nfolder = "pictures"\n[panel]\n'
        + '[[model]]\nname = "second"\nbundle = "state.octo"\n'
    )
    made = planned(tmp_path, BASE, new)
    assert set(made.changes) == {
        Change("changed", "uplink", "main", "live (min_interval_ms 1000 -> 500)"),
        Change("added", "panel", "", ""),
        Change("changed", "source", "press", 'port "/dev/a" -> "/dev/b", baud 115200 -> 9600'),
        Change("added", "source", "cam", "pictures"),
        Change("added", "model", "second", ""),
        Change("added", "pipeline", "press-other", ""),
        Change("removed", "pipeline", "press-state", ""),
    }
    assert made.appear == ("/dev/b (press)", f"{tmp_path}/pictures (cam)") and made.go == ("/dev/a (press)",)
    assert made.memory.after == 2 * made.memory.before > 0
    assert made.memory.models.keys() == {"state", "second"}
    assert made.warnings == ()
    text = plan_text(made)
    assert "  + source cam: pictures\n" in text and "  - pipeline press-state\n" in text
    assert "untouched" in made.backlog


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ('data_dir = "data"', 'data_dir = "other"', "a new spool is made"),
        ('id = "line-1"', 'id = "line-2"', "another gateway, 'line-2'"),
        ('[uplink]\nhost = "broker"\n[uplink.live]\n', "", "nothing is delivered there any more"),
        ('host = "broker"', 'host = "elsewhere"', "another broker"),
    ],
)
def test_what_deserves_a_second_thought(tmp_path: Path, old: str, new: str, warning: str) -> None:
    made = planned(tmp_path, BASE, BASE.replace(old, new))
    assert len(made.warnings) == 1 and warning in made.warnings[0]


def test_disk_and_wear_are_measured_on_the_spool(tmp_path: Path) -> None:
    async def fill() -> None:
        path = tmp_path / "data" / "spool.db"
        async with Spool.open(path, Clock(), commit_s=0.001, max_bytes=64 << 20, notify=lambda *_: None) as spool:
            for i in range(50):  # 10 readings each 5 ms: 20 batches a second
                await spool.append_samples([counted("press/power", i * 10, 10)], None)
                row = json.dumps({"stamp": {"mono_ns": i * 500_000_000}}).encode()
                await spool.append_row("press-state", BatchKind.INFERENCES, row)
            spool.confirm({"press/power": 400})

    asyncio.run(fill())
    made = planned(tmp_path, BASE, BASE.replace('name = "press-state"', 'name = "other"'))
    disk = made.disk
    batches = 20 * 86_400
    assert disk.seconds == pytest.approx(49 * 0.05, abs=0.1)
    assert 80 * batches < disk.per_day[1] < 300 * batches  # an encoded batch of 10 readings
    assert disk.per_day[0] - disk.per_day[1] == pytest.approx(2 * 86_400 * 120, rel=0.5)  # the pipeline that goes
    assert disk.wear_per_day[1] == pytest.approx(batches * 16_384, rel=0.1)
    assert disk.days[1] == pytest.approx((64 << 20) / disk.per_day[1], abs=0.1)
    assert disk.unknown == ("other",)
    # nothing is confirmed on disk before the spool trims or closes: it closed
    assert made.backlog.startswith(f"untouched: {100 + 50} readings")
    assert "bridges" in plan_text(made)
    small = planned(tmp_path, BASE, BASE.replace("max_mib = 64", "max_mib = 1"))
    assert small.disk.days[1] is not None and small.disk.days[0] is not None
    assert small.disk.days[1] < small.disk.days[0]


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "state.octo")
    old = str(write(tmp_path, "old.toml", BASE))

    def run(text: str, *more: str) -> int:
        return main(["plan", str(write(tmp_path, "new.toml", text)), "--config", old, *more])

    assert run(BASE) == 0
    assert run(BASE.replace("/dev/a", "/dev/b")) == 3
    assert run(BASE.replace("line-1", "line-2")) == 4
    assert "WARNING  gateway.id" in capsys.readouterr().out
    assert run(BASE + "colour = 1\n") == 2
    assert run(BASE.replace("/dev/a", "/dev/b"), "--json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown["changes"][0]["name"] == "press" and shown["appear"] == ["/dev/b (press)"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "spool.db").write_bytes(b"no database" * 100)
    assert run(BASE) == 1


# --- diagnostics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('password = "hunter2"\n', "hunter2"),
        ("  api_token='hunter2'", "hunter2"),
        ('"client.secret" = "hunter2"', "hunter2"),
        ('url = "rtsp://admin:hunter2@10.0.0.1/live"', "hunter2"),
        ('auth = { user = "x", password = "hunter2 and more" }', "more"),
        ('password = """\nhunter2\n"""', "hunter2"),
        ('password = "hun\\"ter2"', "ter2"),
        ("12:00 login failed: token=hunter2", "hunter2"),
        ("cannot open rtsp://admin:hunter2@cam/1: refused", "hunter2"),
    ],
)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    assert secret not in diagnostics.redacted(text) and "***" in diagnostics.redacted(text)


def test_what_is_no_secret_stays() -> None:
    text = BASE + 'password_file = "/etc/octogate/password"\nkeys = ["a.pub"]\n'
    assert diagnostics.redacted(text) == text


def test_the_diagnostics_hold_what_is_needed(tmp_path: Path) -> None:
    log = [f"line {i} token=abc" for i in range(3)]
    packed = diagnostics.pack(status(), BASE + 'password = "hunter2"\n', log, {"reported": {"x": 1}}, tmp_path)
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        members = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            members[member.name.partition("/")[2]] = file.read()
    assert members.keys() == {
        "status.json", "events.jsonl", "config.toml", "log.txt", "machine.json", "reported.json",
    }  # fmt: skip
    assert b"hunter2" not in packed and b"hunter2" not in members["config.toml"]
    assert json.loads(members["status.json"])["gateway"] == status().gateway
    assert json.loads(members["machine.json"])["packages"]["msgspec"]
