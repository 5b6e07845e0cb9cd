"""The `[[source]]` tables beside those of `gateway.config`: what a third party's package reads."""

from __future__ import annotations

from typing import Any

from gateway.tables import Name, Table


class PluginSource(Table, frozen=True, tag_field="kind", tag="plugin"):
    """A source of an installed package; `gateway.plugins` makes it from a table whose kind is not one of ours.

    So the union of the tables is the same on every machine, whatever is installed there.
    """

    name: Name
    of: str  # the kind that the file says, an entry point of the group `octogate.sources`
    settings: dict[str, Any]  # all other keys, as the file has them
