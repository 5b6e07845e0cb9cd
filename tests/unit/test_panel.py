"""The panel's handlers against a control server that stands in for the daemon."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from gateway import control
from gateway.contract import GatewayStatus
from gateway.errors import ControlError, OctogateError
from gateway.panel import daemon, server
from tests.unit import status_samples

JPEG = b"\xff\xd8 not really \xff\xd9"
Client = TestClient[web.Request, web.Application]


class FakeDaemon:
    """Counts what it is asked; its picture's number goes up with every question."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seq = 10
        self.silent = asyncio.Event()
        self.silent.set()

    async def status(self, _: Mapping[str, Any]) -> GatewayStatus:
        self.asked.append("status")
        await self.silent.wait()
        return status_samples.status()

    def picture(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append("picture")
        if args["source"] not in ("dock-cam", "arm/top"):
            raise ControlError("no picture of that yet")
        self.seq += 1
        return {
            "seq": self.seq,
            "media": "image/jpeg",
            "data": base64.b64encode(JPEG).decode(),
            "inference": status_samples.picture_inference(5),
        }


def with_panel(folder: Path, scenario: Callable[[Client, FakeDaemon], Awaitable[None]], *, alive: bool = True) -> None:
    async def run() -> None:
        async with AsyncPanel(folder, alive) as (client, fake):
            await scenario(client, fake)

    asyncio.run(run())


@asynccontextmanager
async def AsyncPanel(folder: Path, alive: bool) -> AsyncIterator[tuple[Client, FakeDaemon]]:
    fake = FakeDaemon()
    app = server.make_app(folder / "c.sock", folder / "spool.db", "gateway.local")
    async with TestClient(TestServer(app)) as client:
        if not alive:
            yield client, fake
            return
        async with control.serve(folder / "c.sock", {"status": fake.status, "picture": fake.picture}):
            yield client, fake


def test_status_is_the_daemons_json_and_many_viewers_cost_one_question(tmp_path: Path) -> None:
    async def scenario(client: Client, fake: FakeDaemon) -> None:
        answers = await asyncio.gather(*(client.get("/api/status") for _ in range(20)))
        assert {answer.status for answer in answers} == {200}
        status = await answers[0].json()
        assert status["gateway"] == "line-1"
        assert status["uplink"]["state"] == "up"
        assert fake.asked == ["status"]

    with_panel(tmp_path, scenario)


def test_a_daemon_that_is_away_is_503_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "FRESH_S", 0.0)
    (tmp_path / "spool.db").write_bytes(b"x" * 5000)

    async def scenario(client: Client, fake: FakeDaemon) -> None:
        answer = await client.get("/api/status")
        assert answer.status == 503
        said = await answer.json()
        assert "no gateway answers" in said["error"]
        assert said["hint"]
        assert said["spool_bytes"] == 5000
        assert said["disk_free_bytes"] > 0
        for _ in range(2):  # started again: it is found again
            async with control.serve(tmp_path / "c.sock", {"status": fake.status}):
                assert (await client.get("/api/status")).status == 200
                assert (await client.get("/api/pipelines/press-state")).status == 200
            assert (await client.get("/api/status")).status == 503

    with_panel(tmp_path, scenario, alive=False)


def test_a_daemon_that_hangs_is_503_and_the_late_answer_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "ANSWER_S", 0.1)
    monkeypatch.setattr(daemon, "FRESH_S", 0.0)

    async def scenario(client: Client, fake: FakeDaemon) -> None:
        fake.silent.clear()
        answer = await client.get("/api/status")
        assert answer.status == 503
        assert "did not answer" in (await answer.json())["error"]
        fake.silent.set()
        assert (await client.get("/api/status")).status == 200
        assert (await client.get("/api/sources/dock-cam/picture")).status == 200

    with_panel(tmp_path, scenario)


def test_the_picture_that_was_annotated_is_the_one_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "FRESH_S", 0.0)

    async def scenario(client: Client, _: FakeDaemon) -> None:
        about = await (await client.get("/api/sources/dock-cam/annotation")).json()
        assert about["seq"] == 11
        assert about["inference"]["result"]["detections"][0][0] == "person"
        newer = await client.get("/api/sources/dock-cam/picture")
        assert newer.headers["ETag"] == '"12"'
        same = await client.get("/api/sources/dock-cam/picture", params={"seq": about["seq"]})
        assert (same.status, same.content_type, await same.read()) == (200, "image/jpeg", JPEG)
        assert same.headers["ETag"] == '"11"'
        again = await client.get("/api/sources/dock-cam/picture", params={"seq": 11}, headers={"If-None-Match": '"11"'})
        assert (again.status, await again.read()) == (304, b"")
        assert (await client.get("/api/sources/arm%2Ftop/picture")).status == 200  # a camera on a node
        for gone in ("press-4/picture", "nobody/picture", "dock-cam/picture?seq=3"):
            answer = await client.get(f"/api/sources/{gone}")
            assert answer.status == 404
            assert (await answer.json())["error"]

    with_panel(tmp_path, scenario)


