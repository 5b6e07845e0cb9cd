"""The [store] table of the config as the spool takes it."""

from __future__ import annotations

from typing import TypedDict

from gateway.config import StoreTable
from gateway.store.retention import Policy, Priority, Rule
from gateway.store.wear import DAY_NS


class SpoolSettings(TypedDict):
    """Keyword arguments of `Spool.open`."""

    commit_s: float
    durability_s: float
    max_bytes: int
    policy: Policy
    ballast_bytes: int
    card_tbw: float
    wear_day: float


def spool_settings(table: StoreTable, uplinks: tuple[str, ...]) -> SpoolSettings:
    """What the spool is opened with; `uplinks` are the names of those who must have a batch before it may go."""
    rules = tuple(
        Rule(rule.match, Priority[rule.priority.upper()], rule.keep_mib << 20, round(rule.keep_days * DAY_NS))
        for rule in table.stream
    )
    return SpoolSettings(
        commit_s=table.commit_ms / 1000,
        durability_s=table.durability_ms / 1000,
        max_bytes=table.max_mib << 20,
        policy=Policy(rules, table.when_full == "drop", uplinks),
        ballast_bytes=table.ballast_mib << 20,
        card_tbw=table.card_tbw,
        wear_day=table.wear_gb_day * 1e9,
    )
