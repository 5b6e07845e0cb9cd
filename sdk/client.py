"""Asks a gateway from afar: over MQTT, by way of its broker, or by its control socket (on the machine, or over SSH).

    async with over_mqtt("line-1", "broker.example") as gateway:
        print((await gateway.status()).uplink.state)
        path = await gateway.put_bundle(Path("state.octo"))
        outcome = await gateway.set_config(text)  # waits until it stays, or was reverted

Each command has an id and is sent again, the same, until it is answered or its deadline has passed: the gateway executes
an id once. docs/commands.md has the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway import command
from gateway.command import Accepted, Answer, Blob, Block, ConfigText, Have, Reported, Request, UpdateState
from gateway.contract import TOPIC_ROOT, GatewayStatus
from gateway.control import Client
from gateway.errors import ControlError, UplinkError

DEADLINE_S = 30.0
REPEAT_S = 3.0  # without an answer the same request is sent again
BUSY_S = 0.25  # a gateway that is busy is asked again after this
SOCKET_BLOCK = 32 << 10  # in base64 it must fit a line of the control socket
WINDOW = 8  # blocks of a bundle under way
SETTLE_S = 120.0  # a gateway has so long to start anew, beside the time of the trial

T = TypeVar("T")
Sign = Callable[[bytes], str]


class Transport(Protocol):
    """One way to a gateway. `exchange` may send the same bytes more than once."""

    block: int
    window: int  # requests under way whose order is kept

    async def exchange(self, request: Request, deadline_s: float) -> Answer: ...
    async def reported(self, wanted: Callable[[Reported], bool]) -> Reported: ...


class Gateway:
    """A gateway that can be asked; made by `over_mqtt` or `over_socket`.

    Every method raises ControlError when the gateway refuses, UplinkError when it does not answer in time.
    """

    def __init__(self, name: str, transport: Transport, sign: Sign | None = None) -> None:
        self.name = name
        self._transport = transport
        self._sign = sign

    async def ask(self, op: str, kind: type[T], *, id: str = "", deadline_s: float = DEADLINE_S, **args: Any) -> T:
        """Execute `op` once; its result as `kind`. A request of the same `id` and arguments is not executed again."""
        id = id or secrets.token_hex(8)
        deadline = float(int((time.time() + deadline_s) * 1000)) if self._sign else deadline_s
        request = Request(op, deadline, id, msgspec.Raw(command.encode(args)))
        if self._sign is not None:
            signature = self._sign(command.signed_text(self.name, request))
            request = msgspec.structs.replace(request, signature=signature)
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self._transport.exchange(request, deadline_s)
                while answer.busy:
                    await asyncio.sleep(BUSY_S)
                    answer = await self._transport.exchange(request, deadline_s)
        except TimeoutError as error:
            raise UplinkError(f"{self.name}: no answer to {op} {id} in {deadline_s:g} s", hint="is it up?") from error
        return command.result(answer, kind)

    async def status(self) -> GatewayStatus:
        return await self.ask("status", GatewayStatus)

    async def restart(self) -> None:
        """Ask it to start anew; returns when it has agreed."""
        await self.ask("restart", str)

    async def snapshot(self, source: str) -> tuple[Blob, bytes]:
        """The newest picture of a source: what it is, and its bytes (JPEG or PNG)."""
        blob = await self.ask("snapshot", Blob, source=source)
        return blob, await self.fetch(blob)

    async def diagnostics(self) -> bytes:
        """A .tar.gz of what a person needs to find a fault."""
        return await self.fetch(await self.ask("diagnostics", Blob))

    async def config(self) -> ConfigText:
        return await self.ask("config.get", ConfigText)

    async def set_config(self, text: str, *, health_s: float = 60.0, base: str = "") -> Reported:
        """Try another config; returns when it stays (`good`) or the gateway went back (`reverted`, with a reason).

        Args:
            text: the whole TOML file.
            health_s: seconds that the gateway must be healthy without a break.
            base: digest of the config that the change was made from; see `config`.
        """
        id = secrets.token_hex(8)
        accepted = await self.ask("config.set", Accepted, id=id, text=text, health_s=health_s, base=base)
        if accepted.state == "good":
            return Reported(self.name, "", accepted.digest, "good")
        wait_s = 10 * health_s + SETTLE_S
        try:
            async with asyncio.timeout(wait_s):
                return await self._transport.reported(lambda r: r.id == id and r.state in ("good", "reverted"))
        except TimeoutError as error:
            raise UplinkError(f"{self.name}: not heard of its config in {wait_s:.0f} s", hint="is it up?") from error

    async def put_bundle(self, path: Path, progress: Callable[[int, int], None] = lambda have, size: None) -> str:
        """Send a model bundle, from where an earlier attempt ended; the path on the gateway, for `model.bundle`."""
        return (await self._put_file("bundle.put", path, progress))[1]

    async def update(self, path: Path, progress: Callable[[int, int], None] = lambda have, size: None) -> UpdateState:
        """Send an update of the whole machine, from where an earlier attempt ended, and have it installed.

        The machine starts anew by itself when that is done; `update_state` says why if it does not.
        """
        digest, _ = await self._put_file("update.put", path, progress)
        return await self.ask("update.install", UpdateState, sha256=digest)

    async def update_state(self) -> UpdateState:
        return await self.ask("update.status", UpdateState)

    async def _put_file(self, op: str, path: Path, progress: Callable[[int, int], None]) -> tuple[str, str]:
        digest, size = await asyncio.to_thread(_digest, path)
        have = await self.ask(op, Have, sha256=digest, size=size)
        block = self._transport.block
        while not have.path:
            offsets = range(have.have, size, block)[: self._transport.window]
            async with _unwrapped(), asyncio.TaskGroup() as tasks:
                puts = [tasks.create_task(self._put(op, path, digest, size, at), name=f"put {at}") for at in offsets]
            # a block that came out of its turn was not taken, and the furthest answer says where to go on
            have = max((put.result() for put in puts), key=lambda answer: (bool(answer.path), answer.have))
            progress(have.have, size)
        return digest, have.path

    async def _put(self, op: str, path: Path, digest: str, size: int, offset: int) -> Have:
        data = await asyncio.to_thread(_read, path, offset, self._transport.block)
        return await self.ask(op, Have, sha256=digest, size=size, offset=offset, data=data)

    async def drop_bundle(self, sha256: str) -> None:
        """Delete a bundle that was sent there and is not in use."""
        await self.ask("bundle.drop", str, sha256=sha256)

    async def write(self, source: str, metric: str, value: bool | int | float | str) -> None:
        """Set a metric of a node or device; returns when it has confirmed that; ControlError says why not."""
        await self.ask("source.write", str, source=source, metric=metric, value=value)

    async def fetch(self, blob: Blob) -> bytes:
        """What was too large for an answer; ControlError when what came is something else."""
        data = bytearray()
        while len(data) < blob.size:
            block = await self.ask("blocks.get", Block, blob=blob.blob, offset=len(data), size=self._transport.block)
            if not block.data:
                break
            data += block.data
        if hashlib.sha256(data).hexdigest() != blob.blob:
            raise ControlError(f"{self.name}: what came is not what was announced", hint="ask again")
        return bytes(data)


def signer(key: Path) -> Sign:
    """Signs with the Ed25519 private key in a PEM file without a password; ControlError when it is none."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ControlError(f"{key}: cannot read the private key: {error}", hint="sdk.bundle.generate_key") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ControlError(f"{key}: not an Ed25519 key", hint="make one with sdk.bundle.generate_key")
    return lambda text: base64.b64encode(private.sign(text)).decode()


