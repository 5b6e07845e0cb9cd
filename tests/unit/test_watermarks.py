"""Several uplinks: the spool may forget only what every one of them has delivered."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Batch
from gateway.store.watermarks import Watermarks


class Disk:
    epoch, head = b"e" * 16, 0

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    async def read_after(self, batch_id: int) -> list[Batch]:
        return []

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        return 0

    def confirm(self, watermark: Mapping[str, int]) -> None:
        for stream, seq in watermark.items():
            self.known[stream] = max(seq, self.known.get(stream, 0))

    def confirmed(self) -> Mapping[str, int]:
        return dict(self.known)


WORDS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["s", "t"]), st.integers(0, 50)), max_size=30)


@given(WORDS)
def test_the_disk_never_knows_more_than_the_slowest(words: list[tuple[str, str, int]]) -> None:
    disk = Disk()
    watermarks = Watermarks(disk, ["a", "b"])
    highest: dict[tuple[str, str], int] = {}
    for name, stream, seq in words:
        watermarks.for_uplink(name).confirm({stream: seq})
        highest[name, stream] = max(seq, highest.get((name, stream), 0))
        for each in ("s", "t"):
            slowest = min(highest.get((who, each), 0) for who in "ab")
            assert disk.known.get(each, 0) == slowest
            assert watermarks.for_uplink(name).confirmed().get(each, 0) == highest.get((name, each), 0)


def test_alone_it_is_as_if_it_were_not_there() -> None:
    disk = Disk()
    disk.known = {"s": 5}
    (one,) = [Watermarks(disk, ["main"]).for_uplink("main")]
    assert one.confirmed() == {"s": 5}
    one.confirm({"s": 7, "new": 2})
    assert disk.known == {"s": 7, "new": 2}
