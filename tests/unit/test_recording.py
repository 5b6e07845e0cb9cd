"""The recording's format and its writer: round trips, any cut, any damage, a full buffer, a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import recorder, recording
from gateway.contract import Stamp
from gateway.recorder import Recorder
from gateway.recording import (
    END,
    EVENT,
    HEARD,
    LOSS,
    LOST,
    MAGIC,
    FrameHead,
    Reading,
    Record,
    RecordingError,
    frame_body,
    meta_record,
    pack_block,
    parse_frame,
    unpack_block,
)  # fmt: skip
from tests.unit.recordings import BEGIN_NS, at, meta, write

ABOUT = meta(("press", "node"))

RECORDS = st.lists(
    st.builds(
        Record,
        st.integers(1, 8),
        st.just(0),
        st.integers(BEGIN_NS, BEGIN_NS + 10**12),
        st.binary(max_size=300),
    ),
    max_size=12,
)


@given(st.lists(RECORDS, max_size=4))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, blocks: list[list[Record]]) -> None:
    blocks = [block for block in blocks if block]
    path = write(tmp_path_factory.mktemp("r") / "x.octorec", ABOUT, *blocks)
    with Reading(path) as reading:
        assert reading.meta == ABOUT
        assert list(reading.records()) == [record for block in blocks for record in block]
        assert (reading.ended, reading.unread) == (False, 0)


def test_a_file_cut_anywhere_reads_up_to_its_last_whole_block(tmp_path: Path) -> None:
    blocks = [[at(k, HEARD, bytes([k]) * 40)] for k in range(3)] + [[at(3, END)]]
    whole = write(tmp_path / "whole", ABOUT, *blocks).read_bytes()
    ends, size = [], len(MAGIC) + len(pack_block([meta_record(ABOUT)]))
    for block in blocks:
        size += len(pack_block(block))
        ends.append(size)
    cut = tmp_path / "cut"
    for size in range(len(whole) - sum(map(len, map(pack_block, blocks))), len(whole) + 1):
        cut.write_bytes(whole[:size])
        with Reading(cut) as reading:
            found = list(reading.records())
            kept = [end for end in ends if end <= size]
            assert len(found) == min(3, len(kept)) and reading.ended is (size == len(whole))
            assert reading.unread == size - max(kept, default=ends[0] - len(pack_block(blocks[0])))


def test_a_file_cut_within_its_beginning_says_so(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", ABOUT).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(RecordingError):
            Reading(tmp_path / "cut")


def test_another_version_asks_for_an_update(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(MAGIC[:7] + b"\x02")
    with pytest.raises(RecordingError, match=r"version 2.*update"):
        Reading(tmp_path / "x")
    with pytest.raises(RecordingError, match="No such file"):
        Reading(tmp_path / "y")


@given(st.data())
def test_a_flipped_bit_ends_the_reading(data: st.DataObject) -> None:
    block = bytearray(pack_block([at(1, HEARD, b"some bytes of a node" * 4), at(2, HEARD, b"more")]))
    block[data.draw(st.integers(0, len(block) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert unpack_block(io.BytesIO(bytes(block))) == []


@given(st.binary(max_size=400))
def test_any_bytes_are_a_block_or_none(data: bytes) -> None:
    assert unpack_block(io.BytesIO(data)) == []
    assert unpack_block(io.BytesIO(b"OBLK" + data)) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    with contextlib.suppress(RecordingError):
        parse_frame(data)


def test_a_frame_comes_back(tmp_path: Path) -> None:
    head = FrameHead(3, Stamp("b", 1, None, 2), "image/png")
    assert parse_frame(frame_body(head, b"picture")) == (head, b"picture")


def test_a_record_of_another_time_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x", ABOUT, [at(40 * 86_400, HEARD)])
    with Reading(path) as reading, pytest.raises(RecordingError, match="from its begin"):
        list(reading.records())


def test_a_block_that_claims_too_much_is_not_unpacked() -> None:
    head = recording._BLOCK.pack(b"OBLK", recording.MAX_BLOCK + 1, 10, 0)
    assert unpack_block(io.BytesIO(head + bytes(10))) == []


def test_the_writer_writes_what_it_is_given(tmp_path: Path) -> None:
    counts: list[int] = []
    now = time.monotonic_ns()
    made = Recorder(tmp_path / "x", msgspec.structs.replace(ABOUT, mono_ns=now), counts.append)
    for k in range(500):
        assert made.put(HEARD, 0, b"x" * 4000, now + k)  # 2 MB: more than one block
    made.put(EVENT, 0, b"{}", now + 500)
    made.close()
    assert sum(counts) == 501 and len(counts) > 4 and made.bytes == (tmp_path / "x").stat().st_size
    with Reading(tmp_path / "x") as reading:
        assert len(list(reading.records())) == 501 and reading.ended
    with pytest.raises(RecordingError, match="choose a new name"):
        Recorder(tmp_path / "x", ABOUT)


def test_what_finds_no_room_is_counted_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BUFFER_BYTES", 1000)
    go = threading.Event()

    def slow(_: int) -> None:  # the disk takes META, and then its time
        go.wait(20)

    made = Recorder(tmp_path / "x", ABOUT, slow)
    taken = [made.put(HEARD, 0, b"x" * 300, BEGIN_NS + k) for k in range(10)]
    go.set()
    made.close()
    assert taken == [True] * 3 + [False] * 7 and made.lost == 7
    records = []
    file = io.BytesIO((tmp_path / "x").read_bytes()[len(MAGIC) :])
    while block := unpack_block(file):
        records += block
    [lost] = [record for record in records if record.kind == LOST]
    assert LOSS.unpack(lost.body) == (7, 2100) and records[-1].kind == END


def test_a_disk_that_takes_nothing_ends_the_recording_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordingError, match="check the folder"):
        Recorder(tmp_path / "no" / "x", ABOUT)
    monkeypatch.setattr(recorder, "BUFFER_BYTES", 1000)
    real = os.open
    monkeypatch.setattr(os, "open", lambda *_: real("/dev/full", os.O_WRONLY))
    made = Recorder(tmp_path / "x", ABOUT)
    while made.put(HEARD, 0, b"x" * 300, BEGIN_NS):
        pass
    made.close()
    assert "No space left" in made.error and made.lost > 0
