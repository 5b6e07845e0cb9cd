"""Commands: taken one after another, each audited on disk before and after it, executed once, answered.

Whoever may publish to the command topics may command, unless `uplink.command_keys` asks for signatures; the daemon's
user may by the control socket. What may be asked is a table of operations that the app gives.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway import command
from gateway.command import Answer, Request
from gateway.contract import TOPIC_ROOT
from gateway.errors import ControlError, OctogateError, StoreError
from gateway.sync import signed
from gateway.sync.journal import Journal

log = logging.getLogger("octogate")
MAX_WAITING = 16
RATE = 200.0  # requests a second, in the long run
BURST = 200.0
AUDIT_S = 5.0  # the spool has so long to take the row that comes before
OUTBOX = 64  # answers that wait for the uplink
OUTBOX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that may be asked for.

    Attributes:
        args: the type of its arguments.
        run: does it, given those and the command's id; the result goes into the answer.
        changes: it may not run when it cannot be written down first.
        once: its id is kept in the journal. Others may run again with the same outcome: they only read, or name the
            content that they write.
        opening: whether these arguments need a signature, where signatures are asked for; None: always.
    """

    args: type[Any]
    run: Callable[[Any, str], Awaitable[Any]]
    changes: bool = False
    once: bool = True
    opening: Callable[[Any], bool] | None = None


class Audit(Protocol):
    """Stores a row about a command; done when it is on disk."""

    def __call__(self, name: str, well: bool, message: str, detail: Mapping[str, Any]) -> asyncio.Future[None]: ...


@dataclass(frozen=True, slots=True)
class Guard:
    """How commands of one way in are trusted: the gateway's name, and keys of which one must have signed."""

    origin: str
    gateway: str
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Waiting:
    guard: Guard
    request: Request
    operation: Operation
    args: object
    digest: str
    received: float  # monotonic seconds
    row: asyncio.Future[None]  # done when the audit row that comes before is on disk
    replies: list[Callable[[Answer], None]]


