"""Commands: parsed or refused, in time or refused, audited first, executed once, answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import command
from gateway.command import Answer, Request
from gateway.errors import ControlError
from gateway.sync import commands as module
from gateway.sync.commands import BURST, MAX_WAITING, Commands, Guard, Operation, Port
from gateway.sync.journal import REMEMBERED, Entry, Journal
from sdk.bundle import generate_key
from sdk.client import signer
from tests.unit.command_bench import HERE, NOW_MS, Bench, EchoArgs, FakeLink, bench, request


def test_audited_before_executed_and_answered_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            answer = await it.ask(request(text="x"))
            assert command.result(answer, str) == "X"
            assert it.trail == ["received", "do x", "done"]

    asyncio.run(scenario())


def test_an_id_is_executed_once_and_answered_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            first = await it.ask(request(text="x"))
            assert await it.ask(request(text="x")) == first
            assert await it.ask(request(text="wrong"), "w") == await it.ask(request(text="wrong"), "w")
            assert it.effects() == ["do x", "do wrong"]
            other = await it.ask(request(text="y"))
            assert not other.ok and "this id was used" in other.error
        async with bench(tmp_path) as later:  # another process, the same disk
            assert await later.ask(request(text="x")) == first
            assert later.effects() == [] and "repeated" in later.trail

    asyncio.run(scenario())


def test_the_same_command_twice_at_once_is_executed_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            a, b = await asyncio.gather(it.ask(request(text="x")), it.ask(request(text="x")))
            assert a == b and it.effects() == ["do x"]

    asyncio.run(scenario())


def test_what_was_begun_and_interrupted_is_not_begun_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        payload = request(text="x")
        journal = Journal(tmp_path / "journal.db")
        journal.begin("a1", hashlib.sha256(payload).hexdigest(), 0)
        journal.begin("r", hashlib.sha256(request("read")).hexdigest(), 0)
        journal.close()
        async with bench(tmp_path) as it:
            answer = await it.ask(payload)
            assert "begun and interrupted" in answer.error and it.effects() == []
            assert (await it.ask(request("read"), "r")).ok  # reading does no harm

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("deadline", "wall_ms", "error"),
    [
        (1e-9, NOW_MS, "too late"),
        (NOW_MS - 1, NOW_MS, "too late"),
        (NOW_MS + 5000, None, "clock is not known"),
        (NOW_MS + command.MAX_AHEAD_MS + 1, NOW_MS, "more than a day"),
        (command.MAX_RELATIVE_S + 1, NOW_MS, "more than 86400 s"),
        (NOW_MS + 5000, NOW_MS, ""),
        (5, None, ""),
    ],
)
def test_deadlines(tmp_path: Path, deadline: float, wall_ms: int | None, error: str) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, wall_ms=wall_ms) as it:
            answer = await it.ask(request(deadline=deadline, text="x"))
            assert error in answer.error and answer.ok is not bool(error)
            assert it.effects() == ([] if error else ["do x"])
            assert it.trail[-1] == ("refused" if error else "done")

    asyncio.run(scenario())


def test_without_an_audit_row_nothing_is_changed_but_all_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AUDIT_S", 0.05)

    async def scenario() -> None:
        async with bench(tmp_path, spool_takes=False) as it:
            answer = await it.ask(request(text="x"))
            assert "audit row" in answer.error
            assert (await it.ask(request("read"), "r")).ok
            assert it.effects() == ["do read"]

    asyncio.run(scenario())


def test_a_journal_that_refuses_stops_changes_only(tmp_path: Path) -> None:
    (tmp_path / "journal.db").mkdir()

    async def scenario() -> None:
        async with bench(tmp_path) as it:
            assert "journal" in (await it.ask(request(text="x"))).error
            assert (await it.ask(request("read"), "r")).ok
            assert it.effects() == ["do read"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", "not a request"),
        (b"{}", "missing required field"),
        (b'{"op": "set", "deadline": 5, "args": []}', "args: not an object"),
        (b'{"op": "set", "deadline": 5, "args": {"text": 5}}', "Expected `str`"),
        (b'{"op": "set", "deadline": 5, "args": {"text": "x", "more": 1}}', "unknown field"),
        (b'{"op": "dance", "deadline": 5}', "unknown op 'dance'"),
        (b'{"op": "set\\n", "deadline": 5}', "matching regex"),
        (b'{"op": "set", "deadline": 5, "id": "b2", "args": {"text": "x"}}', "not that of its topic"),
        (b'{"op": "set", "deadline": -5, "args": {"text": "x"}}', ">"),
        (b'{"op": "set", "deadline": 1e999, "args": {"text": "x"}}', "not a request"),
        (b'{"op": "set", "deadline": 5, "args": ' + b'{"text":' * 20000 + b"1" + b"}" * 20001, "bytes are no request"),
        (b'{"op": "set", "deadline": 5, "args": ' + b'{"a":' * 15000 + b"1" + b"}" * 15001, "set: |not a request"),
    ],
)
def test_what_is_no_command_is_refused_with_a_reason(tmp_path: Path, payload: bytes, error: str) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            answer = await it.ask(payload)
            assert not answer.ok and any(part in answer.error for part in error.split("|"))
            assert it.trail == ["refused"]

    asyncio.run(scenario())


def test_a_retained_command_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            assert "retained" in (await it.ask(request(text="x"), retained=True)).error
            assert it.effects() == []

    asyncio.run(scenario())


def test_a_crowd_and_a_flood_are_told_to_come_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        it = Bench(tmp_path)  # does not run: what is taken waits
        answers: list[Answer] = []
        for i in range(int(BURST) + 50):
            it.commands.receive(HERE, f"i{i}", request(text="x"), answers.append)
        assert it.trail.count("received") == MAX_WAITING and it.trail.count("flood") == 1
        assert all(answer.busy for answer in answers)
        assert len(answers) == int(BURST) + 50 - MAX_WAITING
        assert sum("a second" in answer.hint for answer in answers) >= 45

    asyncio.run(scenario())


# --- the parser moves nothing --------------------------------------------------------------------------------------

TEXT = st.text('abt.{"\\\n/+#-_5é\0', max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
ALMOST = st.fixed_dictionaries(
    {},
    optional={name: JSON | st.sampled_from(["set", "read", "a1", 5]) for name in
              ("op", "deadline", "args", "id", "signature", "more")},
)  # fmt: skip


@given(st.binary(max_size=200) | ALMOST.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_a_named_error(payload: bytes) -> None:
    try:
        parsed = command.parse("a1", payload)
    except ControlError:
        return
    assert parsed.id == "a1" and 0 < parsed.deadline <= 1e14
    again = command.parse("a1", command.encode(parsed))
    assert (again.op, again.deadline, bytes(again.args)) == (parsed.op, parsed.deadline, bytes(parsed.args))
    with contextlib.suppress(ControlError):
        command.parse_args(parsed, EchoArgs)


def played(tail: str, payload: bytes) -> tuple[int, list[tuple[str, bytes, int, bool]]]:
    """Put one message on a gateway's command topic: how often something was done, and what was sent."""
    calls = 0
    link = FakeLink()

    async def changed(args: EchoArgs, id: str) -> None:
        nonlocal calls
        calls += 1

    def audit(name: str, well: bool, message: str, detail: Mapping[str, Any]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def scenario() -> None:
        operations = {"boom": Operation(EchoArgs, changed, changes=True, once=False)}
        commands = Commands(operations, Journal(Path("unused")), audit, lambda: None)
        port = Port(commands, "line-1", link)
        assert port.message(f"octo/v1/line-1/cmd/{tail}", payload, False)
        assert not port.message(f"octo/v1/line-2/cmd/{tail}", payload, False)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(commands.run(), name="commands")
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()

    asyncio.run(scenario())
    return calls, link.sent


@settings(max_examples=60, deadline=None)
@given(TEXT, st.binary(max_size=100) | ALMOST.map(lambda value: json.dumps(value).encode()))
def test_garbage_on_the_topic_moves_nothing(tail: str, payload: bytes) -> None:
    calls, sent = played(tail, payload)
    assert calls == 0
    assert all(topic == f"octo/v1/line-1/ans/{tail}" for topic, *_ in sent)
    assert not sent or command.valid_id(tail)


def test_what_is_no_garbage_does(tmp_path: Path) -> None:
    calls, sent = played("a1", request("boom", text="x"))
    assert calls == 1 and len(sent) == 1


@pytest.mark.parametrize("id", ["", "a/b", "a b", "ü", "a\n", "x" * 65, "+", "#"])
def test_what_is_no_id(id: str) -> None:
    assert not command.valid_id(id)


# --- signatures ----------------------------------------------------------------------------------------------------


def test_signatures(tmp_path: Path) -> None:
    keys = [generate_key(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub") for name in ("ours", "theirs")]
    assert len(keys) == 2
    ours, theirs = signer(tmp_path / "ours.pem"), signer(tmp_path / "theirs.pem")
    (tmp_path / "broken.pub").write_text("nothing")

    def signed(sign: Callable[[bytes], str], gateway: str = "line-1", deadline: float = NOW_MS + 5000) -> Request:
        plain = Request("set", deadline, "s", msgspec.Raw(b'{"text": "x"}'))
        return msgspec.structs.replace(plain, signature=sign(command.signed_text(gateway, plain)))

    def guard(*names: str) -> Guard:
        return Guard("uplink", "line-1", tuple(tmp_path / name for name in names))

    good = signed(ours)
    swapped = msgspec.structs.replace(good, args=msgspec.Raw(b'{"text": "y"}'))
    cases = [
        (guard("ours.pub"), msgspec.structs.replace(good, signature=""), "not signed"),
        (guard("ours.pub"), msgspec.structs.replace(good, signature="!!"), "does not fit"),
        (guard("ours.pub"), signed(theirs), "does not fit"),
        (guard("ours.pub"), swapped, "does not fit"),
        (guard("ours.pub"), signed(ours, gateway="line-2"), "does not fit"),
        (guard("ours.pub"), signed(ours, deadline=30), "absolute deadline"),
        (guard("broken.pub"), good, "cannot be used"),
        (guard("theirs.pub", "broken.pub", "ours.pub"), good, ""),
    ]

    async def scenario() -> None:
        async with bench(tmp_path) as it:
            for i, (way, sent, error) in enumerate(cases):
                assert it.effects() == [], i
                answer = await it.ask(command.encode(sent), "s", way)
                assert error in answer.error and answer.ok is not bool(error), (i, answer)
            assert it.effects() == ["do x"]

    asyncio.run(scenario())


# --- the port and the journal --------------------------------------------------------------------------------------


def test_answers_wait_for_room_and_the_report_is_retained(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as it:
            link = FakeLink()
            port = Port(it.commands, "line-1", link)
            it.commands.reported = lambda: b"how it is"
            port.up()
            assert link.sent == [("octo/v1/line-1/reported", b"how it is", 1, True)]
            link.room = False
            assert port.message("octo/v1/line-1/cmd/a1", request(text="x"), False)
            it.commands.report()
            while it.trail[-1] != "done":
                await asyncio.sleep(0.001)
            assert len(link.sent) == 1
            link.room = True
            while len(link.sent) < 3:  # what is done is answered a moment later
                port.push()
                await asyncio.sleep(0.001)
            assert [(topic, qos) for topic, _, qos, _ in link.sent[1:]] == [
                ("octo/v1/line-1/reported", 1),
                ("octo/v1/line-1/ans/a1", 1),
            ]
            assert command.parse_answer(link.sent[-1][1]) == Answer("a1", True, msgspec.Raw(b'"X"'))

    asyncio.run(scenario())


def test_the_journal_forgets_the_oldest_but_none_that_may_still_come(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    late = int(time.time() * 1000) + 60_000
    journal.begin("signed", "d", late)
    journal.begin("old", "d", 0)
    for i in range(REMEMBERED):
        journal.begin(f"i{i}", "d", 0)
    assert journal.find("old") is None
    assert journal.find("signed") == Entry("d", b"")
    assert journal.find("i0") is not None
    journal.finish("i0", b"{}")
    journal.close()
    assert journal.find("i0") == Entry("d", b"{}")  # opened again
    journal.close()


@pytest.mark.parametrize(("now_ms", "forgotten"), [(None, False), (5, False), (10**13, True)])
def test_a_deadline_in_utc_is_kept_until_it_is_known_to_have_passed(
    tmp_path: Path, now_ms: int | None, forgotten: bool
) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.begin("signed", "d", 2 * 10**12)
    for i in range(REMEMBERED):
        journal.begin(f"i{i}", "d", 0, now_ms)
    assert (journal.find("signed") is None) == forgotten
    journal.close()


def test_bytes_travel_as_base64() -> None:
    args = {"sha256": "0" * 64, "size": 3, "data": b"abc"}
    sent = command.encode(Request("bundle.put", 5.0, "a", msgspec.Raw(command.encode(args))))
    assert base64.b64encode(b"abc") in sent
    assert command.parse_args(command.parse("a", sent), command.BundlePutArgs).data == b"abc"
