"""The consumer's connection to the broker. paho's thread hands over what arrives; nothing is decided there."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.contract import TOPIC_ROOT
from gateway.errors import UplinkError

KEEPALIVE_S = 15
RECEIVE_MAXIMUM = 1000  # MQTT 5: messages under way that are not acknowledged
SESSION_S = 7 * 86400  # MQTT 5: a broker keeps a named session so long without us
USER_TIMEOUT_MS = 6000  # ends a half-open connection
RECONNECT_MAX_S = 5
MAX_SECRET = 4096


@dataclass(frozen=True, slots=True)
class Account:
    """Where to connect, as whom, and how the work is shared.

    Attributes:
        host, port: the broker.
        username, password_file: who we are; the file's first 4 KiB, without white space at its ends.
        ca_file: turns TLS 1.2+ on, with the broker's name checked; cert_file and key_file are for mTLS.
        share: name of an MQTT 5 shared subscription: consumers of that name share the messages.
        session: name of a session that the broker keeps while we are away; PUBACK follows the COMMIT then.
        prefix: the topics' beginning, as the gateways have it.
        v5: MQTT 5 instead of 3.1.1; `share` needs it.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    share: str = ""
    session: str = ""
    prefix: str = TOPIC_ROOT
    v5: bool = False

    @property
    def subscription(self) -> str:
        topic = f"{self.prefix}/+/up/#"
        return f"$share/{self.share}/{topic}" if self.share else topic


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    mid: int
    up: int  # the connection that it came by: packet numbers of another one mean something else


class Broker:
    """A connection that comes back by itself; `say` gets a line whenever its state changes.

    Attributes:
        state: connecting, up, or why it is not.
        ups: how often it was up.
    """

    def __init__(
        self,
        account: Account,
        on_up: Callable[[], None],
        on_message: Callable[[Message], None],
        say: Callable[[str], None],
    ) -> None:
        self.account = account
        self.state = "connecting"
        self.ups = 0
        self._loop = asyncio.get_running_loop()
        self._on_up = on_up
        self._on_message = on_message
        self._say = say
        self._client = self._make()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connecting, or connected, inside the block; raises UplinkError for files that cannot be used."""
        account, client = self.account, self._client
        properties, clean = None, paho.MQTT_CLEAN_START_FIRST_ONLY
        if account.v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.SessionExpiryInterval = SESSION_S if account.session else 0
            clean = not account.session
        client.connect_async(account.host, account.port, KEEPALIVE_S, clean_start=clean, properties=properties)
        client.loop_start()
        try:
            yield
        finally:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    def publish(self, topic: str, payload: bytes) -> None:
        """Retained, QoS 1; dropped while the connection is down: all of it is said anew when it is up."""
        if self.state == "up":
            self._client.publish(topic, payload, qos=1, retain=True)

    def done(self, message: Message) -> None:
        """The message is committed: acknowledge it, where that was left to us."""
        if self.account.session and message.up == self.ups:
            self._client.ack(message.mid, 1)

    def _make(self) -> paho.Client:
        account = self.account
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=account.session or f"octogate-ingest-{secrets.token_hex(6)}",
            clean_session=None if account.v5 else not account.session,
            protocol=paho.MQTTv5 if account.v5 else paho.MQTTv311,
            manual_ack=bool(account.session),
        )
        client.reconnect_delay_set(1, RECONNECT_MAX_S)
        client.connect_timeout = 5.0
        try:
            if account.username:
                client.username_pw_set(account.username, _secret(account.password_file))
            if account.ca_file:
                context = ssl.create_default_context(cafile=str(account.ca_file))
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                if account.cert_file:
                    context.load_cert_chain(account.cert_file, account.key_file)
                client.tls_set_context(context)
        except (OSError, ValueError) as error:
            hint = "check the files of the password, the CA, the certificate and the key"
            raise UplinkError(f"{account.host}:{account.port}: {error}", hint=hint) from error
        client.on_connect = self._connected
        client.on_connect_fail = lambda *_: self._turn("cannot connect")
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_socket_open = _end_half_open
        return client

    # paho's thread calls these
    def _connected(self, client: paho.Client, _u: object, _f: object, code: ReasonCode, _p: Properties | None) -> None:
        if code.is_failure:
            self._turn(f"refused: {code}")
            return
        client.subscribe(self.account.subscription, qos=1)
        self.ups += 1
        self._turn("up")
        self._loop.call_soon_threadsafe(self._on_up)

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(
            self._on_message, Message(message.topic, bytes(message.payload), message.mid, self.ups)
        )

    def _disconnected(self, _c: paho.Client, _u: object, _f: object, code: ReasonCode, _p: Properties | None) -> None:
        if not self.state.startswith("refused"):  # that is why, then
            self._turn(f"disconnected: {code}")

    def _turn(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._loop.call_soon_threadsafe(self._say, f"broker {self.account.host}:{self.account.port}: {state}")


def _end_half_open(_client: paho.Client, _userdata: object, sock: object) -> None:
    if isinstance(sock, socket.socket) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open() as file:
        return file.read(MAX_SECRET).strip()
