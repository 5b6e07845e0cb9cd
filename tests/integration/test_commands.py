"""Commands to the real daemon, over a real broker and by its socket: tried, reverted, resumed, killed in between."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.command import Have, Reported
from gateway.contract import SourceState
from gateway.errors import ControlError, UplinkError
from sdk.bundle import generate_key
from sdk.client import Gateway, over_socket
from sdk.ingest import Ingest
from tests.integration.harness import MODELS, ROOT, Daemon, config, daemon, node, until
from tests.integration.sites import GATEWAY, RECEIVER, Raw, site

KINDS = pytest.mark.parametrize("kind", ["iotcore", "mosquitto"])  # the latter by TLS, with an access list


async def well(gateway: Daemon) -> None:
    await gateway.until(lambda s: s.uplink.state == "up" and s.sources[0].state is SourceState.OK, "all is well")


def audited(db: Path) -> list[dict[str, Any]]:
    """The rows of the audit stream at the consumer, in order."""
    with contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute(
            "SELECT r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = 'audit' ORDER BY r.seq"
        )
        return [json.loads(value) for (value,) in rows]


@pytest.mark.timeout(120)
@KINDS
def test_a_good_config_stays_and_what_breaks_health_is_reverted_by_itself(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        with site(kind, tmp_path) as at:
            text = config(tmp_path, more=at.table)
            async with (
                Ingest.open(db, account=at.receiver),
                node(tmp_path, rate=100),
                daemon(tmp_path, text) as gateway,
            ):
                await well(gateway)
                async with at.remote() as remote:
                    good = text + "[store]\ncommit_ms = 30\n"
                    outcome = await remote.set_config(good, health_s=1.5, base=(await remote.config()).digest)
                    assert outcome.state == "good" and gateway.config.read_text() == good
                    # a source that was ok is lost
                    lost = await remote.set_config(good.replace(str(tmp_path / "tty"), "/dev/null"), health_s=1)
                    assert (lost.state, lost.digest) == ("reverted", outcome.digest)
                    assert "source 'press' was ok" in lost.reason
                    # no way back to the broker: nobody can be asked, it reverts all the same
                    cut = await remote.set_config(good.replace(f"port = {at.port}", "port = 9"), health_s=1)
                    assert cut.state == "reverted" and "the uplink was up" in cut.reason
                    assert gateway.config.read_text() == good
                    await well(gateway)
                    for bad, why in (
                        (good + "colour = 1\n", "colour"),
                        (good.replace('"test"', '"other"'), "gateway.id"),
                        (good.partition("[uplink]")[0], "without an uplink"),
                    ):
                        with pytest.raises(ControlError, match=why):
                            await remote.set_config(bad)
                    with pytest.raises(ControlError, match=r"not .* any more"):
                        await remote.set_config(good + "# x\n", base="0" * 64)
                await until(lambda: len([r for r in audited(db) if r["name"].startswith("config.")]) == 3, "audited")
        rows = audited(db)
        assert [r["name"] for r in rows if r["name"].startswith("config.")] == [
            "config.good", "config.reverted", "config.reverted",
        ]  # fmt: skip
        for row in rows:  # whatever was done stands there before and after it
            if row["name"] == "command.done":
                i = rows.index(row)
                assert any(r["name"] == "command.received" and r["detail"]["id"] == row["detail"]["id"]
                           for r in rows[:i])  # fmt: skip

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@KINDS
def test_a_bundle_is_resumed_after_kills_and_then_runs(tmp_path: Path, kind: str) -> None:
    bundle = MODELS / "detect" / "detect.octo"
    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()

    async def scenario() -> None:
        with site(kind, tmp_path) as at:
            text = config(tmp_path, more=at.table)
            async with node(tmp_path, rate=100), daemon(tmp_path, text) as gateway:
                await well(gateway)
                halfway = asyncio.Event()
                size = bundle.stat().st_size

                def progress(have: int, of: int) -> None:
                    if have > of // 2:
                        halfway.set()

                async with at.remote() as remote, asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(remote.put_bundle(bundle, progress), name="send")
                    await halfway.wait()
                    await gateway.kill()  # and the client gives up too
                    sending.cancel()
                await gateway.start()
                await well(gateway)
                async with at.remote() as remote:
                    had = await remote.ask("bundle.put", Have, sha256=sha256, size=size)
                    assert size // 2 < had.have < size and not had.path
                    started = time.monotonic()
                    path = await remote.put_bundle(bundle)
                    took = time.monotonic() - started
                    print(f"{(size - had.have) / took / 1e6:.1f} MB/s of bundle over MQTT")
                    assert Path(path).read_bytes() == bundle.read_bytes()
                    more = f'[[model]]\nname = "detect"\nbundle = "{path}"\n'
                    outcome = await remote.set_config(text + more, health_s=8)
                    assert outcome.state == "good", outcome
                    assert (await remote.status()).models[0].state == "ready"
                    with pytest.raises(ControlError, match="in use"):
                        await remote.drop_bundle(sha256)

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@KINDS
def test_replayed_late_and_garbage(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        with site(kind, tmp_path) as at:
            async with (
                Ingest.open(db, account=at.receiver),
                node(tmp_path, rate=100),
                daemon(tmp_path, config(tmp_path, more=at.table)) as gateway,
            ):
                await well(gateway)
                before = gateway.config.read_bytes()
                raw = await asyncio.to_thread(Raw, at)
                restart = b'{"op": "restart", "deadline": 60}'
                for _ in range(3):
                    await asyncio.to_thread(raw.send, "once", restart)
                await until(lambda: "starting again" in gateway.log.read_text(), "it restarts")
                await well(gateway)
                await gateway.kill()
                await asyncio.to_thread(raw.send, "kept", restart, True)
                await gateway.start()
                await well(gateway)
                await until(lambda: any(a.id == "kept" and not a.ok for a in raw.answers), "a retained one is refused")
                heard = len(raw.answers)
                await asyncio.to_thread(raw.send, "once", restart)
                await until(lambda: len(raw.answers) > heard, "the answer comes again")
                assert {answer.ok for answer in raw.answers if answer.id == "once"} == {True}
                for i, payload in enumerate([b"", b"\0" * 500, b"[]", b'{"op": "restart"}', b"{" * 5000]):
                    await asyncio.to_thread(raw.send, f"g{i}", payload)
                await asyncio.to_thread(raw.send, "a/b", restart)
                await asyncio.to_thread(raw.send, "late", b'{"op": "restart", "deadline": 1000000000}')
                await until(lambda: any(a.id == "late" for a in raw.answers), "the late one is answered")
                by_id = {answer.id: answer for answer in raw.answers}
                assert "too late" in by_id["late"].error and not by_id["g1"].ok
                await well(gateway)  # nothing was moved
                assert gateway.config.read_bytes() == before
                await until(lambda: any(r["detail"]["id"] == "late" for r in audited(db)), "audited")
                raw.close()
        assert gateway.log.read_text().count("starting again") == 1
        done = [row["detail"]["id"] for row in audited(db) if row["name"] == "command.done"]
        assert done == ["once"]
        refused = {row["detail"]["id"] for row in audited(db) if row["name"] == "command.refused"}
        assert {"late", "kept", "g1", "g2", "g3", "g4"} <= refused

    asyncio.run(scenario())


@pytest.mark.timeout(120)
@KINDS
def test_signed_commands_snapshot_diagnostics_and_the_socket(tmp_path: Path, kind: str) -> None:
    generate_key(tmp_path / "host.pem", tmp_path / "host.pub")

    async def scenario() -> None:
        (tmp_path / "pictures").mkdir()
        (tmp_path / "pictures" / "1.jpg").write_bytes(b"\xff\xd8 a picture")
        camera = f'[[source]]\nkind = "pictures"\nname = "cam"\nfolder = "{tmp_path / "pictures"}"\n'
        with site(kind, tmp_path) as at:
            text = config(tmp_path, more=at.table + 'command_keys = ["host.pub"]\n' + camera)
            async with node(tmp_path, rate=100), daemon(tmp_path, text) as gateway:
                await well(gateway)
                async with at.remote() as stranger:
                    with pytest.raises(ControlError, match="not signed"):
                        await stranger.status()
                await gateway.until(lambda s: all(source.frames for source in s.sources), "a picture was taken")
                async with at.remote(tmp_path / "host.pem") as remote:
                    blob, picture = await remote.snapshot("cam")
                    assert picture == b"\xff\xd8 a picture" and blob.media == "image/jpeg"
                    assert (await remote.diagnostics())[:2] == b"\x1f\x8b"
                    await remote.restart()
                async with over_socket(tmp_path / "data" / "control.sock") as local:
                    assert (await local.config()).text == text
                    outcome = await local.set_config(text + "[store]\ncommit_ms = 30\n", health_s=1)
                    assert outcome.state == "good"
                assert gateway.process is not None
                maps = Path(f"/proc/{gateway.process.pid}/maps").read_text()
                assert "cryptography" not in maps  # verified in a child

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_who_is_no_operator_commands_nothing(tmp_path: Path) -> None:
    restart = b'{"op": "restart", "deadline": 60}'

    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        with site("mosquitto", tmp_path) as at:
            async with Ingest.open(db, account=at.receiver), node(tmp_path, rate=100):
                async with daemon(tmp_path, config(tmp_path, more=at.table)) as gateway:
                    await well(gateway)
                    for user in (GATEWAY, RECEIVER):
                        stranger = await asyncio.to_thread(Raw, at, user)
                        await asyncio.to_thread(stranger.send, f"by-{user}", restart)
                        stranger.close()
                    async with at.remote() as remote:
                        await remote.status()
                    await until(lambda: any(row["name"] == "command.done" for row in audited(db)), "audited")
                    assert not [row for row in audited(db) if row["detail"]["id"].startswith("by-")]

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_sigterm_while_it_restarts_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "full").mkdir()
        made = Daemon(tmp_path, LOCAL)
        for _ in range(5):
            await made.start()
            await made.until(lambda s: True, "it runs")
            async with over_socket(tmp_path / "data" / "control.sock") as remote:
                await remote.restart()
            assert await made.end() in (0, -15)  # -15: before the new one could listen to it

    asyncio.run(scenario())


# --- SIGKILL at each step ------------------------------------------------------------------------------------------


class CutShort(Daemon):
    """A daemon that is killed before one step of the state machine."""

    step = 0

    async def start(self) -> None:
        argv = ["-m", "tests.integration.cut_short", str(self.step), str(self.folder / "steps")]
        argv += ["run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(sys.executable, *argv, stderr=log, cwd=ROOT)


LOCAL = """
[gateway]
id = "test"
data_dir = "data"
[[source]]
kind = "pictures"
name = "cam"
folder = "full"
"""


async def outcome_of(remote: Gateway, text: str) -> Reported | None:
    with contextlib.suppress(ControlError, UplinkError):
        return await remote.set_config(text, health_s=1)
    return None


async def cut(folder: Path, new: str, step: int) -> tuple[bool, Reported]:
    """Set a config, killed before `step`; whether it was, and how it ends when the daemon is started again."""
    for name in ("full", "empty"):
        (folder / name).mkdir(parents=True)
    (folder / "full" / "1.jpg").write_bytes(b"\xff\xd8 a picture")
    made = CutShort(folder, LOCAL)
    made.step = step
    await made.start()
    assert made.process is not None
    await made.until(lambda s: s.sources[0].state is SourceState.OK, "the camera works")
    async with over_socket(folder / "data" / "control.sock") as remote, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(outcome_of(remote, new), name="ask")
        ended = tasks.create_task(made.process.wait(), name="ended")
        await asyncio.wait([asking, ended], return_when=asyncio.FIRST_COMPLETED)
        killed = ended.done()
        if not killed:
            await made.end()
        asking.cancel()
    text = made.config.read_text()
    assert text in (LOCAL, new)  # whole, whenever the power goes
    again = Daemon(folder, text)
    await again.start()
    try:
        await again.until(lambda s: s.sources[0].state is SourceState.OK or "empty" in new, "it runs")
        async with over_socket(folder / "data" / "control.sock") as remote:
            async with asyncio.timeout(30):
                while (seen := await remote.config()).reported.state not in ("good", "reverted"):
                    await asyncio.sleep(0.1)
            await again.until(lambda s: s.sources[0].state is SourceState.OK, "it is well in the end")
            assert seen.text == again.config.read_text()
            return killed, seen.reported
    finally:
        await again.end()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("good", [True, False])
def test_sigkill_before_each_step_ends_in_a_good_state(tmp_path: Path, good: bool) -> None:
    new = LOCAL + "fps = 5.0\n" if good else LOCAL.replace('"full"', '"empty"')

    async def scenario() -> None:
        step, ends = 0, set()
        while True:
            step += 1
            killed, reported = await cut(tmp_path / str(step), new, step)
            if not killed:
                break
            ends.add((reported.state, bool(reported.desired)))
        print(f"killed before each of {step - 1} steps; ends: {sorted(ends)}")
        assert step > (15 if good else 9)
        # before it was accepted nothing has happened; after that it is decided
        assert ends == {("good", False), ("good" if good else "reverted", True)}

    asyncio.run(scenario())
