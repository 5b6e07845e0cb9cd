"""A disk that is really full: SQLite can neither delete nor checkpoint on it, so the ballast has to."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.contract import BatchKind, Severity
from gateway.store.ledger import read_ledger
from gateway.store.retention import Policy, Priority, Rule
from gateway.store.spool import Spool
from tests.integration.machine import can_mount, small_disk

LOW, HIGH = "low", "high"
POLICY = Policy((Rule(LOW, Priority.LOW), Rule(HIGH, Priority.HIGH)), drop=True)


def fill(disk: Path) -> Path:
    """Somebody else's file takes what is left."""
    other = disk / "somebody-elses-file"
    with other.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            os.write(file.fileno(), b"x" * 4096)
    return other


@pytest.mark.skipif(not can_mount(), reason="mounts a small file system: needs root")
@pytest.mark.parametrize("policy", [POLICY, Policy()], ids=["drop", "wait"])
def test_on_a_full_disk_deleting_still_works(tmp_path: Path, policy: Policy) -> None:
    told: list[tuple[str, str]] = []

    def notify(name: str, state: str, severity: Severity, message: str) -> None:
        told.append((name, state))

    async def scenario(disk: Path) -> None:
        async with Spool.open(
            disk / "spool.db", Clock(), commit_s=0.001, max_bytes=64 << 20, notify=notify, policy=policy,
            ballast_bytes=1 << 20,
        ) as spool:  # fmt: skip
            for _ in range(100):
                await spool.append_row(LOW, BatchKind.INFERENCES, os.urandom(10_000).hex().encode())
            if not policy.drop:
                spool.confirm({LOW: 90})  # delivered: that may go
            fill(disk)
            for _ in range(150):
                done = spool.append_row(HIGH, BatchKind.INFERENCES, os.urandom(4000).hex().encode())
                async with asyncio.timeout(20):
                    await done
            assert spool.status().state == "ok"
            ledger = read_ledger(disk / "spool.db", policy.uplinks, check=True)
            assert ledger.whole
            assert {entry.stream for entry in ledger.dropped} == ({LOW} if policy.drop else set())
            assert ("store.full", "raised") not in told
            assert (("store.dropping", "raised") in told) == policy.drop

    with small_disk(tmp_path / "disk", 12) as disk:
        asyncio.run(scenario(disk))
    assert not told or told[0][0] == "store.dropping"


@pytest.mark.skipif(not can_mount(), reason="mounts a small file system: needs root")
def test_a_spool_opens_on_a_full_disk(tmp_path: Path) -> None:
    """As after a reboot: SQLite needs room for its log before it reads a byte, and the ballast is there for that."""

    async def scenario(path: Path) -> None:
        def open_() -> AbstractAsyncContextManager[Spool]:
            return Spool.open(
                path, Clock(), commit_s=0.001, max_bytes=8 << 20, notify=lambda *_: None, ballast_bytes=512 << 10
            )

        row = os.urandom(3000).hex().encode()
        async with open_() as spool:
            for _ in range(20):
                await spool.append_row(LOW, BatchKind.INFERENCES, row)
        fill(path.parent)
        async with open_() as spool:
            assert spool.next_seq() == {LOW: 20}
            async with asyncio.timeout(20):
                await spool.append_row(LOW, BatchKind.INFERENCES, row)
            assert len(await spool.read_after(0)) == 21

    with small_disk(tmp_path / "disk", 8) as disk:
        asyncio.run(scenario(disk / "spool.db"))
