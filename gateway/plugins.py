"""Sources of third parties, found by entry points: docs/sources.md shows a whole one.

A package declares `[project.entry-points."octogate.sources"]` with `its-kind = "its.module:OBJECT"`, where OBJECT is a
`SourceKind`. A `[[source]]` table with `kind = "its-kind"` is then checked against the kind's own struct. Nothing is
looked up, let alone imported, while the config names only our own kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.clock import Clock
from gateway.contract import Mark, Source
from gateway.errors import ConfigError
from gateway.source_tables import PluginSource

GROUP = "octogate.sources"
OURS = ("name", "kind")  # keys of the table that the gateway reads itself


class Host(msgspec.Struct, frozen=True):
    """What the gateway gives a source of a third party.

    Attributes:
        clock: this machine's; readings are dated with its `mono_ns`.
        mark: how far the source is on disk, or None for a new one.
        path: makes a path of the config file absolute, from the file's own folder.
    """

    clock: Clock
    mark: Mark | None
    path: Callable[[str], Path]


class SourceKind(Protocol):
    """What an entry point names.

    Attributes:
        settings: the struct of the kind's table, without `name` and `kind`.
    """

    settings: type[msgspec.Struct]

    def make(self, name: str, settings: Any, host: Host) -> Source:
        """A source that does not run yet; called once at the start, must not block."""


def wrap(raw: list[Any], known: set[str]) -> list[Any]:
    """The file's source tables, with those of other kinds than `known` wrapped as `PluginSource`.

    A kind that nobody offers is left as it is, for the config's own check to name it.
    """
    return [_wrapped(table) if _is_foreign(table, known) else table for table in raw]


def _is_foreign(table: Any, known: set[str]) -> bool:
    kind = table.get("kind") if isinstance(table, dict) else None
    return isinstance(kind, str) and kind not in known and bool(_entry_points(kind))


def _wrapped(table: dict[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in table.items() if key not in OURS}
    own = {"name": table["name"]} if "name" in table else {}
    return {"kind": "plugin", **own, "of": table["kind"], "settings": settings}


def check(table: PluginSource) -> None:
    """Whether the package takes these settings.

    Raises:
        ConfigError: it cannot be used, or refuses them; names the package.
    """
    _load(table)


def make(table: PluginSource, host: Host) -> Source:
    """The source itself.

    Raises:
        ConfigError: the package cannot be used, refuses the settings, or makes something that is no source.
    """
    kind, settings, package = _load(table)
    source = kind.make(table.name, settings, host)
    if missing := [part for part in ("name", "run", "status") if not hasattr(source, part)]:
        raise ConfigError(
            f"source '{table.name}': package {package} made no source: no {', '.join(missing)}",
            hint="tell its authors: see gateway.contract.Source",
        )
    return source


def _load(table: PluginSource) -> tuple[SourceKind, msgspec.Struct, str]:
    """The kind, its checked settings, and the package that offers it."""
    offers = _entry_points(table.of)
    packages = sorted({_package(offer) for offer in offers})
    if len(packages) != 1:
        raise ConfigError(
            f"kind '{table.of}' is offered by {' and '.join(packages) or 'no installed package'}",
            hint="uninstall all but one" if packages else "install the package into the daemon's environment",
        )
    [package] = packages
    offer = offers[0]
    try:
        kind = offer.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"kind '{table.of}': package {package}: cannot load {offer.value}: {error}",
            hint="reinstall the package, or one that fits this version",
        ) from error
    struct = getattr(kind, "settings", None)
    if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)) or not callable(
        getattr(kind, "make", None)
    ):
        raise ConfigError(
            f"kind '{table.of}': package {package}: {offer.value} is no source kind: needs settings and make",
            hint="tell its authors: see gateway.plugins.SourceKind",
        )
    try:
        return kind, msgspec.convert(table.settings, struct), package
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"kind '{table.of}': package {package}: {error}", hint="see the package's own docs"
        ) from error


def _entry_points(kind: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=GROUP, name=kind))


def _package(offer: metadata.EntryPoint) -> str:
    return f"{offer.dist.name} {offer.dist.version}" if offer.dist else offer.value
