"""The receiver of the backlog plane: many gateways into SQLite or PostgreSQL, each reading exactly once.

    async with Ingest.open(Path("readings.db"), port=1883) as ingest:
        ...

`octogate-ingest` is the same as a program; docs/ingest.md explains both.
"""

from sdk.ingest.batches import Counts
from sdk.ingest.broker import Account
from sdk.ingest.consumer import Ingest

__all__ = ["Account", "Counts", "Ingest", "main"]


def main() -> int:
    """`octogate-ingest`."""
    from sdk.ingest.__main__ import main as program

    return program()
