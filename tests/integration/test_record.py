"""A real node recorded by a real daemon, its cable pulled meanwhile, and played back: the same spool each time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import zipfile
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import SourceState, Stamp
from gateway.recording import FRAME, GONE, HEARD, SAID, FrameHead, Reading, frame_body
from gateway.store.columns import Codec, expand
from sdk.simulated_bus import SDM120, Bus, floats
from tests.integration.harness import MODELS, ROOT, Daemon, config, daemon, node, until
from tests.integration.test_faults import STATE_MODEL, inferences, machine, readings
from tests.integration.test_sources import HEAD, MODBUS
from tests.unit.recordings import BEGIN_NS, at, meta, write

RULE = """
[[rule]]
kind = "threshold"
name = "running"
stream = "press/power"
channel = "current"
above = 2.0
[[rule]]
kind = "class"
name = "working"
pipeline = "press-state"
labels = ["running"]
"""


async def octogate(*args: object, ends: int = 0) -> str:
    """Run a command to its end; its standard output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *map(str, args), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == ends, error.decode()
    return out.decode()


async def recording(stack: AsyncExitStack, made: Daemon, out: Path) -> asyncio.subprocess.Process:
    """A started `octogate record`, ended at the latest with the stack; it is under way when this returns."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "record", "--config", str(made.config), "--out", str(out)),
        cwd=ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip

    async def end() -> None:
        if process.returncode is None:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    await until(lambda: out.exists() and out.stat().st_size > 500, "bytes in the recording")
    return process


def rows(spool: Path, stream: str) -> list[tuple[int, tuple[float, ...]]]:
    """(monotonic ns, values) of every reading."""
    codec = Codec()
    with closing(sqlite3.connect(spool)) as db:
        query = "SELECT blob FROM batch b JOIN stream s ON s.id = b.stream WHERE s.name = ? ORDER BY b.id"
        return [row for (blob,) in db.execute(query, (stream,)) for row in expand(codec.decode_samples(blob)[1])]


async def replayed(made: Daemon, out: Path, data: Path) -> dict[str, Any]:
    args = ("replay", out, "--config", made.config, "--data", data, "--speed", "100", "--json")
    done: dict[str, Any] = json.loads(await octogate(*args))
    return done


@pytest.mark.timeout(180)
def test_two_replays_of_a_shift_with_an_unplug_are_the_same_file(tmp_path: Path) -> None:
    out = tmp_path / "shift.octorec"

    async def story() -> None:
        text = config(tmp_path, more=STATE_MODEL + RULE)
        async with AsyncExitStack() as stack:
            press = await stack.enter_async_context(machine(tmp_path))
            made = await stack.enter_async_context(daemon(tmp_path, text))
            await made.until(lambda s: inferences(s) > 3, "the model is at work")
            record = await recording(stack, made, out)
            begun = readings(await made.status())
            await made.until(lambda s: readings(s) > begun + 3000, "seconds before the unplug")
            press.unplug()
            await made.until(lambda s: s.sources[0].state is SourceState.LOST, "the node is gone")
            press.replug()
            await made.until(lambda s: readings(s) > begun + 7500, "seconds after it")
            record.send_signal(signal.SIGINT)
            assert record.stderr is not None
            said = (await record.stderr.read()).decode()
            assert await record.wait() == 0, said
            assert await made.end() == 0
        first = await replayed(made, out, tmp_path / "one")
        second = await replayed(made, out, tmp_path / "two")
        print(f"\n{first}")
        assert first["whole"] and not first["lost"] and first["streams"]["press/power"] > 7000
        assert first["streams"]["press-state"] > 100
        assert (tmp_path / "one" / "spool.db").read_bytes() == (tmp_path / "two" / "spool.db").read_bytes()
        assert first["digest"] == second["digest"]
        await octogate("diff", tmp_path / "one", tmp_path / "two")
        check_against_the_floor(made.spool, tmp_path / "one" / "spool.db")
        await check_an_edit_is_seen(tmp_path)

    asyncio.run(story())


def check_against_the_floor(floor: Path, replay: Path) -> None:
    """The replay has the readings that the gateway had while it was recorded: the same values, in the same order."""
    was, now = rows(floor, "press/power"), rows(replay, "press/power")
    values = [value for _, value in was]
    played = [value for _, value in now]
    start = len(was) - len(now)
    # up to a chunk of bytes that came after the recording was ended
    begin = next(k for k in range(max(0, start - 2000), start + 1) if values[k : k + len(played)] == played)
    apart = [abs(a[0] - b[0]) for a, b in zip(was[begin:], now, strict=False)]
    print(f"times differ from the floor's by up to {max(apart) / 1e6:.2f} ms")
    assert max(apart) < 500_000_000
    with closing(sqlite3.connect(replay)) as db:
        [events] = db.execute(
            "SELECT count(*) FROM batch b JOIN stream s ON s.id = b.stream WHERE s.name = 'events'"
        ).fetchone()
    assert events >= 2  # lost, and back


async def check_an_edit_is_seen(folder: Path) -> None:
    """Another limit in the config: other events, and `diff` says so."""
    other = folder / "other.toml"
    other.write_text((folder / "gateway.toml").read_text().replace("above = 2.0", "above = 5.5"))
    await octogate("replay", folder / "shift.octorec", "--config", other, "--data", folder / "three")
    found = json.loads(await octogate("diff", folder / "one", folder / "three", "--json", ends=1))
    assert found["events"] > 0 and found["pipelines"][0]["different"] == 0
    assert "running" in found["first_events"][0]["a"] + found["first_events"][0]["b"]


@pytest.mark.timeout(90)
def test_a_daemon_killed_while_it_records_leaves_a_readable_file(tmp_path: Path) -> None:
    out = tmp_path / "cut.octorec"

    async def story() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(node(tmp_path))
            made = await stack.enter_async_context(daemon(tmp_path, config(tmp_path, more="")))
            await made.until(lambda s: s.sources[0].readings > 100, "readings")
            record = await recording(stack, made, out)
            await until(lambda: out.stat().st_size > 4000, "some blocks")
            await made.kill()
            await asyncio.wait_for(record.wait(), 20)
        with Reading(out) as reading:
            kinds = {record.kind for record in reading.records()}
            assert not reading.ended and {HEARD, SAID} <= kinds
        done = await replayed(made, out, tmp_path / "one")
        assert not done["whole"] and done["streams"]["press/count"] > 100
        counted = [value[0] for _, value in rows(tmp_path / "one" / "spool.db", "press/count")]
        assert counted == list(range(int(counted[0]), int(counted[0]) + len(counted)))

    asyncio.run(story())


@pytest.mark.timeout(90)
def test_a_node_recorded_without_a_daemon_is_read_from_its_start(tmp_path: Path) -> None:
    out = tmp_path / "alone.octorec"

    async def story() -> None:
        async with node(tmp_path):
            made = Daemon(tmp_path, config(tmp_path, more=""))
            await octogate("record", "--config", made.config, "--out", out, "--seconds", "4")
        done = await replayed(made, out, tmp_path / "one")
        assert done["whole"]
        counted = [value[0] for _, value in rows(tmp_path / "one" / "spool.db", "press/count")]
        assert counted == list(range(len(counted))) and len(counted) > 400
        with Reading(out) as reading:
            assert [r.body for r in reading.records() if r.kind == GONE] == [b"closed"]
        assert os.stat(out).st_mode & 0o777 == 0o600

    asyncio.run(story())


@pytest.mark.timeout(90)
def test_a_modbus_bus_answers_in_the_replay_as_it_did(tmp_path: Path) -> None:
    out = tmp_path / "bus.octorec"

    async def story() -> None:
        meter = floats(SDM120)
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(Bus(tmp_path / "tty", {1: meter, 2: meter}))
            bus.dead.add(2)
            made = await stack.enter_async_context(daemon(tmp_path, HEAD + MODBUS))
            await made.until(lambda s: s.sources[0].readings > 5, "readings")
            record = await recording(stack, made, out)
            before = (await made.status()).sources[0].readings
            await made.until(lambda s: s.sources[0].readings > before + 40, "more")
            record.send_signal(signal.SIGTERM)
            assert await record.wait() == 0
            assert await made.end() == 0
        first = await replayed(made, out, tmp_path / "one")
        await replayed(made, out, tmp_path / "two")
        assert (tmp_path / "one" / "spool.db").read_bytes() == (tmp_path / "two" / "spool.db").read_bytes()
        with Reading(out) as reading:
            last = [record.mono_ns for record in reading.records()][-1]
            begin = reading.meta.mono_ns
        taken = sum(begin <= mono_ns <= last for mono_ns, _ in rows(made.spool, "bus/meter"))
        print(f"\n{taken} readings on the floor, {first['streams']['bus/meter']} replayed")
        assert abs(first["streams"]["bus/meter"] - taken) <= 2 and taken > 40  # the first and last may be cut in two

    asyncio.run(story())


EYE = f"""
[gateway]
id = "desk"
data_dir = "data"
[trust]
keys = ["{MODELS / "keys" / "octogate-models.pub.pem"}"]
[[source]]
kind = "pictures"
name = "door"
folder = "."
[[model]]
name = "detect"
bundle = "{MODELS / "detect" / "detect.octo"}"
[[pipeline]]
name = "eye"
source = "door"
model = "detect"
[[rule]]
kind = "detection"
name = "person"
pipeline = "eye"
labels = ["person"]
"""


@pytest.mark.timeout(120)
def test_pictures_go_through_the_model_and_are_kept_as_on_the_floor(tmp_path: Path) -> None:
    """A made recording of the bundle's own golden pictures: an astronaut and a cat, by turns."""
    with zipfile.ZipFile(MODELS / "detect" / "detect.octo") as bundle:
        pictures = [bundle.read(f"golden/{name}.jpg") for name in ("1-astronaut", "2-chelsea")]
    about = meta(("door", "pictures"))
    shown = [
        at(
            k / 4,
            FRAME,
            frame_body(FrameHead(k, Stamp(about.boot, BEGIN_NS + k, None, 0), "image/jpeg"), pictures[k % 2]),
        )
        for k in range(8)
    ]
    out = write(tmp_path / "door.octorec", about, shown)
    made = Daemon(tmp_path, EYE)

    async def story() -> None:
        first = await replayed(made, out, tmp_path / "one")
        await replayed(made, out, tmp_path / "two")
        assert first["streams"] == {"eye": 8, "events": 8}

    asyncio.run(story())
    assert (tmp_path / "one" / "spool.db").read_bytes() == (tmp_path / "two" / "spool.db").read_bytes()
    kept = sorted(path.name for path in (tmp_path / "one" / "pictures").iterdir())
    assert len(kept) == 4 and kept == sorted(path.name for path in (tmp_path / "two" / "pictures").iterdir())
