"""Events to an operations system, by HTTP: at least once, in order within a stream, from a cursor in the database.

Each event is one POST of JSON with the header `Idempotency-Key: <gateway>/<epoch>/<stream>/<seq>`, as the IETF's draft
"The Idempotency-Key HTTP Header Field" has it; a receiver that remembers keys sees each event exactly once. An answer
of 2xx moves the cursor. 4xx other than 408, 425 and 429 means that this event will never be taken: it is said, counted
and passed over, for one bad event must not hold up all others. Anything else is tried again for as long as it takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from gateway.errors import ConfigError, StoreError, UplinkError
from sdk.ingest.store import Sink

AT_ONCE = 100  # events read from the database at a time
TIMEOUT_S = 10.0
BACKOFF_S, BACKOFF_MAX_S = 0.5, 60.0
LOOK_S = 5.0  # another consumer's events are found by looking
TRY_AGAIN = frozenset({408, 425, 429})
MAX_SECRET = 4096
MAX_ANSWER = 64 << 10  # bytes of an answer that are read at all
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(slots=True)
class HookCounts:
    """Events that were taken, refused for good, and attempts that failed."""

    posted: int = 0
    refused: int = 0
    failed: int = 0


class Webhook:
    """Posts events until cancelled.

    Args:
        url: https, or http on this machine. It may hold a secret: it is never printed.
        token_file: its content goes as `Authorization: Bearer`.
        ca_file: vouches for the server instead of the system's own.

    Raises:
        ConfigError: the address or a file cannot be used.
    """

    def __init__(
        self,
        sink: Sink,
        url: str,
        *,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise ConfigError("--webhook: needs an https address", hint="plain http only to this machine")
        try:
            self._ssl = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
            token = _secret(token_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"webhook: {error}", hint="check the token's and the CA's file") from error
        self.counts = HookCounts()
        self.name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._url, self._where = url, parts.hostname or ""
        self._sink = sink
        self._say = say
        self._backoff_s = backoff_s
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There are new events."""
        self._wake.set()

    async def run(self) -> None:
        """Post what is new, for ever."""
        tries = 0
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        started = False
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while True:
                try:
                    if not started:
                        await self._sink.hook_start(self.name)
                        started = True
                    while await self._post_some(session):
                        tries = 0
                    tries = 0
                except (StoreError, UplinkError) as error:
                    self.counts.failed += 1
                    if tries == 0:
                        self._say(f"webhook: {error}; it is tried again")
                    limit = min(BACKOFF_MAX_S, self._backoff_s * 2 ** min(tries, 10))
                    await asyncio.sleep(random.uniform(0, limit))  # full jitter
                    tries += 1
                    continue
                await self._until_news()

    async def _until_news(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _post_some(self, session: aiohttp.ClientSession) -> bool:
        events = await self._sink.hook_events(self.name, AT_ONCE)
        for event in events:
            await self._post(session, event)
            await self._sink.hook_done(self.name, event["at"], event["seq"] + 1)
        return bool(events)

    async def _post(self, session: aiohttp.ClientSession, event: dict[str, Any]) -> None:
        key = "/".join(quote(str(event[part]), safe="") for part in ("gateway", "epoch", "stream", "seq"))
        body = {part: event[part] for part in ("gateway", "epoch", "stream", "seq")}
        try:
            body["event"] = msgspec.json.decode(event["event"])
        except msgspec.DecodeError:
            body["event"] = event["event"]
        try:
            async with session.post(
                self._url,
                data=msgspec.json.encode(body),
                headers={"Idempotency-Key": key},
                ssl=self._ssl,
                allow_redirects=False,  # the token goes nowhere else
            ) as answer:
                await answer.content.read(MAX_ANSWER)
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UplinkError(
                f"{self._where}: {str(error) or type(error).__name__}", hint="check the address"
            ) from error
        if 200 <= status < 300:
            self.counts.posted += 1
        elif 400 <= status < 500 and status not in TRY_AGAIN:
            self.counts.refused += 1
            self._say(f"webhook: {self._where} refused event {key} with {status}: passed over")
        else:
            raise UplinkError(f"{self._where}: answered {status}")


def _secret(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open() as file:
        token = file.read(MAX_SECRET).strip()
    if not token.isprintable():
        raise ValueError(f"{path}: the token holds what no header may")
    return token
