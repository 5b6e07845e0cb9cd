"""Sparkplug payloads, checked field by field, and the life of the live plane."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sync import sparkplug
from gateway.sync.live import Live
from gateway.sync.sparkplug import Metric, encode, fields, rebirth_asked
from tests.unit.samples import counted


def metrics(payload: bytes) -> list[dict[int, int | bytes]]:
    return [dict(fields(body)) for number, body in fields(payload) if number == 2 and isinstance(body, bytes)]


@pytest.mark.parametrize(
    ("datatype", "value", "field", "raw"),
    [
        (sparkplug.INT8, -1, 10, 0xFFFFFFFF),  # sign-extended to 32 bits
        (sparkplug.INT16, -300, 10, 0xFFFFFED4),
        (sparkplug.UINT32, 4_000_000_000, 10, 4_000_000_000),
        (sparkplug.INT64, -2, 11, 0xFFFFFFFFFFFFFFFE),
        (sparkplug.FLOAT, 1.5, 12, int.from_bytes(struct.pack("<f", 1.5), "little")),
        (sparkplug.DOUBLE, 2.25, 13, int.from_bytes(struct.pack("<d", 2.25), "little")),
        (sparkplug.BOOLEAN, True, 14, 1),
        (sparkplug.STRING, "läuft", 15, "läuft".encode()),
    ],
)
def test_values_stand_in_their_fields(datatype: int, value: sparkplug.Value, field: int, raw: int | bytes) -> None:
    payload = encode([Metric(datatype, value, "m", alias=7, timestamp_ms=1000)], 2000, 255)
    assert dict(fields(payload))[1] == 2000
    assert dict(fields(payload))[3] == 255
    (metric,) = metrics(payload)
    assert metric[1] == b"m"
    assert (metric[2], metric[3], metric[4]) == (7, 1000, datatype)
    assert metric[field] == raw


def test_a_death_has_no_seq() -> None:
    assert 3 not in dict(fields(encode([], 1, None)))


def test_units_travel_as_a_property() -> None:
    (metric,) = metrics(encode([Metric(sparkplug.FLOAT, 1.0, "current", unit="A")], None, 0))
    properties = metric[9]
    assert isinstance(properties, bytes)
    assert dict(fields(properties))[1] == b"engUnit"


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_harmless(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert rebirth_asked(data) in (True, False)


def test_rebirth_is_understood() -> None:
    yes = encode([Metric(sparkplug.BOOLEAN, True, "Node Control/Rebirth")], 1, None)
    no = encode([Metric(sparkplug.BOOLEAN, False, "Node Control/Rebirth")], 1, None)
    assert rebirth_asked(yes) and not rebirth_asked(no)


def test_births_come_first_and_seq_runs_over_all_messages() -> None:
    async def scenario() -> None:
        sent: list[tuple[str, bytes]] = []

        def publish(topic: str, payload: bytes) -> bool:
            sent.append((topic, payload))
            return True

        live = Live("plant", "line-1", 0.001, publish)
        will = live.will()
        live.sample(counted("press/power", 0, 3))
        live.start()
        live.sample(counted("press/power", 3, 3))
        while len(sent) < 3:
            await asyncio.sleep(0.001)
        live.command(encode([Metric(sparkplug.BOOLEAN, True, "Node Control/Rebirth")], 1, None))
        live.leave()
        kinds = [topic.split("/")[2] for topic, _ in sent]
        assert kinds == ["NBIRTH", "DBIRTH", "DDATA", "NBIRTH", "DBIRTH", "NDEATH"]
        assert [dict(fields(payload)).get(3) for _, payload in sent] == [0, 1, 2, 0, 1, None]
        assert sent[1][0] == "spBv1.0/plant/DBIRTH/line-1/press"
        born = {m[2]: m[1] for m in metrics(sent[1][1])}
        data = metrics(sent[2][1])
        assert [born[m[2]] for m in data] == [b"power/count", b"power/half"]
        assert all(1 not in m and 4 in m for m in data)  # alias only, and the datatype for npm's decoder
        birth = {m[1]: m for m in metrics(sent[0][1])}
        assert 2 not in birth[b"Node Control/Rebirth"]
        # the will, the birth and the death carry the same bdSeq
        values = {metrics(p)[0][11] for _, p in (sent[0], sent[-1])} | {metrics(will.payload)[0][11]}
        assert len(values) == 1
        assert metrics(live.will().payload)[0][11] == 1

    asyncio.run(asyncio.wait_for(scenario(), 10))
