"""The uplink: the planes over one connection, behind one small face."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.config import Config, UplinkTable
from gateway.contract import Batch, Inference, Sample, UplinkStatus, topic_ack, topic_up
from gateway.errors import UplinkError
from gateway.sync.backlog import Backlog, Store, decode_ack
from gateway.sync.commands import Commands, Port
from gateway.sync.live import Live
from gateway.sync.mqtt import Account, Connection, Message

RETAINED_S = 0.05  # a broker sends what it retains right after its SUBACK: wait so long for the watermark
MAX_PASSWORD = 4096


class Uplink:
    """Carries the backlog and the live values of one gateway to one broker."""

    def __init__(self, config: Config, table: UplinkTable, store: Store, commands: Commands | None = None) -> None:
        self._gateway = config.gateway.id
        self._connection = connection = Connection(_account(config, table))
        self._backlog = Backlog(store, self._send, lambda: connection.room)
        self._live: Live | None = None
        if table.live is not None:
            interval_s = table.live.min_interval_ms / 1000
            self._live = Live(table.live.group, self._gateway, interval_s, connection.publish)
            connection.will = self._live.will
        connection.on_up = self._up
        connection.on_down = self._down
        connection.on_message = self._message
        connection.on_room = self._backlog.push
        self._port: Port | None = None
        if commands is not None and table.commands:
            keys = [config.path(key) for key in table.command_keys]
            self._port = Port(commands, self._gateway, connection, keys=keys)
            connection.on_room = self._room
        self._grace: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._backlog.run(), name="backlog")
                tasks.create_task(self._connection.run(), name="mqtt")
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
        )

    def leave(self) -> None:
        """Called before an intended end, while the connection still is there."""
        if self._live is not None:
            self._live.leave()

    def _up(self) -> None:
        self._connection.subscribe(topic_ack(self._gateway))
        if self._live is not None:
            self._connection.subscribe(self._live.command_topic)
            self._live.start()
        if self._port is not None:
            self._connection.subscribe(self._port.topic)
            self._port.up()
        self._grace = asyncio.get_running_loop().call_later(RETAINED_S, self._backlog.start)

    def _room(self) -> None:
        assert self._port is not None
        self._port.push()  # an answer before the backlog
        self._backlog.push()

    def _down(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._backlog.stop()
        if self._live is not None:
            self._live.stop()

    def _send(self, batch: Batch) -> bool:
        return self._connection.publish(topic_up(self._gateway, batch.stream), batch.blob, qos=1)

    def _message(self, message: Message) -> None:
        if self._live is not None and message.topic == self._live.command_topic:
            self._live.command(message.payload)
            return
        if self._port is not None and self._port.message(message.topic, message.payload, message.retain):
            return
        try:
            ack = decode_ack(message.payload)
        except msgspec.DecodeError:
            return  # anybody may write to a topic: what is no watermark moves nothing
        self._backlog.acknowledged(ack)


def _account(config: Config, table: UplinkTable) -> Account:
    def absolute(file: str) -> str:
        return str(config.path(file)) if file else ""

    def password() -> str:
        return _read_secret(config.path(table.password_file))

    return Account(
        host=table.host,
        port=table.port,
        client_id=f"octogate-{config.gateway.id}",
        keepalive_s=table.keepalive_s,
        window=table.window,
        backoff_max_s=table.backoff_max_s,
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
