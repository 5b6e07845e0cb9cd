"""One MQTT 3.1.1 connection on the asyncio loop, with our own window.

paho speaks the protocol; nothing is ever queued inside it: a publish happens only while the connection is up and the
window has room, and every attempt to connect uses a fresh client, so that what was under way when a connection broke is
sent again by whoever rewinds, not by paho.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.errors import UplinkError

CONNECT_S = 5.0
USER_TIMEOUT_MS = 6000  # an unacknowledged segment ends a half-open link after this: notes in docs/decisions.md
BACKOFF_MIN_S = 0.25
PUBACK_BYTES = 4
STABLE_S = 60.0  # up for so long: the backoff starts anew


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """Where to connect and as whom; files are read at each attempt, so that renewed ones are taken up."""

    host: str
    port: int
    client_id: str
    keepalive_s: int = 15
    window: int = 20
    backoff_max_s: float = 120.0
    username: str = ""
    password: Callable[[], str] | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Connection:
    """Connects, and connects again, for as long as `run` is not cancelled.

    Attributes:
        on_up: called in the loop once the broker has accepted us.
        on_down: called when it is gone.
        on_message: called with each message of a subscribed topic.
        on_room: called when an acknowledgement has made room in the window.
        will: gives the last will for the next CONNECT.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.state = "connecting"
        self.detail = ""
        self.since = time.monotonic()
        self.connects = 0
        self.on_up: Callable[[], None] = lambda: None
        self.on_down: Callable[[], None] = lambda: None
        self.on_message: Callable[[Message], None] = lambda _: None
        self.on_room: Callable[[], None] = lambda: None
        self.will: Callable[[], Message | None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._client: paho.Client | None = None
        self._lost = asyncio.Event()
        self._publishing = False
        self._inflight: set[int] = set()
        self._misc: asyncio.TimerHandle | None = None

    # --- for the planes ---------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self.state == "up"

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    @property
    def room(self) -> bool:
        """Whether a QoS 1 publish may go out now."""
        return self.state == "up" and len(self._inflight) < self.account.window

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Send now; False when the connection is down (nothing is queued)."""
        client = self._client
        if client is None or self.state != "up":
            return False
        self._publishing = True
        info = client.publish(topic, payload, qos=qos, retain=retain)
        self._publishing = False
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        if qos:
            self._inflight.add(info.mid)
        client.loop_write()  # now, and not by way of the selector, which is for what the socket does not take
        if client.want_write() and (sock := client.socket()) is not None:
            self._loop.add_writer(sock.fileno(), client.loop_write)
        return True

    def subscribe(self, topic: str, qos: int = 1) -> None:
        if self._client is not None:
            self._client.subscribe(topic, qos=qos)

    # --- the connection's life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected; ends by cancellation only, with a clean disconnect."""
        backoff = BACKOFF_MIN_S
        try:
            while True:
                try:
                    await self._connect()
                except UplinkError as error:
                    self._down(str(error))
                else:
                    self._turn("up", "")
                    self.connects += 1
                    self.on_up()
                    await self._lost.wait()
                    if time.monotonic() - self.since >= STABLE_S:
                        backoff = BACKOFF_MIN_S
                    self._down(self.detail or "the broker closed the connection")
                await asyncio.sleep(random.uniform(0, backoff))
                backoff = min(backoff * 2, self.account.backoff_max_s)
        finally:
            self._leave()

    async def _connect(self) -> None:
        self._lost.clear()
        self._inflight.clear()
        accepted: asyncio.Future[None] = self._loop.create_future()
        account = self.account
        try:
            client = self._make(accepted)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(filter(None, (account.ca_file, account.cert_file, account.key_file)))
            raise UplinkError(f"cannot use {files}: {error}", hint="check uplink.ca_file and its fellows") from error
        if self.state != "connecting":
            self._turn("connecting", self.detail)
        try:
            await asyncio.to_thread(client.connect, account.host, account.port, account.keepalive_s)
        except (OSError, ValueError) as error:  # ValueError: a certificate that is none
            raise UplinkError(f"{account.host}:{account.port}: {error}", hint="retried by itself") from error
        self._client = client
        self._watch(client)
        try:
            async with asyncio.timeout(CONNECT_S):
                await accepted
        except TimeoutError as error:
            raise UplinkError(f"{account.host}:{account.port}: no CONNACK in {CONNECT_S:.0f} s") from error
        # PUBACKs are worth a wake-up when they make room for half a window, not one by one; all else is longer
        sock = client.socket()
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, PUBACK_BYTES * max(1, account.window // 2))

    def _make(self, accepted: asyncio.Future[None]) -> paho.Client:
        account = self.account
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=account.client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(2 * account.window)
        if account.username:
            client.username_pw_set(account.username, account.password() if account.password else None)
        if account.ca_file:
            client.tls_set(account.ca_file, account.cert_file or None, account.key_file or None)
        if (will := self.will()) is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)

        def on_connect(_c: paho.Client, _u: object, _f: object, code: ReasonCode, _p: Properties | None) -> None:
            if accepted.done():
                return
            if code.is_failure:
                where = f"{account.host}:{account.port}"
                accepted.set_exception(UplinkError(f"{where}: refused: {code}", hint="check uplink.username"))
            else:
                accepted.set_result(None)

        def on_disconnect(c: paho.Client, _u: object, _f: object, code: ReasonCode, _p: Properties | None) -> None:
            if not accepted.done():
                accepted.set_exception(UplinkError(f"{account.host}:{account.port}: closed: {code}"))
            elif c is self._client:
                self.detail = f"{account.host}:{account.port}: {code}"
                self._lost.set()

        client.on_connect = on_connect
        client.on_disconnect = on_disconnect
        client.on_message = self._received
        client.on_publish = self._acknowledged
        return client

    def _watch(self, client: paho.Client) -> None:
        """Let the loop drive the client's socket, and its keepalive with a timer of its own."""
        sock = client.socket()
        if sock is None:
            raise UplinkError(f"{self.account.host}: the connection broke at once")
        assert isinstance(sock, socket.socket)  # an ssl.SSLSocket is one too
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop, fd = self._loop, sock.fileno()

        def closed(_c: paho.Client, _u: object, _s: object) -> None:
            loop.remove_reader(fd)
            loop.remove_writer(fd)

        client.on_socket_close = closed

        def want_write(_c: paho.Client, _u: object, _s: object) -> None:
            if not self._publishing:  # then it is what paho sends by itself: SUBSCRIBE, PUBACK, PINGREQ
                loop.add_writer(fd, client.loop_write)

        def no_write(_c: paho.Client, _u: object, _s: object) -> None:
            loop.remove_writer(fd)

        client.on_socket_register_write = want_write
        client.on_socket_unregister_write = no_write
        loop.add_reader(fd, client.loop_read)
        if client.want_write():
            loop.add_writer(fd, client.loop_write)
        self._keep_alive(client)

    def _keep_alive(self, client: paho.Client) -> None:
        if client is self._client:
            client.loop_read()  # a PINGRESP is shorter than what wakes us
            client.loop_misc()
            self._misc = self._loop.call_later(self.account.keepalive_s / 3, self._keep_alive, client)

    def _received(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        self.on_message(Message(message.topic, bytes(message.payload), message.retain))

    def _acknowledged(
        self, client: paho.Client, _u: object, mid: int, _code: ReasonCode, _p: Properties | None
    ) -> None:
        # paho holds its mutex here and publishing takes it: let it finish first
        if client is self._client and mid in self._inflight:
            self._inflight.discard(mid)
            self._loop.call_soon(self.on_room)

    def _down(self, detail: str) -> None:
        self._turn("down", detail)
        self._drop()
        self.on_down()

    def _turn(self, state: str, detail: str) -> None:
        if (state == "up") != (self.state == "up"):  # attempts to connect are part of one outage
            self.since = time.monotonic()
        self.state, self.detail = state, detail

    def _drop(self) -> None:
        client, self._client = self._client, None
        if self._misc is not None:
            self._misc.cancel()
        if client is None or (sock := client.socket()) is None:
            return
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        with contextlib.suppress(OSError):
            sock.close()

    def _leave(self) -> None:
        """Say goodbye, so that the broker does not publish the will."""
        if self._client is not None and self.state == "up":
            self._client.disconnect()
        self._turn("down", "stopped")
        self._drop()
