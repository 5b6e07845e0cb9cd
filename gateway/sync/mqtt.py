"""One MQTT connection (3.1.1 or 5) on the asyncio loop, with our own window.

paho speaks the protocol; nothing is ever queued inside it: a publish happens only while the connection is up and the
window has room, and every attempt to connect uses a fresh client, so that what was under way when a connection broke is
sent again by whoever rewinds, not by paho.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable

import paho.mqtt.client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.errors import UplinkError
from gateway.sync import netlink
from gateway.sync.account import CONNECT_S, Account, Message, dial, make_client, window_of
from gateway.sync.packets import PacketLimit

__all__ = ["Account", "Connection", "Message"]

GOODBYE_S = 0.5  # for the broker to close after DISCONNECT
USER_TIMEOUT_MS = 6000  # an unacknowledged segment ends a half-open link after this: notes in docs/decisions.md
BACKOFF_MIN_S = 0.25
STABLE_S = 60.0  # up for so long: the backoff starts anew
HANGING_S = 1.0  # an attempt this old has lost its SYN: a link that comes up makes it start anew
PUBACK_BYTES = 4
WAKE_BYTES = 40  # the shortest message to us is longer
NO_MATCHING_SUBSCRIBERS = 0x10  # MQTT 5, 3.4.2.1


class Connection:
    """Connects, and connects again, for as long as `run` is not cancelled.

    Attributes:
        on_up: called in the loop once the broker has accepted us.
        on_down: called when it is gone.
        on_message: called with each message of a subscribed topic.
        on_room: called when an acknowledgement has made room in the window, with what became of a message that has to
            be heard: True if the broker took it, False if it had nobody to hand it to (MQTT 5); None for others.
        will: gives the last will for the next CONNECT.
        on_connecting: called when that CONNECT has been sent.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.state = "connecting"
        self.detail = ""
        self.since = time.monotonic()
        self.connects = 0
        self.window = account.window
        self.limit = PacketLimit(account.where, account.max_packet)
        self.on_up: Callable[[], None] = lambda: None
        self.on_down: Callable[[], None] = lambda: None
        self.on_message: Callable[[Message], object] = lambda _: None
        self.on_room: Callable[[bool | None], None] = lambda _: None
        self.will: Callable[[], Message | None] = lambda: None
        self.on_connecting: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._client: paho.Client | None = None
        self._lost = asyncio.Event()
        self._again = ""  # why we leave ourselves, to connect anew at once
        self._publishing = False
        self._inflight: dict[int, tuple[int, bool]] = {}  # message id -> bytes of the packet, must it be heard
        self._misc: asyncio.TimerHandle | None = None
        self._poked = asyncio.Event()
        self._attempt: asyncio.Timeout | None = None  # while the socket is being opened
        self._attempt_at = 0.0

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
        return self.state == "up" and len(self._inflight) < self.window

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, heard: bool = False) -> bool:
        """Send now; False when the connection is down (nothing is queued), or for more than the broker takes."""
        client = self._client
        if client is None or self.state != "up":
            return False
        size = self.limit.size(topic, payload)
        if not self.fits(topic, payload):  # the broker would end the connection
            self.detail = f"{self.account.where}: {size} bytes on {topic} are more than it takes, {self.limit.packet}"
            return False
        self._publishing = True
        info = client.publish(topic, payload, qos=qos, retain=retain)
        self._publishing = False
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        if qos:
            self._inflight[info.mid] = size, heard
        client.loop_write()  # now, and not by way of the selector, which is for what the socket does not take
        if client.want_write() and (sock := client.socket()) is not None:
            self._loop.add_writer(sock.fileno(), client.loop_write)
        return True

    def fits(self, topic: str, payload: bytes) -> bool:
        """Whether the broker takes a message of this size, as far as is known."""
        return not self.limit.packet or len(payload) <= self.limit.room(topic)

    def subscribe(self, topic: str, qos: int = 1) -> None:
        if self._client is not None:
            self._client.subscribe(topic, qos=qos)

    def reconnect(self, why: str) -> None:
        """Say goodbye (the broker forgets the will) and connect anew at once."""
        if self.state == "up":
            self._again = why
            self._lost.set()

    # --- the connection's life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected; ends by cancellation only, with a clean disconnect."""
        with netlink.watching(self.poke):
            try:
                await self._keep_connected()
            finally:
                await self._goodbye()
                self._turn("down", "stopped")
                self._drop()

    async def _keep_connected(self) -> None:
        backoff = BACKOFF_MIN_S
        while True:
            self._poked.clear()
            try:
                await self._connect()
            except UplinkError as error:
                self._down(str(error))
            else:
                self._turn("up", "")
                self.connects += 1
                self.on_up()
                await self._lost.wait()
                self._poked.clear()
                if why := self._again:
                    self._again = ""
                    await self._goodbye()
                    self._down(why)
                    continue
                self.limit.broken(max((size for size, _ in self._inflight.values()), default=0))
                if time.monotonic() - self.since >= STABLE_S:
                    backoff = BACKOFF_MIN_S
                self._down(self.detail or "the broker closed the connection")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0, backoff)):  # full jitter
                    await self._poked.wait()
            backoff = min(backoff * 2, self.account.backoff_max_s)

    def poke(self) -> None:
        """A way out may have appeared: try now. The backoff stays, so that a flapping link does not undo it."""
        self._poked.set()
        if self._attempt is not None and self._loop.time() - self._attempt_at > HANGING_S:
            self._attempt.reschedule(self._loop.time())

    async def _connect(self) -> None:
        self._lost.clear()
        self._inflight.clear()
        accepted: asyncio.Future[Properties | None] = self._loop.create_future()
        accepted.add_done_callback(lambda done: done.cancelled() or done.exception())  # not awaited if `_watch` raises
        account = self.account
        client = self._make(accepted)
        if self.state != "connecting":
            self._turn("connecting", self.detail)
        await self._dial(client)
        self.on_connecting()
        self._client = client
        self._watch(client)
        try:
            async with asyncio.timeout(CONNECT_S):
                said = await accepted
        except TimeoutError as error:
            raise UplinkError(f"{account.where}: no CONNACK in {CONNECT_S:.0f} s") from error
        self.window = window_of(account, said)
        self.limit.connected(said)
        # PUBACKs are worth a wake-up when they make room for half a window, not one by one; all else is longer
        sock = client.socket()
        if isinstance(sock, socket.socket):
            worth = min(WAKE_BYTES, PUBACK_BYTES * max(1, self.window // 2))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, worth)

    async def _dial(self, client: paho.Client) -> None:
        """Open the client's socket in a thread; given up when it hangs and `poke` says that the link is new."""
        account = self.account
        given_up = False

        def opened(_c: paho.Client, _u: object, _s: object) -> None:
            if given_up:  # still in its thread: must not send a CONNECT that takes over from the newer attempt's
                raise ConnectionAbortedError("given up")

        client.on_socket_open = opened
        self._attempt_at = self._loop.time()
        try:
            async with asyncio.timeout(None) as self._attempt:
                await asyncio.to_thread(dial, client, account)
        except TimeoutError as error:
            if self._attempt is None or not self._attempt.expired():
                raise UplinkError(f"{account.where}: {error}", hint="retried by itself") from error
            self._poked.set()
            raise UplinkError(f"{account.where}: given up for a new link") from error
        except (OSError, ValueError) as error:  # ValueError: a certificate that is none
            raise UplinkError(f"{account.where}: {error}", hint="retried by itself") from error
        finally:
            given_up, self._attempt = True, None

    def _make(self, accepted: asyncio.Future[Properties | None]) -> paho.Client:
        account = self.account
        client = make_client(account, self.will())

        def on_connect(_c: paho.Client, _u: object, _f: object, code: ReasonCode, said: Properties | None) -> None:
            if accepted.done():
                return
            if code.is_failure:
                hint = "check uplink.username and uplink.protocol"
                accepted.set_exception(UplinkError(f"{account.where}: refused: {code}", hint=hint))
            else:
                accepted.set_result(said)

        def on_disconnect(c: paho.Client, _u: object, _f: object, code: ReasonCode, _p: Properties | None) -> None:
            if not accepted.done():
                accepted.set_exception(UplinkError(f"{account.where}: closed: {code}"))
            elif c is self._client:
                self.detail = f"{account.where}: {code}"
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
            self._misc = self._loop.call_later(
                client.keepalive / 3, self._keep_alive, client
            )  # the broker may shorten it

    def _received(self, client: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        # paho holds a mutex here that publishing takes: an answer from within would wait for itself for ever
        self._loop.call_soon(self._deliver, client, Message(message.topic, bytes(message.payload), message.retain))

    def _deliver(self, client: paho.Client, message: Message) -> None:
        if client is self._client:
            self.on_message(message)

    def _acknowledged(self, client: paho.Client, _u: object, mid: int, code: ReasonCode, _p: Properties | None) -> None:
        # paho holds its mutex here and publishing takes it: let it finish first
        if client is not self._client or mid not in self._inflight:
            return
        size, matters = self._inflight.pop(mid)
        self.limit.acknowledged(size)
        if code.is_failure:
            self.detail = f"{self.account.where}: the broker refuses a message: {code}"
        heard = not (code.is_failure or code.value == NO_MATCHING_SUBSCRIBERS)
        self._loop.call_soon(self.on_room, heard if matters else None)

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

    async def _goodbye(self) -> None:
        """DISCONNECT, so that the broker forgets the will.

        What the broker still sends is read until it closes: a close with unread input is a reset, which may overtake
        the DISCONNECT, and then the will is published after all.
        """
        client = self._client
        if client is None or self.state != "up" or (sock := client.socket()) is None:
            return
        held = socket.socket(fileno=os.dup(sock.fileno()))  # paho closes its own right after DISCONNECT
        held.setblocking(False)
        client.disconnect()
        client.loop_write()
        with contextlib.closing(held), contextlib.suppress(OSError):  # TimeoutError is one
            held.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(GOODBYE_S):
                while await self._loop.sock_recv(held, 65536):
                    pass
