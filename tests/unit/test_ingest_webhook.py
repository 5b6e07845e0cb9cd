"""The webhook: at least once, in order within a stream, through refusals, outages and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.errors import ConfigError
from sdk.ingest.batches import Counts
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import Table
from sdk.ingest.webhook import Webhook
from tests.unit.ingest_samples import EPOCH, events


class System:
    """An operations system that answers as it is told, and remembers what it took."""

    def __init__(self) -> None:
        self.taken: dict[str, Any] = {}  # by key: what was posted, but not noted before a restart, comes again
        self.tokens: set[str] = set()
        self.answers: list[int] = []
        self.url = ""
        self.asked = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        status = self.answers.pop(0) if self.answers else 204
        self.tokens.add(request.headers.get("Authorization", ""))
        if status < 300:
            self.taken.setdefault(request.headers["Idempotency-Key"], await request.json())
        self.asked.set()
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else None)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.asked.clear()
                await self.asked.wait()


@asynccontextmanager
async def system() -> AsyncIterator[System]:
    made = System()
    app = web.Application()
    app.router.add_post("/hook", made.post)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield made
    finally:
        await runner.cleanup()


@asynccontextmanager
async def posting(hook: Webhook) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(hook.run(), name="webhook")
        yield
        task.cancel()


def test_events_arrive_in_order_through_failures_and_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        token = tmp_path / "token"
        token.write_text("s3cret\n")
        sink = SqliteSink(tmp_path / "db")
        table = Table(sink)
        said: list[str] = []
        async with system() as remote:
            await table.take([events(0, ["old"])], Counts())
            hook = Webhook(sink, remote.url, token_file=token, say=said.append, backoff_s=0.01)
            await sink.hook_start(hook.name)  # what came before the hook was known is not posted
            await table.take([events(1, ["a", "b", "c"])], Counts())
            remote.answers = [500, 429, 302, 204, 422, 503]
            async with posting(hook):
                await remote.until(lambda: len(remote.taken) == 2 and not remote.answers)
            assert [body["event"]["name"] for body in remote.taken.values()] == ["a", "c"]
            assert (hook.counts.refused, hook.counts.failed) == (1, 4)  # b will never be taken: said, passed over
            assert any("refused event" in line for line in said)
            assert not any(remote.url in line or "s3cret" in line for line in said)
            await table.take([events(4, ["d"]), events(0, ["e"], gateway="g/2")], Counts())
            again = Webhook(sink, remote.url, token_file=token, backoff_s=0.01)
            async with posting(again):
                await remote.until(lambda: len(remote.taken) >= 4)
                await table.take([events(5, ["f"])], Counts())
                again.wake()
                await remote.until(lambda: len(remote.taken) >= 5)
        assert [body["event"]["name"] for body in remote.taken.values()] == ["a", "c", "d", "e", "f"]
        assert list(remote.taken)[2:4] == [f"g1/{EPOCH.hex()}/events/4", f"g%2F2/{EPOCH.hex()}/events/0"]
        assert remote.tokens == {"Bearer s3cret"}
        await sink.close()

    asyncio.run(scenario())


def test_a_system_that_is_away_is_tried_until_it_is_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        sink = SqliteSink(tmp_path / "db")
        table = Table(sink)
        async with system() as remote:
            url = remote.url
        failed = asyncio.Event()
        hook = Webhook(sink, url, say=lambda _: failed.set(), backoff_s=0.01)
        await sink.hook_start(hook.name)
        await table.take([events(0, ["a"])], Counts())
        async with posting(hook):
            await asyncio.wait_for(failed.wait(), 10)
        assert len(await sink.hook_events(hook.name, 10)) == 1  # the cursor has not moved
        await sink.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://plant.example/hook", "ftp://x", "nonsense"])
def test_only_https_leaves_this_machine(url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        sink = SqliteSink(tmp_path / "db")
        with pytest.raises(ConfigError, match="https"):
            Webhook(sink, url)
        await sink.close()

    asyncio.run(scenario())


def test_a_token_that_is_no_header_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        sink = SqliteSink(tmp_path / "db")
        (tmp_path / "token").write_text("a\r\nX-Evil: 1")
        for path in (tmp_path / "token", tmp_path / "none"):
            with pytest.raises(ConfigError, match="webhook"):
                Webhook(sink, "https://plant.example/hook", token_file=path)
        await sink.close()

    asyncio.run(scenario())