def test_the_newest_inference_of_a_pipeline(tmp_path: Path) -> None:
    async def scenario(client: Client, _: FakeDaemon) -> None:
        newest = await (await client.get("/api/pipelines/press-state")).json()
        assert set(newest["result"]["scores"]) == {"running", "idle", "off"}
        missing = await client.get("/api/pipelines/none")
        assert missing.status == 404
        assert "no pipeline 'none'" in (await missing.json())["error"]

    with_panel(tmp_path, scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("[::1]", 200),
        ("gateway.local:8080", 200),
        ("GATEWAY.local", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.5:8080", 403),
        ("", 403),
    ],
)
def test_a_foreign_host_is_refused(tmp_path: Path, host: str, status: int) -> None:
    async def scenario(client: Client, fake: FakeDaemon) -> None:
        for path in ("/api/status", "/", "/healthz", "/no-such-page"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status == (404 if status == 200 and path == "/no-such-page" else status)
        assert fake.asked == (["status"] if status == 200 else [])

    with_panel(tmp_path, scenario)


def test_bound_to_every_address_it_answers_to_addresses_but_to_no_foreign_name() -> None:
    allowed = server._allowed_hosts("0.0.0.0")
    assert allowed("192.168.1.5:8080")
    assert allowed("[fe80::1]:8080")
    assert allowed("localhost")
    assert not allowed("evil.example:8080")


def test_only_get_and_safe_headers(tmp_path: Path) -> None:
    async def scenario(client: Client, _: FakeDaemon) -> None:
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert (await client.request(method, "/api/status")).status == 405
        for path in ("/", "/page.js", "/api/status", "/healthz", "/metrics", "/no-such-page"):
            answer = await client.get(path)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Server"] == "octogate"
            assert answer.headers["Cache-Control"] in ("no-store", "no-cache")

    with_panel(tmp_path, scenario)


def test_metrics_can_be_parsed_and_say_what_the_status_says(tmp_path: Path) -> None:
    async def scenario(client: Client, _: FakeDaemon) -> None:
        answer = await client.get("/metrics")
        assert answer.content_type == "text/plain"
        families = list(text_string_to_metric_families(await answer.text()))
        values = {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }
        assert values[("octogate_up",)] == 1
        assert values[("octogate_source_readings_total", "press-4")] == 8400
        assert values[("octogate_stream_stored_rows_total", "events")] == 5
        assert values[("octogate_spool_backlog_rows",)] == 40
        assert values[("octogate_spool_commit_seconds", "0.99")] == pytest.approx(0.0112)
        assert values[("octogate_model_latency_seconds", "detect", "0.5")] == pytest.approx(0.058)
        assert values[("octogate_uplink_up",)] == 1
        assert ("octogate_stream_value", "current", "press-4/power", "A") in values
        assert all(name[0].startswith("octogate_") for name in values)
        assert all(family.documentation for family in families)
        openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.content_type == "application/openmetrics-text"
        assert (await openmetrics.text()).endswith("# EOF\n")

    with_panel(tmp_path, scenario)


def test_a_scrape_of_a_gateway_that_is_away_says_so(tmp_path: Path) -> None:
    async def scenario(client: Client, _: FakeDaemon) -> None:
        answer = await client.get("/metrics")
        assert answer.status == 200
        assert "octogate_up 0.0" in await answer.text()
        assert (await client.get("/healthz")).status == 200

    with_panel(tmp_path, scenario, alive=False)


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = server.make_app(tmp_path / "c.sock", tmp_path / "spool.db")
        second = server.make_app(tmp_path / "c.sock", tmp_path / "spool.db")
        async with server.serve(first, "127.0.0.1", 0) as address:
            port = int(address.rstrip("/").rpartition(":")[2])
            with pytest.raises(OctogateError, match=f"cannot listen on 127.0.0.1:{port}"):
                async with server.serve(second, "127.0.0.1", port):
                    pass

    asyncio.run(scenario())


def test_those_who_connect_and_say_nothing_do_not_lock_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)

    async def scenario() -> None:
        app = server.make_app(tmp_path / "c.sock", tmp_path / "spool.db")
        async with server.serve(app, "127.0.0.1", 0) as address, ClientSession() as session:
            port = int(address.rstrip("/").rpartition(":")[2])
            lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            async with session.get(address + "healthz") as answer:
                assert answer.status == 200
            assert await lines[0][0].read() == b""  # the oldest was closed
            for _, writer in lines:
                writer.close()

    asyncio.run(scenario())


def test_the_process_serves_and_ends_with_sigterm_and_with_its_parent(tmp_path: Path) -> None:
    panel = ["-m", "gateway.panel", "--control", str(tmp_path / "c"), "--spool", str(tmp_path / "s"), "--port", "0"]
    # a parent that starts the panel, says its pid and is killed
    parent = "import subprocess, sys; p = subprocess.Popen([sys.executable, *sys.argv[1:]]); print(p.pid, flush=True); p.wait()"

    async def scenario() -> None:
        pipe = asyncio.subprocess.PIPE
        own = await asyncio.create_subprocess_exec(sys.executable, *panel, stderr=pipe)
        assert own.stderr is not None
        assert b"listening on http://127.0.0.1:" in await asyncio.wait_for(own.stderr.readline(), 10)
        own.terminate()
        assert await asyncio.wait_for(own.wait(), 2) == 0
        of_other = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, *panel, stdout=pipe, stderr=pipe)
        assert of_other.stdout is not None
        assert of_other.stderr is not None
        pid = int(await of_other.stdout.readline())
        assert b"listening" in await asyncio.wait_for(of_other.stderr.readline(), 10)
        descriptor = os.pidfd_open(pid)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        of_other.send_signal(signal.SIGKILL)
        await asyncio.wait_for(ended.wait(), 2)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        await of_other.communicate()

    asyncio.run(scenario())


def test_refusals_are_json(tmp_path: Path) -> None:
    async def scenario(client: Client, _: FakeDaemon) -> None:
        answer = await client.get("/nothing/here")
        assert answer.status == 404
        assert json.loads(await answer.text()) == {"error": "there is no such page", "hint": ""}

    with_panel(tmp_path, scenario)
