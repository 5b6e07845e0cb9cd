"""The consumer: takes the backlog plane of any number of gateways into a database, each reading exactly once.

A batch is committed by its key in one transaction, and only then does the retained watermark move. A batch that was
committed before is dropped by its key; one that leaves a gap is not taken, and the gateway is asked to go back. So the
table holds every reading once and in order, whatever the network, the broker or this process went through.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway.contract import TOPIC_ROOT, BatchKind, topic_ack
from gateway.errors import OctogateError, StoreError
from gateway.store.columns import Codec, Header, expand, read_header

COMMIT_S = 0.05  # batches that arrive within this time share a commit and an acknowledgement
MAX_PENDING = 256  # batches a commit
GO_BACK_S = 2.0  # a gateway that was asked to go back has so long before it is asked again

SCHEMA = """
CREATE TABLE IF NOT EXISTS stream (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    epoch TEXT NOT NULL,
    stream TEXT NOT NULL,
    kind TEXT NOT NULL,
    channels TEXT NOT NULL,
    next_seq INTEGER NOT NULL DEFAULT 0,
    UNIQUE (gateway, epoch, stream)
);
CREATE TABLE IF NOT EXISTS reading (
    stream INTEGER NOT NULL REFERENCES stream (id),
    seq INTEGER NOT NULL,
    mono_ns INTEGER,
    wall_ns INTEGER,
    value TEXT NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
"""

Key = tuple[str, str, str]  # gateway, epoch, stream


@dataclass(slots=True)
class Counts:
    """What has happened since the consumer was opened.

    Attributes:
        batches: committed.
        rows: readings, inferences and events committed.
        repeated: batches that were there already (dropped by key).
        gaps: batches that came too early (the gateway was asked to go back).
        refused: messages that are no batch.
    """

    batches: int = 0
    rows: int = 0
    repeated: int = 0
    gaps: int = 0
    refused: int = 0


class Table:
    """The consumer's SQLite database; its transactions are what "delivered" means."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise StoreError(
                f"{path}: cannot open the consumer's database: {error}", hint="check path and disk"
            ) from error
        rows = self._db.execute("SELECT gateway, epoch, stream, id, next_seq FROM stream ORDER BY id").fetchall()
        self._ids: dict[Key, int] = {(g, e, s): id for g, e, s, id, _ in rows}
        self.next: dict[Key, int] = {(g, e, s): seq for g, e, s, _, seq in rows}
        self._codec = Codec()

    def take(self, arrived: Sequence[tuple[str, Header, bytes]], counts: Counts) -> tuple[set[str], set[str]]:
        """Commit what is new and in order.

        Returns:
            The gateways whose watermark must be published, and those that must go back (a gap).
        """
        db, following, ids = self._db, dict(self.next), dict(self._ids)
        touched: set[str] = set()
        back: set[str] = set()
        fresh = Counts()
        db.execute("BEGIN IMMEDIATE")
        try:
            for gateway, header, blob in arrived:
                touched.add(gateway)
                key = (gateway, header.epoch.hex(), header.stream)
                expected = following.get(key, 0)
                if header.seq_first + header.n <= expected:
                    fresh.repeated += 1
                elif header.seq_first > expected:
                    fresh.gaps += 1
                    back.add(gateway)
                elif header.kind is BatchKind.GAP:  # the gateway has no such readings any more, and says why
                    self._skip(ids, key, blob)
                    fresh.batches += 1
                    following[key] = header.seq_first + header.n
                else:
                    fresh.rows += self._insert(ids, key, header, blob, expected)
                    fresh.batches += 1
                    following[key] = header.seq_first + header.n
            db.executemany("UPDATE stream SET next_seq = ? WHERE id = ?", [(n, ids[k]) for k, n in following.items()])
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.next, self._ids = following, ids
        counts.batches += fresh.batches
        counts.rows += fresh.rows
        counts.repeated += fresh.repeated
        counts.gaps += fresh.gaps
        return touched, back

    def _insert(self, ids: dict[Key, int], key: Key, header: Header, blob: bytes, expected: int) -> int:
        db = self._db
        if key not in ids:
            cursor = db.execute(
                "INSERT INTO stream (gateway, epoch, stream, kind, channels) VALUES (?, ?, ?, ?, ?)",
                (*key, header.kind, header.spec),
            )
            ids[key] = cursor.lastrowid or 0
        rows = [
            (ids[key], header.seq_first + i, mono_ns, wall_ns, value)
            for i, (mono_ns, wall_ns, value) in enumerate(self._rows(header, blob))
            if header.seq_first + i >= expected
        ]
        db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?)", rows)
        return len(rows)

    def _skip(self, ids: dict[Key, int], key: Key, blob: bytes) -> None:
        if key not in ids:
            kind = self._codec.decode_gap(blob)[1].kind
            cursor = self._db.execute(
                "INSERT INTO stream (gateway, epoch, stream, kind, channels) VALUES (?, ?, ?, ?, '')", (*key, kind)
            )
            ids[key] = cursor.lastrowid or 0

    def _rows(self, header: Header, blob: bytes) -> list[tuple[int | None, int | None, str]]:
        if header.kind is not BatchKind.SAMPLES:
            return [(None, None, row.decode()) for row in self._codec.decode_rows(blob)[1]]
        offset = header.wall_offset_ns
        _, sample = self._codec.decode_samples(blob)
        return [
            (mono_ns, None if offset is None else mono_ns + offset, json.dumps(values))
            for mono_ns, values in expand(sample)
        ]

    def watermark(self, gateway: str) -> tuple[str, dict[str, int]] | None:
        """The newest epoch known of a gateway, and what comes next in each of its streams."""
        epochs = [epoch for known, epoch, _ in self.next if known == gateway]
        if not epochs:
            return None
        return epochs[-1], {s: seq for (g, e, s), seq in self.next.items() if g == gateway and e == epochs[-1]}

    def gateways(self) -> set[str]:
        return {gateway for gateway, _, _ in self.next}

    def close(self) -> None:
        self._db.close()


