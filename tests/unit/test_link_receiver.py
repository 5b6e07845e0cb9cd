"""Go-back-N, unwrapping and the node's clock: docs/link.md, sections 5 to 7."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Channel, Sample, Schema
from gateway.errors import LinkError
from gateway.link import messages
from gateway.link.messages import Data, Hello, NodeStream, Pong, Resume
from gateway.link.nodeclock import DRIFT_PPM, NodeClock, NotBackwards
from gateway.link.receiver import Receiver

COUNTER = NodeStream(0, "count", (("n", "I", "1"),))
OTHER = NodeStream(1, "other", (("t", "d", "s"),))
OFFSET = 10**12


def hello(*streams: NodeStream, session: int = 7) -> Hello:
    return Hello((1,), "n", session, "0", 0, 0, 0, streams or (COUNTER,))


def started(expected: int = 0, us: int = 0, *streams: NodeStream) -> Receiver:
    receiver = Receiver("press")
    receiver.start(hello(*streams), expected)
    assert receiver.feed(messages.encode(Resume(expected, us, 0, 0)), OFFSET) == []
    receiver.messages.clear()
    return receiver


def data(seq: int, n: int = 1, us: int | None = None, first: int | None = None, step: int = 10) -> bytes:
    """Frame `seq` with n readings of the counter, which count on from `first`."""
    first = seq * n if first is None else first
    records = array("I", range(first, first + n)).tobytes()
    return messages.encode(Data(0, step, records), seq, seq * 100 if us is None else us)


def values(samples: list[Sample]) -> list[int]:
    return [value for sample in samples for value in array("I", sample.data)]


@pytest.mark.parametrize("frames", [1, 3, 40])
@pytest.mark.parametrize("n", [1, 50])
def test_a_chunk_of_one_stream_is_one_sample(frames: int, n: int) -> None:
    receiver = started()
    [sample] = receiver.feed(b"".join(data(k, n) for k in range(frames)), OFFSET)
    assert (sample.stream, sample.n) == ("press/count", frames * n)
    assert list(sample.firsts) == [OFFSET + k * 100_000 for k in range(frames)]
    assert list(sample.steps) == [10_000] * frames and list(sample.counts) == [n] * frames
    assert values([sample]) == list(range(frames * n))
    assert (receiver.expected, receiver.frames, receiver.readings) == (frames, frames, frames * n)


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 50),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1), st.integers(-1000, 1 << 30)), min_size=1, max_size=60),
    st.integers(1, 500),
)
def test_columns_and_single_steps_agree(start: int, us: int, frames: list[tuple[int, int, int]], chunk: int) -> None:
    """Any mixture of streams, sizes and times, through any chunks: the same readings at the same times."""
    wire, now = b"", us
    expected: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    for k, (n, stream, gap) in enumerate(frames):
        now = max(0, now + gap)
        records = struct.pack("<2I", k, n) * n if stream == 0 else struct.pack("<d", k) * n
        wire += messages.encode(Data(stream, n * 1000, records), start + k, now)
        expected[stream].append((now * 1000 + OFFSET, records))
    receiver = started(start, us, COUNTER, OTHER)
    got: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    for at in range(0, len(wire), chunk):
        for sample in receiver.feed(wire[at : at + chunk], OFFSET):
            size, offset = sample.schema.record_size, 0
            for first, count in zip(sample.firsts, sample.counts, strict=True):
                records = sample.data[offset : offset + size * count]
                got[int(sample.stream == "press/other")].append((first, records))
                offset += size * count
            assert offset == len(sample.data)
    assert got == expected
    assert (receiver.expected, receiver.bad, receiver.gaps) == (start + len(frames), 0, 0)


@pytest.mark.parametrize("start", [0xFFFF - 20, 3 * 65536 - 1, 65536])
def test_seq_unwraps(start: int) -> None:
    receiver = started(start)
    samples = receiver.feed(b"".join(data(start + k, first=k) for k in range(60)), OFFSET)
    assert values(samples) == list(range(60)) and receiver.expected == start + 60


@pytest.mark.parametrize("wrap", [1 << 32, 7 << 32])
def test_ticks_unwrap_within_and_between_chunks(wrap: int) -> None:
    receiver = started(0, wrap - 2000)
    samples = receiver.feed(b"".join(data(k, us=wrap - 2000 + k * 100) for k in range(40)), 0)
    samples += receiver.feed(b"".join(data(k, us=wrap - 2000 + k * 100) for k in range(40, 50)), 0)
    assert [t for s in samples for t in s.firsts] == [(wrap - 2000 + k * 100) * 1000 for k in range(50)]


def test_a_caught_up_pong_keeps_ticks_right_over_long_silence() -> None:
    receiver, hour = started(), 3_600_000_000
    for k in range(1, 4):  # three hours with no reading: ticks wrap twice
        receiver.feed(messages.encode(Pong(k, k * hour // 2, 0)), 0)
    [sample] = receiver.feed(data(0, us=3 * hour // 2 + 5), 0)
    assert sample.firsts[0] == (3 * hour // 2 + 5) * 1000


def test_after_a_gap_nothing_is_taken_until_it_is_closed() -> None:
    receiver = started()
    assert values(receiver.feed(data(0) + data(2) + data(3), OFFSET)) == [0]
    assert (receiver.gap, receiver.gaps) == (True, 1)
    assert receiver.feed(b"".join(data(k) for k in range(4, 20)), OFFSET) == []
    assert (receiver.gaps, receiver.expected) == (1, 1)
    again = messages.encode(Resume(1, 100, 0, 0)) + b"".join(data(k) for k in range(1, 20))
    assert values(receiver.feed(again, OFFSET)) == list(range(1, 20))
    assert (receiver.gap, receiver.resent, receiver.lost) == (False, 0, 0)


def test_what_comes_twice_is_dropped_and_counted() -> None:
    receiver = started()
    wire = b"".join(data(k) for k in range(10))
    assert len(values(receiver.feed(wire + wire, OFFSET))) == 10
    assert receiver.resent == 10 and not receiver.gap


@pytest.mark.parametrize(
    ("lost_frames", "lost_readings", "expected"), [(5, 50, 50), (10, 100, 50), (3, 30, 30)], ids=str
)
def test_an_overrun_is_counted_exactly(lost_frames: int, lost_readings: int, expected: int) -> None:
    receiver = started(5)
    receiver.feed(messages.encode(Resume(10, 1000, lost_frames, lost_readings)), OFFSET)
    [told] = receiver.messages
    assert isinstance(told, Resume) and told.lost_readings == expected == receiver.lost
    assert values(receiver.feed(data(10), OFFSET)) == [10]


def test_the_answer_to_an_older_nak_changes_nothing() -> None:
    receiver = started(10)
    receiver.feed(messages.encode(Resume(4, 1000, 9, 90)), OFFSET)
    assert (receiver.expected, receiver.lost) == (10, 0)


def test_data_counts_only_after_resume() -> None:
    receiver = Receiver("press")
    receiver.start(hello(), 0)
    assert receiver.feed(b"".join(data(k) for k in range(9)), OFFSET) == []
    assert (receiver.resent, receiver.gaps, receiver.expected) == (0, 0, 0)


def test_a_hello_of_another_session_ends_the_data() -> None:
    receiver = started()
    wire = data(0) + messages.encode(hello(session=8)) + data(1)
    assert values(receiver.feed(wire, OFFSET)) == [0]
    assert isinstance(receiver.messages[0], Hello) and not receiver.ready


def test_a_frame_that_makes_no_sense_is_passed_over() -> None:
    receiver = started()
    wire = data(0) + messages.encode(Data(0, 1, b"12345"), 1) + messages.encode(Data(9, 1, b"1234"), 2) + data(3)
    assert values(receiver.feed(wire, OFFSET)) == [0, 3]
    assert receiver.bad == 2 and len(receiver.faults) == 2


def test_two_streams_of_one_name_are_refused() -> None:
    with pytest.raises(LinkError, match="two streams"):
        Receiver("press").start(hello(COUNTER, NodeStream(1, "count", (("n", "I", ""),))), 0)


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(0, 5_000_000)), min_size=1, max_size=30))
def test_the_true_offset_lies_in_the_uncertainty(trips: list[tuple[int, int]]) -> None:
    """Whatever way and back take (ns), with a crystal that drifts by half of what is allowed for."""
    clock, true, now = NodeClock(), 5 * 10**9, 10**12
    rate = 1 + DRIFT_PPM / 2 * 1e-6

    def node_us(at: int) -> int:
        return int(((at - 10**12) * rate + 10**12 - true) // 1000)

    clock.start(node_us(now), now)
    for out, back in trips:
        now += 10**9
        nonce = clock.ping(now)
        us = node_us(now + out)
        now += out + back
        assert clock.pong(nonce, us, now)
    wrong = node_us(now) * 1000 + clock.offset_ns - now
    assert abs(wrong) <= clock.uncertainty_ns(now) + 2000


def test_an_unasked_pong_is_ignored() -> None:
    clock = NodeClock()
    clock.start(0, 0)
    assert not clock.pong(99, 5, 10)
    nonces = [clock.ping(k) for k in range(20)]
    assert not clock.pong(nonces[0], 5, 30) and clock.pong(nonces[-1], 5, 30)


@given(st.lists(st.tuples(st.integers(-(10**7), 10**7), st.integers(1, 6)), max_size=20), st.integers(-(10**7), 10**7))
def test_a_corrected_offset_takes_no_time_back(chunks: list[tuple[int, int]], before: int) -> None:
    """Frames of ten readings 2 ms apart, whose offset is corrected by up to 10 ms at every chunk."""
    start, frame_ns, step_ns = 10**12, 20_000_000, 2_000_000
    times = NotBackwards({"s": start + before})
    schema, at, last, late = Schema((Channel("n", "B"),)), start, start + before, 0
    for offset, frames in chunks:
        true = [at + i * frame_ns for i in range(frames)]
        firsts = array("q", [first + offset for first in true])
        sample = Sample(
            "s", schema, firsts, array("q", [step_ns] * frames), array("H", [10] * frames), bytes(10 * frames)
        )
        times.keep(sample)
        for first, own in zip(sample.firsts, true, strict=True):
            assert first >= last
            last, late = first + 9 * step_ns, max(late, first - own)
        at += frames * frame_ns
    assert late <= 2 * 10**7, "no later than the worst of the offsets said"


def test_a_real_jump_back_is_left_as_it_is() -> None:
    times = NotBackwards({"s": 10**12})
    sample = Sample("s", Schema((Channel("n", "B"),)), array("q", [10**11]), array("q", [0]), array("H", [1]), b"x")
    times.keep(sample)
    times.keep(sample)
    assert sample.firsts[0] == 10**11
