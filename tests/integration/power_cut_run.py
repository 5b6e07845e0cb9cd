"""A spool at work, for `test_powercut`: commits, deliveries, packing, trimming and drops in one thread, under strace.

    python -m tests.integration.power_cut_run FOLDER COMMITS

After every commit it writes one line to FOLDER/acks: how far each stream is acknowledged, and confirmed.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
from pathlib import Path

from gateway.clock import Clock
from gateway.contract import BatchKind, Mark
from gateway.store import upkeep
from gateway.store.retention import Policy, Priority, Rule
from gateway.store.tables import Tables
from tests.unit.samples import counted

STREAM, LOW = "press/power", "press/noise"
MAX_BYTES = 1 << 20
POLICY = Policy((Rule(LOW, Priority.LOW), Rule(STREAM, Priority.HIGH)), drop=True)


def main() -> None:
    folder, commits = Path(sys.argv[1]), int(sys.argv[2])
    upkeep.COMMITS, upkeep.WAL_PAGES = 25, 120
    dice = random.Random(11)
    tables = Tables(folder / "spool.db", Clock(), MAX_BYTES, POLICY, ballast=64 << 10)
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    confirmed: dict[str, int] = {}
    for i in range(commits):
        following = tables.state.next_seq
        samples = {STREAM: [counted(STREAM, following.get(STREAM, 0), dice.randint(1, 60))]}
        rows = {(LOW, BatchKind.INFERENCES): [dice.randbytes(3000).hex().encode()]} if dice.random() < 0.5 else {}
        while True:
            try:
                tables.commit(samples, rows, {"press": Mark("press", 7, i)})
                break
            except sqlite3.OperationalError:
                if not tables.upkeep.make_room({"main": dict(confirmed)}, disk=False):
                    raise
        if dice.random() < 0.2:  # of the other stream almost nothing: it must be dropped
            confirmed[STREAM] = max(confirmed.get(STREAM, 0), tables.state.next_seq[STREAM] - dice.randint(0, 200))
        told = json.dumps({"next": tables.state.next_seq, "confirmed": confirmed, "mark": i})
        os.write(acks, told.encode() + b"\n")
        tables.after_commit({"main": dict(confirmed)})
    tables.upkeep.run({"main": dict(confirmed)})
    tables.close()


if __name__ == "__main__":
    main()