@dataclass
class Ingest:
    """A running consumer; made by `Ingest.open`."""

    table: Table
    host: str
    port: int
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: list[tuple[str, Header, bytes]] = []
        self._wake = asyncio.Event()
        self._sessions: dict[str, str] = {}
        self._sent_back: dict[str, float] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True, protocol=paho.MQTTv311)
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = lambda client, *_: self._connected(client)
        self._client.on_message = self._received

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, host: str = "127.0.0.1", port: int = 1883) -> AsyncIterator[Ingest]:
        """Consume every gateway's backlog from a broker into the SQLite file `path`, until the block is left."""
        ingest = cls(Table(path), host, port)
        ingest._client.connect_async(host, port, keepalive=15)
        ingest._client.loop_start()
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(ingest._commit_forever(), name="ingest")
                try:
                    yield ingest
                finally:
                    task.cancel()
        finally:
            ingest._client.disconnect()
            await asyncio.to_thread(ingest._client.loop_stop)
            ingest.table.close()

    # paho's thread calls these two: they only hand over
    def _connected(self, client: paho.Client) -> None:
        client.subscribe(f"{TOPIC_ROOT}/+/up/#", qos=1)
        self._loop.call_soon_threadsafe(self._announce, None)

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._arrived, message.topic, bytes(message.payload))

    def _announce(self, gateways: set[str] | None) -> None:
        """Start a new session with these gateways: each sends everything from its watermark on."""
        for gateway in self.table.gateways() if gateways is None else gateways:
            self._sessions[gateway] = secrets.token_hex(4)
            self._acknowledge(gateway)

    def _arrived(self, topic: str, payload: bytes) -> None:
        gateway = topic.split("/")[2]
        try:
            header, _ = read_header(payload)
        except StoreError:
            self.counts.refused += 1
            return
        self._pending.append((gateway, header, payload))
        self._wake.set()

    async def _commit_forever(self) -> None:
        while True:
            await self._wake.wait()
            if len(self._pending) < MAX_PENDING:
                await asyncio.sleep(COMMIT_S)
            self._wake.clear()
            arrived, self._pending = self._pending, []
            if not arrived:
                continue
            touched, back = await asyncio.to_thread(self.table.take, arrived, self.counts)
            now = self._loop.time()
            back = {g for g in back if now - self._sent_back.get(g, -GO_BACK_S) >= GO_BACK_S}
            self._sent_back.update(dict.fromkeys(back, now))
            self._announce(back)
            for gateway in touched - back:
                self._acknowledge(gateway)

    def _acknowledge(self, gateway: str) -> None:
        session = self._sessions.setdefault(gateway, secrets.token_hex(4))
        epoch, following = self.table.watermark(gateway) or ("", {})
        payload = msgspec.json.encode({"session": session, "epoch": epoch, "next": following})
        self._client.publish(topic_ack(gateway), payload, qos=1, retain=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`octogate-ingest`: run a consumer until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        "octogate-ingest", description="Takes gateways' readings into SQLite, exactly once."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the broker; default: %(default)s")
    parser.add_argument("--port", type=int, default=1883, help="default: %(default)s")
    parser.add_argument("--db", type=Path, required=True, help="the SQLite file; made when missing")
    args = parser.parse_args(argv)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with Ingest.open(args.db, args.host, args.port) as ingest:
            print(f"octogate-ingest: {args.host}:{args.port} -> {args.db}", file=sys.stderr, flush=True)
            await stop.wait()
            print(json.dumps({name: getattr(ingest.counts, name) for name in Counts.__slots__}))

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(until_signalled())
    except OctogateError as error:
        print(f"octogate-ingest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
