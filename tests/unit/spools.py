"""A spool's tables driven by hand, with a clock that does what the test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gateway.clock import NOT_BEFORE_NS, UNDISCIPLINED_NS, Clock
from gateway.contract import Batch, BatchKind
from gateway.store.columns import Codec, expand
from gateway.store.ledger import Ledger, read_ledger
from gateway.store.retention import Policy
from gateway.store.tables import Tables
from tests.unit.samples import counted

DAY = 86_400 * 10**9
YEAR = 365 * DAY


@dataclass
class Times:
    """Monotonic and wall time of a machine, moved by the test; `error` as the kernel would say."""

    mono: int = 10**12
    wall: int = NOT_BEFORE_NS + 30 * DAY
    error: int = 10**6
    boot: str = "boot-1"

    def clock(self) -> Clock:
        return Clock(mono=lambda: self.mono, wall=lambda: self.wall, error=lambda: self.error, boot=self.boot)

    def wait(self, ns: int) -> None:
        """Time passes."""
        self.mono += ns
        self.wall += ns

    def reboot(self, name: str) -> None:
        """Monotonic time begins anew; the wall clock is what the RTC says: nothing."""
        self.boot, self.mono, self.wall, self.error = name, 5 * 10**9, 0, UNDISCIPLINED_NS


@dataclass
class Bench:
    """`Tables` with what an uplink has confirmed."""

    path: Path
    times: Times = field(default_factory=Times)
    policy: Policy = field(default_factory=Policy)
    max_bytes: int = 1 << 20
    confirmed: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.tables = Tables(self.path, self.times.clock(), self.max_bytes, self.policy)
        self.confirmed = {uplink: dict(seqs) for uplink, seqs in self.tables.state.confirmed.items()}

    def again(self) -> None:
        """Close without a last word, as a kill would, and open."""
        self.tables.close()
        self.open()

    def readings(self, stream: str, n: int) -> None:
        """Take `n` readings, numbered as their sequence; they come 5 ms apart and end now."""
        first = self.tables.state.next_seq.get(stream, 0)
        sample = counted(stream, first, n)
        sample.firsts[0] = self.times.mono - n * 5_000_000
        self.commit(stream, sample)

    def commit(self, stream: str, sample: object) -> None:
        self.tables.commit({stream: [sample]}, {}, {})  # type: ignore[list-item]
        self.tables.after_commit(self.confirmed)

    def row(self, stream: str, text: bytes, kind: BatchKind = BatchKind.EVENTS) -> None:
        self.tables.commit({}, {(stream, kind): [text]}, {})
        self.tables.after_commit(self.confirmed)

    def deliver(self, stream: str, seq: int, uplink: str = "main") -> None:
        self.confirmed.setdefault(uplink, {})[stream] = seq

    def upkeep(self) -> None:
        self.tables.upkeep.run(self.confirmed)

    def batches(self, stream: str) -> list[Batch]:
        return [batch for batch in self.tables.read_after(0, 1 << 30) if batch.stream == stream]

    def numbers(self, stream: str) -> list[int]:
        """Every reading in the spool, by its own number; gaps are left out."""
        codec, found = Codec(), []
        for batch in self.batches(stream):
            if codec.check(batch.blob).kind is not BatchKind.GAP:
                found += [int(values[0]) for _, values in expand(codec.decode_samples(batch.blob)[1])]
        return found

    def ledger(self) -> Ledger:
        return read_ledger(self.path, self.policy.uplinks, check=True)
