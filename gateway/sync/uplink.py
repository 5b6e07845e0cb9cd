"""The uplink: the planes over one connection, behind one small face."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from gateway import blocks
from gateway.clock import Clock
from gateway.config import Config, LiveTable, UplinkTable
from gateway.contract import Batch, Event, Inference, Sample, SourceState, UplinkStatus, topic_ack, topic_up
from gateway.errors import UplinkError
from gateway.sync.account import Account, Message
from gateway.sync.backlog import Backlog, Store, decode_ack
from gateway.sync.bucket import TokenBucket
from gateway.sync.commands import Commands, Port
from gateway.sync.live import Live, Refuse, Setup, Write
from gateway.sync.mqtt import Connection
from gateway.sync.pictures import AHEAD, Pictures, Shelf

RETAINED_S = 0.05  # a broker sends what it retains right after its SUBACK: wait so long for the watermark
MAX_PASSWORD = 4096
BURST_S = 1.0  # of the backlog's rate gathers while nothing is sent


class Uplink:
    """Carries the backlog, the live values and the kept pictures of one gateway to one broker."""

    def __init__(
        self,
        config: Config,
        table: UplinkTable,
        store: Store,
        write: Write,
        refuse: Refuse,
        commands: Commands | None = None,
        *,
        clock: Clock,
    ) -> None:
        self.name = table.name
        self._gateway, self._prefix = config.gateway.id, table.prefix
        self._connection = connection = Connection(_account(config, table))
        rate = table.backlog_kib_s * 1024
        self._backlog = Backlog(
            store, self._send, lambda: connection.room, TokenBucket(rate, rate * BURST_S), self._largest
        )
        self._pictures: Pictures | None = None
        if table.pictures != "none":
            folder = "pictures" if table.pictures == "events" else "thumbnails"
            shelf = Shelf(config.data_dir / folder, config.data_dir / f"{folder}-{table.name}.sent")
            self._pictures = Pictures(shelf, self._send_block, self._room_for_pictures)
            self._backlog.on_idle = self._pictures.push
        self._live: Live | None = None
        self._live_connection = connection
        if table.live is not None:
            if table.live.primary_host:  # it may send the edge node away, but not the backlog: docs/decisions.md
                account = connection.account
                self._live_connection = Connection(replace(account, client_id=f"{account.client_id}-live"))
            self._live = live = Live(self._live_connection, live_setup(config, table, table.live), write, refuse, clock)
            self._live_connection.will = live.will
            self._live_connection.on_connecting = live.connecting
            if self._live_connection is not connection:
                self._live_connection.on_up = live.start
                self._live_connection.on_down = live.stop
                self._live_connection.on_message = live.message
        connection.on_up = self._up
        connection.on_down = self._down
        connection.on_message = self._message
        connection.on_room = self._room
        self._port: Port | None = None
        if commands is not None and table.commands:
            keys = [config.path(key) for key in table.command_keys]
            self._port = Port(commands, self._gateway, connection, root=table.prefix, keys=keys)
        self._grace: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._backlog.run(), name="backlog")
                if self._pictures is not None:
                    tasks.create_task(self._pictures.run(), name="pictures")
                tasks.create_task(self._connection.run(), name="mqtt")
                if self._live_connection is not self._connection:
                    tasks.create_task(self._live_connection.run(), name="mqtt live")
        finally:
            self._down()

    def committed(self, batches: Sequence[Batch]) -> None:
        """The spool has these on disk."""
        self._backlog.committed(batches)

    def sample(self, sample: Sample) -> None:
        """A stream has new readings (on disk or about to be)."""
        if self._live is not None:
            self._live.sample(sample)

    def inference(self, inference: Inference) -> None:
        if self._live is not None:
            self._live.inference(inference)

    def source(self, name: str, state: SourceState, stale: Sequence[str] = ()) -> None:
        """A source is in this state; of its streams, `stale` get no readings although others do."""
        if self._live is not None:
            self._live.source(name, state, stale)

    def event(self, event: Event) -> None:
        if self._live is not None:
            self._live.event(event)

    def clock_turned(self) -> None:
        """The time of day has become known, or was set."""
        if self._live is not None:
            self._live.clock_turned()
        self._connection.poke()  # a certificate that was not valid yet may be so now
        if self._live_connection is not self._connection:
            self._live_connection.poke()

    def picture_kept(self) -> None:
        """The folder of pictures, or that of thumbnails, has one more."""
        if self._pictures is not None:
            self._pictures.kept()

    def status(self) -> UplinkStatus:
        connection = self._connection
        return UplinkStatus(
            state=connection.state,
            broker=f"{connection.account.host}:{connection.account.port}",
            since_s=round(time.monotonic() - connection.since, 1),
            inflight=connection.inflight,
            sent=self._backlog.sent,
            reconnects=max(0, connection.connects - 1),
            rewinds=self._backlog.rewinds,
            detail=connection.detail,
            live=self._live.status() if self._live is not None else None,
            name=self.name,
            pictures=self._pictures.delivered if self._pictures is not None else 0,
        )

    @property
    def up(self) -> bool:
        """Whether somebody gets what is committed right away."""
        return self._connection.state == "up"

    def leave(self) -> None:
        """Called before an intended end, while the connection still is there."""
        if self._live is not None:
            self._live.leave()

    def _up(self) -> None:
        self._connection.subscribe(topic_ack(self._gateway, self._prefix))
        if self._pictures is not None:
            self._connection.subscribe(blocks.topic_picture_ack(self._gateway, self._prefix))
        if self._live is not None and self._live_connection is self._connection:
            self._live.start()
        if self._port is not None:
            self._connection.subscribe(self._port.topic)
            self._port.up()
        self._grace = asyncio.get_running_loop().call_later(RETAINED_S, self._start)

    def _start(self) -> None:
        self._backlog.start()
        if self._pictures is not None:
            self._pictures.start()

    def _down(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._backlog.stop()
        if self._pictures is not None:
            self._pictures.stop()
        if self._live is not None and self._live_connection is self._connection:
            self._live.stop()

    def _room(self, heard: bool | None) -> None:
        if heard is not None:
            self._backlog.heard(heard)
        if self._port is not None:
            self._port.push()  # an answer before the backlog
        self._backlog.push()
        if self._pictures is not None:
            self._pictures.push()

    def _room_for_pictures(self) -> bool:
        """Only when no batch waits, and never more of the window than a part."""
        connection = self._connection
        return connection.room and self._backlog.idle and connection.inflight + AHEAD <= max(AHEAD, connection.window)

    def _send(self, batch: Batch) -> bool:
        return self._connection.publish(
            topic_up(self._gateway, batch.stream, self._prefix), batch.blob, qos=1, heard=True
        )

    def _largest(self, stream: str) -> int:
        """Bytes that a batch may have here; 0 without limit."""
        return self._connection.limit.room(topic_up(self._gateway, stream, self._prefix))

    def _send_block(self, block: blocks.Block) -> bool:
        topic = blocks.topic_block(self._gateway, block.name, block.number, self._prefix)
        return self._connection.publish(topic, block.to_payload(), qos=1)

    def _message(self, message: Message) -> None:
        if self._live is not None and self._live.message(message):
            return
        if self._pictures is not None and message.topic == blocks.topic_picture_ack(self._gateway, self._prefix):
            with contextlib.suppress(msgspec.DecodeError):
                self._pictures.acknowledged(blocks.decode_ack(message.payload))
            return
        if self._port is not None and self._port.message(message.topic, message.payload, message.retain):
            return
        try:
            ack = decode_ack(message.payload)
        except msgspec.DecodeError:
            return  # anybody may write to a topic: what is no watermark moves nothing
        self._backlog.acknowledged(ack)


def live_setup(config: Config, table: UplinkTable, live: LiveTable) -> Setup:
    """The edge node that a config describes."""
    where = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{table.host}-{table.port}")
    return Setup(
        group=live.group,
        node=config.gateway.id,
        interval_s=live.min_interval_ms / 1000,
        devices={s.name: tuple(p.name for p in config.pipeline if p.source == s.name) for s in config.source},
        alarms=tuple(rule.name for rule in config.rule),
        bdseq_file=config.data_dir / f"bdseq-{where}",
        primary_host=live.primary_host,
        flush_historical=live.flush_historical,
    )


def _account(config: Config, table: UplinkTable) -> Account:
    def absolute(file: str) -> str:
        return str(config.path(file)) if file else ""

    def password() -> str:
        return _read_secret(config.path(table.password_file))

    return Account(
        host=table.host,
        port=table.port,
        client_id=f"octogate-{config.gateway.id}" + ("" if table.name == "main" else f"-{table.name}"),
        protocol=table.protocol,
        keepalive_s=table.keepalive_s,
        window=table.window,
        backoff_max_s=table.backoff_max_s,
        max_packet=table.max_packet_kib << 10,
        username=table.username,
        password=password if table.password_file else None,
        ca_file=absolute(table.ca_file),
        cert_file=absolute(table.cert_file),
        key_file=absolute(table.key_file),
    )


def _read_secret(path: Path) -> str:
    try:
        with path.open() as file:
            return file.read(MAX_PASSWORD).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UplinkError(f"{path}: cannot read the password: {error}", hint="check uplink.password_file") from error
