"""Rows that were committed before their gateway knew the time are dated when it does: over SQLite, and in itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import UNDISCIPLINED_NS, UNKNOWN_BOOT
from gateway.contract import BatchKind
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header, read_header
from sdk.ingest.batches import MAX_NAME, Arrived, Counts, arrived
from sdk.ingest.dating import MAX_MONO_NS, MAX_OFFSET_NS, Trust, best, nameable, offset, trust
from sdk.ingest.store import Table
from tests.unit.dating_samples import ERROR_NS, NTP, RTC, TRUE_NS, UNKNOWN, Moment, any_dating, event, header, readings
from tests.unit.ingest_samples import STREAM
from tests.unit.test_ingest import opened, query

MS = 1_000_000


def played(path: Path, scenario: Callable[[Table], Awaitable[None]]) -> None:
    async def within() -> None:
        async with opened(path) as (_, table):
            await scenario(table)

    asyncio.run(within())


async def dated(table: Table) -> int:
    """Date all there is to date; in how many steps."""
    steps = 0
    while await table.dating.step():
        steps += 1
    return steps


def walls(path: Path, view: str = f"v_{STREAM}") -> list[int | None]:
    return [wall for (wall,) in query(path, f'SELECT wall_ns FROM "{view}" ORDER BY seq')]  # type: ignore[misc]


def waiting(path: Path) -> list[tuple[object, ...]]:
    return query(path, "SELECT trust, seq_first, seq_end, boot FROM undated ORDER BY seq_first")


def test_rows_are_dated_when_the_clock_becomes_known_even_by_another_stream(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def scenario(table: Table) -> None:
        await table.take([readings(0, 10, UNKNOWN), readings(10, 10, UNKNOWN)], Counts())
        assert await dated(table) == 0
        assert walls(path) == [None] * 20
        assert waiting(path) == [(0, 0, 20, "boot-a")]
        await table.take([event(0, NTP)], Counts())
        await dated(table)
        assert walls(path) == [TRUE_NS + i * MS for i in range(20)]
        assert waiting(path) == []
        await table.take([readings(20, 5, NTP)], Counts())
        assert waiting(path) == []

    played(path, scenario)


def test_a_word_is_replaced_by_a_kept_clock_but_not_by_another_word(tmp_path: Path) -> None:
    path, other = tmp_path / "c.db", Moment(TRUE_NS + 77)

    async def scenario(table: Table) -> None:
        await table.take([readings(0, 3, UNKNOWN), readings(3, 3, RTC)], Counts())
        await dated(table)
        assert RTC.offset_ns is not None
        assert walls(path) == [RTC.offset_ns + i * MS for i in range(6)]
        await table.take([readings(6, 3, other)], Counts())  # somebody has set it by hand: nobody knows who is right
        await dated(table)
        assert walls(path)[3:] == [RTC.offset_ns + i * MS for i in (3, 4, 5)] + [
            TRUE_NS + 77 + i * MS for i in (6, 7, 8)
        ]
        assert waiting(path) == [(1, 0, 3, "boot-a"), (1, 3, 9, "boot-a")]
        await table.take([readings(9, 1, NTP)], Counts())
        await dated(table)
        assert walls(path) == [TRUE_NS + i * MS for i in range(10)]
        # what is dated by a kept clock stays as it is, whatever comes
        await table.take([readings(10, 1, Moment(TRUE_NS + 10**9, 1))], Counts())
        assert await dated(table) == 0
        assert walls(path)[:10] == [TRUE_NS + i * MS for i in range(10)]

    played(path, scenario)


def test_another_boot_or_another_gateway_is_dated_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def scenario(table: Table) -> None:
        nobody = replace(UNKNOWN, boot=UNKNOWN_BOOT)
        await table.take([readings(0, 2, replace(UNKNOWN, boot="boot-z")), readings(2, 2, UNKNOWN)], Counts())
        await table.take([readings(0, 2, UNKNOWN, gateway="g2")], Counts())
        await table.take([readings(4, 2, nobody), readings(6, 1, replace(NTP, boot=UNKNOWN_BOOT))], Counts())
        await table.take([readings(7, 1, NTP)], Counts())
        await dated(table)
        rows = query(path, f'SELECT gateway, wall_ns IS NULL FROM "v_{STREAM}" ORDER BY gateway, seq')
        assert rows == [("g1", null) for null in (1, 1, 0, 0, 1, 1, 0, 0)] + [("g2", 1)] * 2

    played(path, scenario)


def test_events_get_their_own_time_in_the_view_and_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def scenario(table: Table) -> None:
        await table.take([event(0, UNKNOWN), event(1, RTC), event(2, NTP, stamped=UNKNOWN), event(3, NTP)], Counts())
        await dated(table)
        assert walls(path, "v_event") == [TRUE_NS + i * MS for i in range(4)]
        texts = query(path, "SELECT value FROM reading ORDER BY seq")
        assert '"wall_ns":null' in str(texts[0][0])  # what the gateway said stays what it said

    played(path, scenario)


def test_text_that_is_no_event_is_left_alone(tmp_path: Path) -> None:
    path, codec = tmp_path / "c.db", Codec()

    def row(first: int, text: bytes) -> Arrived:
        head = header(first, 1, BatchKind.EVENTS, UNKNOWN, "events")
        return Arrived("g1", head, codec.encode_rows(head, [text]))

    texts = [
        b"{", b"[]", b"7", b'{"stamp":5}', b'{"stamp":{"boot":"boot-a","mono_ns":"x"}}',
        b'{"stamp":{"boot":"boot-a","mono_ns":%d}}' % (MAX_MONO_NS + 1), b'{"stamp":{"boot":"other","mono_ns":5}}',
        b'{"stamp":{"boot":"boot-a","mono_ns":5}}',
    ]  # fmt: skip

    async def scenario(table: Table) -> None:
        await table.take([row(i, text) for i, text in enumerate(texts)], Counts())
        await table.take([readings(0, 1, NTP)], Counts())
        await dated(table)
        found = query(
            path, "SELECT r.wall_ns FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = 'events'"
        )
        assert found == [(None,)] * 7 + [(TRUE_NS + 5,)]

    played(path, scenario)


def test_a_long_run_is_dated_in_steps_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    monkeypatch.setattr("sdk.ingest.dating.STEP_ROWS", 7)

    async def begin(table: Table) -> None:
        await table.take([readings(0, 30, UNKNOWN), readings(30, 1, RTC), readings(31, 1, NTP)], Counts())
        assert await table.dating.step()
        assert [wall is None for wall in walls(path)] == [False] * 7 + [True] * 23 + [False, False]

    async def go_on(table: Table) -> None:
        assert await dated(table) == 5  # 23 rows of the first run, one of the second
        assert walls(path) == [TRUE_NS + i * MS for i in range(32)]

    played(path, begin)
    played(path, go_on)


def test_what_could_not_be_committed_has_taught_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.db"

    async def scenario(table: Table) -> None:
        await table.take([readings(0, 5, UNKNOWN)], Counts())

        async def refuse(_: object) -> None:
            raise StoreError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(table.sink, "saw", refuse)
            with pytest.raises(StoreError):
                await table.take([event(0, NTP)], Counts())
        assert await dated(table) == 0 and walls(path) == [None] * 5
        await table.take([event(0, NTP)], Counts())
        await dated(table)
        assert walls(path) == [TRUE_NS + i * MS for i in range(5)]

    played(path, scenario)


@pytest.mark.parametrize("seed", range(8))
def test_any_history_ends_with_true_dates(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "c.db"

    async def scenario(table: Table) -> None:
        async def shown() -> dict[int, int | None]:
            return {i: None if wall is None else wall // MS for i, wall in enumerate(walls(path))}

        await any_dating(table.sink, random.Random(seed), shown)

    played(path, scenario)


# --- what a header says ------------------------------------------------------------------------------------------

numbers = st.integers(-(1 << 63), (1 << 64) - 1)


@given(st.none() | numbers, numbers, st.text(max_size=MAX_NAME + 5))
def test_whatever_a_header_says_is_bounded(offset_ns: int | None, error_ns: int, boot: str) -> None:
    head = Header(bytes(16), STREAM, 0, 1, BatchKind.EVENTS, "", boot, offset_ns, error_ns)
    blob = Codec().encode_rows(head, [b"{}"])
    batch = arrived(f"octo/v1/g1/up/{STREAM}", blob, "octo/v1")
    assert read_header(blob)[0] == batch.header
    said = offset("g1", batch.header)
    assert (said is None) == (trust(batch.header) is Trust.NONE or not nameable(boot))
    if said is not None:
        assert 0 <= said.offset_ns < MAX_OFFSET_NS and MAX_MONO_NS + said.offset_ns < 1 << 63
        assert 0 <= said.error_ns <= UNDISCIPLINED_NS
        assert (said.trust is Trust.KEPT) == (0 <= error_ns < UNDISCIPLINED_NS)


@given(st.lists(st.tuples(st.sampled_from([UNKNOWN, RTC, NTP]), st.integers(1, 5)), max_size=20))
def test_the_best_word_of_a_boot_counts_wherever_it_stands(said: list[tuple[Moment, int]]) -> None:
    batches = [readings(0, 1, replace(moment, error_ns=moment.error_ns * k)) for moment, k in said]
    found = best(batches)
    kept = [k for moment, k in said if moment is NTP]
    if kept:
        assert found["g1", "boot-a"].error_ns == ERROR_NS * min(kept)
        assert found["g1", "boot-a"].offset_ns == TRUE_NS
    else:
        assert bool(found) == any(moment is RTC for moment, _ in said)