class Commands:
    """Executes what is asked, in the order of arrival.

    Args:
        operations: by name.
        audit: see `Audit`.
        wall_ms: UTC in ms, None while the clock is not known to be right.
        after: called when a command's answer is on its way; whether the process ends now, and no other is begun.
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        journal: Journal,
        audit: Audit,
        wall_ms: Callable[[], int | None],
        after: Callable[[], bool] = lambda: False,
    ) -> None:
        self._operations = operations
        self._journal = journal
        self._audit = audit
        self._wall_ms = wall_ms
        self._after = after
        self._waiting: deque[_Waiting] = deque()
        self._under_way: dict[str, _Waiting] = {}  # by id
        self._wake = asyncio.Event()
        self._tokens, self._filled = BURST, time.monotonic()
        self._flooded = False
        self._ending = False
        self.reported: Callable[[], bytes] = lambda: b""
        self.ports: list[Port] = []

    def report(self) -> None:
        """What is reported has changed: tell every uplink."""
        for port in self.ports:
            port.report()

    def receive(
        self, guard: Guard, id: str, payload: bytes, reply: Callable[[Answer], None], retained: bool = False
    ) -> None:
        """A request has come; `reply` is called once, with the answer."""
        if not self._admitted():
            flood = ControlError("too many commands", hint=f"at most {RATE:.0f} a second")
            reply(command.refused(id, flood, busy=True))
            return
        try:
            if retained:
                raise ControlError("a retained command is not executed", hint="publish it without retain")
            request = command.parse(id, payload)
            digest = hashlib.sha256(payload).hexdigest()
            if (known := self._under_way.get(id)) is not None:
                if known.digest != digest:
                    raise ControlError("another command of this id is under way", hint="use a new id")
                if reply not in known.replies and len(known.replies) < MAX_WAITING:
                    known.replies.append(reply)
                return  # the same again: its answer comes
            operation = self._operation(request)
            args = command.parse_args(request, operation.args)
        except ControlError as error:
            self._row("command.refused", False, guard, id, error=error.what)
            reply(command.refused(id, error))
            return
        if len(self._waiting) >= MAX_WAITING:
            crowd = ControlError("too many commands under way", hint="wait for their answers")
            reply(command.refused(id, crowd, busy=True))
            return
        # written now and not when its turn comes: those that come together share a commit
        row = self._row("command.received", True, guard, id, op=request.op, args=_summary(args), sha256=digest)
        waiting = _Waiting(guard, request, operation, args, digest, time.monotonic(), row, [reply])
        self._under_way[id] = waiting
        self._waiting.append(waiting)
        self._wake.set()

    async def run(self) -> None:
        """Execute until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting and not self._ending:
                    waiting = self._waiting.popleft()
                    answer = await self._handle(waiting)
                    del self._under_way[waiting.request.id]
                    for reply in waiting.replies:
                        reply(answer)
                    self._ending = self._after()
        finally:
            await asyncio.to_thread(self._journal.close)

    def _admitted(self) -> bool:
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._filled) * RATE)
        self._filled = now
        if self._tokens < 1:
            if not self._flooded:
                self._flooded = True
                self._audit("command.flood", False, f"more than {RATE:.0f} commands a second: refused", {})
            return False
        self._tokens -= 1
        self._flooded = self._flooded and self._tokens < BURST / 2
        return True

    # --- one command ------------------------------------------------------------------------------------------

    async def _handle(self, waiting: _Waiting) -> Answer:
        request, guard, operation = waiting.request, waiting.guard, waiting.operation
        try:
            if guard.keys and (operation.opening is None or operation.opening(waiting.args)):
                if request.signature and request.deadline < command.ABSOLUTE_FROM:
                    raise ControlError("a signed command needs an absolute deadline", hint="UTC in ms since 1970")
                await signed.check(guard.keys, command.signed_text(guard.gateway, request), request.signature)
            if operation.once and (earlier := await self._earlier(waiting)) is not None:
                return earlier
            await self._begin(waiting)
        except OctogateError as error:
            self._row("command.refused", False, guard, request.id, op=request.op, error=error.what)
            return command.refused(request.id, error)
        return await self._execute(waiting)

    def _operation(self, request: Request) -> Operation:
        operation = self._operations.get(request.op)
        if operation is None:
            raise ControlError(f"unknown op {request.op!r}", hint=f"known: {', '.join(sorted(self._operations))}")
        return operation

    async def _earlier(self, waiting: _Waiting) -> Answer | None:
        """The answer of an id that was begun before."""
        try:
            entry = await asyncio.to_thread(self._journal.find, waiting.request.id)
        except StoreError:
            if waiting.operation.changes:
                raise
            return None
        if entry is None:
            return None
        if entry.digest != waiting.digest:
            raise ControlError("this id was used for another command", hint="use a new id")
        if not entry.answer and not waiting.operation.changes:
            return None
        if not entry.answer:
            raise ControlError("it was begun and interrupted: not executed again", hint="look, then use a new id")
        self._row("command.repeated", True, waiting.guard, waiting.request.id, op=waiting.request.op)
        return command.parse_answer(entry.answer)

    def _check_deadline(self, waiting: _Waiting) -> None:
        deadline = waiting.request.deadline
        if deadline < command.ABSOLUTE_FROM:
            if deadline > command.MAX_RELATIVE_S:
                raise ControlError(f"deadline: more than {command.MAX_RELATIVE_S} s", hint="or UTC in ms since 1970")
            late = time.monotonic() - waiting.received > deadline
        else:
            wall_ms = self._wall_ms()
            if wall_ms is None:
                raise ControlError("the gateway's clock is not known to be right", hint="give seconds from receipt")
            if deadline > wall_ms + command.MAX_AHEAD_MS:
                raise ControlError("deadline: more than a day ahead", hint="an earlier one")
            late = wall_ms > deadline
        if late:
            raise ControlError("too late: its deadline has passed, it was not executed", hint="send it anew")

    async def _begin(self, waiting: _Waiting) -> None:
        """Write down what is about to be done. What only reads goes on when the disk refuses: it may tell why."""
        request, operation = waiting.request, waiting.operation
        self._check_deadline(waiting)
        await asyncio.wait([waiting.row], timeout=AUDIT_S)
        if operation.changes and not waiting.row.done():
            raise StoreError("the spool does not take the audit row", hint="see the spool in `status`")
        self._check_deadline(waiting)
        if operation.once:
            late_ms = int(request.deadline) if request.deadline >= command.ABSOLUTE_FROM else 0
            try:
                await asyncio.to_thread(self._journal.begin, request.id, waiting.digest, late_ms, self._wall_ms())
            except StoreError:
                if operation.changes:
                    raise

    async def _execute(self, waiting: _Waiting) -> Answer:
        request, operation = waiting.request, waiting.operation
        try:
            answer = command.answered(request.id, await operation.run(waiting.args, request.id))
        except OctogateError as error:
            answer = command.refused(request.id, error)
        except (OSError, sqlite3.Error, msgspec.MsgspecError) as error:
            answer = Answer(request.id, False, error=f"{request.op}: {error}", hint="see the gateway's log")
        row = self._row("command.done", answer.ok, waiting.guard, request.id, op=request.op, error=answer.error)
        if operation.once:
            try:
                await asyncio.to_thread(self._journal.finish, request.id, command.encode(answer))
            except StoreError as error:
                log.error("%s", error)
            if operation.changes:
                await asyncio.wait([row], timeout=AUDIT_S)
        return answer

    def _row(self, name: str, well: bool, guard: Guard, id: str, **detail: Any) -> asyncio.Future[None]:
        told = {key: value for key, value in detail.items() if value}
        message = f"{name.partition('.')[2]}: {detail.get('op', 'a command')} {id}"
        return self._audit(name, well, message, {"id": id, "by": guard.origin, **told})


