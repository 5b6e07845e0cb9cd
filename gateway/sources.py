"""Makes the sources that the config names. Each kind is imported when a table asks for it, not before."""

from __future__ import annotations

import msgspec

from gateway.clock import Clock
from gateway.config import Config, NodeSource, SourceTable
from gateway.contract import Mark, Source
from gateway.source_tables import PluginSource


def make_source(table: SourceTable, config: Config, mark: Mark | None, clock: Clock) -> Source:
    """The source of one table; it does not run yet.

    Raises:
        ConfigError: what it needs is not installed, or a third party's package cannot be used.
    """
    if isinstance(table, PluginSource):
        from gateway import plugins

        return plugins.make(table, plugins.Host(clock, mark, config.path))
    if isinstance(table, NodeSource):
        from gateway.acquire.node import NodeSource as Node

        return Node(msgspec.structs.replace(table, port=_port(config, table.port)), mark, clock)
    from gateway.acquire.replay import PictureReplay

    return PictureReplay(table, config.path(table.folder), clock)


def _port(config: Config, port: str) -> str:
    """A path from the config's folder; anything else that a port may be (a URL) as it is."""
    return port if "://" in port else str(config.path(port))