# --- over MQTT ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_mqtt(
    name: str,
    host: str,
    port: int = 1883,
    *,
    root: str = TOPIC_ROOT,
    username: str = "",
    password: str = "",
    tls: ssl.SSLContext | None = None,
    key: Path | None = None,
    block: int = command.BLOCK,
) -> AsyncIterator[Gateway]:
    """Ask the gateway `name` by way of its broker.

    Args:
        root: the prefix of its topics.
        tls: turns TLS on.
        key: private key (PEM) to sign with, where the gateway has `uplink.command_keys`.
        block: bytes of a file in one message, which is a third longer; for brokers that take no 88 kB less.

    Raises:
        UplinkError: the broker cannot be reached.
    """
    transport = _Mqtt(name, root, block)
    client = transport.client
    if username:
        client.username_pw_set(username, password)
    if tls is not None:
        client.tls_set_context(tls)
    try:
        await asyncio.to_thread(client.connect, host, port, 15)
    except OSError as error:
        raise UplinkError(f"{host}:{port}: {error}", hint="is the broker there?") from error
    client.loop_start()
    try:
        await transport.subscribed(f"{host}:{port}")
        yield Gateway(name, transport, signer(key) if key else None)
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


class _Mqtt:
    """Answers and reports of one gateway; paho's thread only hands over."""

    def __init__(self, name: str, root: str, block: int) -> None:
        self.block, self.window = block, WINDOW
        self._loop = asyncio.get_running_loop()
        self._commands = command.topic_commands(name, root)
        self._answers = command.topic_answers(name, root)
        self._reported_at = command.topic_reported(name, root)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._ready = asyncio.Event()
        self._newest: Reported | None = None
        self._heard = asyncio.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True, protocol=paho.MQTTv311)
        self.client.reconnect_delay_set(1, 5)
        self.client.on_connect = lambda client, *_: self._subscribe(client)
        self.client.on_subscribe = lambda *_: self._hand_over(self._ready.set)
        self.client.on_message = lambda _c, _u, message: self._hand_over(
            self._arrived, message.topic, bytes(message.payload)
        )

    # paho's thread calls these two
    def _subscribe(self, client: paho.Client) -> None:
        client.subscribe([(f"{self._answers}/+", 1), (self._reported_at, 1)])

    def _hand_over(self, call: Callable[..., None], *args: object) -> None:
        self._loop.call_soon_threadsafe(call, *args)

    async def subscribed(self, where: str) -> None:
        try:
            await asyncio.wait_for(self._ready.wait(), 10)
        except TimeoutError as error:
            raise UplinkError(f"{where}: the broker does not let us listen", hint="check its access list") from error

    async def exchange(self, request: Request, deadline_s: float) -> Answer:
        answer = self._waiting.setdefault(request.id, self._loop.create_future())
        payload = command.encode(request)
        try:
            while True:
                self.client.publish(f"{self._commands}/{request.id}", payload, qos=1)
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(asyncio.shield(answer), REPEAT_S)
        finally:
            self._waiting.pop(request.id, None)

    async def reported(self, wanted: Callable[[Reported], bool]) -> Reported:
        while self._newest is None or not wanted(self._newest):
            self._heard.clear()
            await self._heard.wait()
        return self._newest

    def _arrived(self, topic: str, payload: bytes) -> None:
        if topic == self._reported_at:
            with contextlib.suppress(msgspec.DecodeError):  # anybody may write to a topic
                self._newest = msgspec.json.decode(payload, type=Reported)
                self._heard.set()
            return
        waiting = self._waiting.get(topic.rpartition("/")[2])
        with contextlib.suppress(ControlError):
            answer = command.parse_answer(payload)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)


# --- by the control socket ------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_socket(path: Path) -> AsyncIterator[Gateway]:
    """Ask the gateway whose control socket is at `path` (`<data_dir>/control.sock`; a forwarded one over SSH)."""
    yield Gateway(path.parent.name, _Socket(path))


class _Socket:
    block, window = SOCKET_BLOCK, 1

    def __init__(self, path: Path) -> None:
        self._path = path

    async def exchange(self, request: Request, deadline_s: float) -> Answer:
        args = msgspec.json.decode(request.args)
        while True:  # the gateway may be just starting anew
            try:
                async with Client.connect(self._path) as client:
                    return await client.ask(
                        "command", Answer, id=request.id, op=request.op, deadline=request.deadline, args=args
                    )
            except ControlError as error:
                if error.__cause__ is None and "closed" not in error.what:
                    raise
            await asyncio.sleep(0.2)

    async def reported(self, wanted: Callable[[Reported], bool]) -> Reported:
        while True:
            request = Request("config.get", DEADLINE_S, secrets.token_hex(8))
            reported = command.result(await self.exchange(request, DEADLINE_S), ConfigText).reported
            if wanted(reported):
                return reported
            await asyncio.sleep(0.5)


@asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """The first error of a group of tasks instead of the group."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