def _summary(args: object) -> dict[str, Any]:
    """The arguments for the audit row: long ones by length and hash."""
    short: dict[str, Any] = {}
    for name in getattr(args, "__struct_fields__", ()):
        value = getattr(args, name)
        if isinstance(value, (str, bytes)) and len(value) > 200:
            raw = value.encode() if isinstance(value, str) else value
            value = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        elif isinstance(value, bytes):
            value = {"bytes": len(value)}
        short[name] = value
    return short


class Link(Protocol):
    """What a port needs of an uplink's connection."""

    @property
    def room(self) -> bool: ...
    def fits(self, topic: str, payload: bytes) -> bool: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool: ...


class Port:
    """One uplink's side: its topics, and the answers that wait until the connection takes them.

    Args:
        root: the topics' prefix.
        keys: public keys (PEM) of which one must have signed; empty asks for no signature.
    """

    def __init__(
        self, commands: Commands, gateway: str, link: Link, *, root: str = TOPIC_ROOT, keys: Sequence[Path] = ()
    ) -> None:
        self.topic = f"{command.topic_commands(gateway, root)}/#"
        self._prefix = self.topic[:-1]
        self._answers = command.topic_answers(gateway, root)
        self._reported = command.topic_reported(gateway, root)
        self._guard = Guard("uplink", gateway, tuple(keys))
        self._commands = commands
        self._link = link
        self._report_due = False
        self._outbox: OrderedDict[str, bytes] = OrderedDict()
        commands.ports.append(self)

    def up(self) -> None:
        """The connection is up and `topic` subscribed (at QoS 1)."""
        self.report()

    def report(self) -> None:
        """Retain what is reported, now or as soon as it can be sent."""
        self._report_due = True
        self.push()

    def message(self, topic: str, payload: bytes, retain: bool) -> bool:
        """Whether this message was one for the commands; then it is taken care of."""
        if not topic.startswith(self._prefix):
            return False
        id = topic[len(self._prefix) :]
        if command.valid_id(id) and payload:  # without an id there is nothing to answer
            self._commands.receive(self._guard, id, payload, self._reply, retain)
        return True

    def push(self) -> None:
        """Send what waits while the window has room."""
        if self._report_due and self._link.room:
            payload = self._commands.reported()
            self._report_due = not self._link.publish(self._reported, payload, qos=1, retain=True)
        while self._outbox and self._link.room:
            id, payload = next(iter(self._outbox.items()))
            topic = f"{self._answers}/{id}"
            if not self._link.fits(topic, payload):
                error = ControlError(
                    f"the answer has {len(payload)} bytes, more than the broker takes", hint="ask for smaller blocks"
                )
                payload = command.encode(command.refused(id, error))
            if not self._link.publish(topic, payload, qos=1):
                return
            del self._outbox[id]

    def _reply(self, answer: Answer) -> None:
        self._outbox.pop(answer.id, None)
        self._outbox[answer.id] = command.encode(answer)
        while len(self._outbox) > OUTBOX or sum(map(len, self._outbox.values())) > OUTBOX_BYTES:
            self._outbox.popitem(last=False)  # asked again, it is answered again
        asyncio.get_running_loop().call_soon(self.push)
