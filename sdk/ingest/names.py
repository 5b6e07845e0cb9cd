"""Wide views: how streams and channels become names and types of SQL. Names come from outside, so all are quoted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gateway.contract import Schema

MAX_IDENTIFIER = 60  # bytes; PostgreSQL cuts at 63 without a word
OWN_COLUMNS = ("gateway", "epoch", "seq", "at", "mono_ns", "wall_ns")


def identifier(name: str) -> str:
    """A name quoted for SQL, whatever it holds."""
    return '"' + name.replace("\0", "").replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text quoted for SQL: for views, which take no parameters."""
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def shortened(name: str) -> str:
    """A name of at most MAX_IDENTIFIER bytes; a digest keeps cut ones apart."""
    raw = name.encode()
    if len(raw) <= MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return raw[: MAX_IDENTIFIER - 9].decode(errors="ignore") + "~" + digest


def distinct(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names, each made unlike the others and unlike those taken; letter case does not tell names apart."""
    seen = {name.lower() for name in taken}
    result = []
    for name in names:
        candidate, number = shortened(name), 1
        while candidate.lower() in seen:
            number += 1
            candidate = shortened(f"{name} ({number})")
        seen.add(candidate.lower())
        result.append(candidate)
    return result


def column_names(schema: Schema) -> list[str]:
    """The columns of a stream's view, one a channel."""
    return distinct([channel.name for channel in schema.channels], OWN_COLUMNS)
