"""The tree of errors: what is wrong, where, and what to do next.

    OctogateError
    ├── ConfigError      a setting is wrong: never retried, `octogate run` ends with status 2
    ├── SourceError      a sensor or camera is missing or talks nonsense: reopened with backoff
    │   └── LinkError    bytes on the wire that are not our node protocol, or of another version
    ├── ModelError       a bundle or a runtime is unusable: next candidate, or rolled back
    │   ├── DeadlineError    a worker gave no answer in time: it is killed and replaced
    │   └── OutputError  outputs that are no result: the runtime's fault, unless the golden samples still come out right
    ├── StoreError       the disk refused: acquisition waits, nothing is acknowledged
    │   └── DiskFullError    no room: the spool keeps what it has and retries
    ├── UplinkError      the broker is away or refused us: kept on disk, retried
    └── ControlError     the control socket: no daemon there, or it refused the request

Libraries raise; only `gateway.__main__` (and the sdk's own commands) turn them into an exit status.
"""

from __future__ import annotations


class OctogateError(Exception):
    """A fault with a name, and the next thing to do.

    Args:
        what: what is wrong and where, one line, with the names a user typed.
        hint: the next action, one line; empty when there is none.
    """

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class ConfigError(OctogateError):
    """A configuration cannot be used as it stands."""


class SourceError(OctogateError):
    """A source cannot be opened or read."""


class LinkError(SourceError):
    """The peer on a node link breaks the protocol."""


class ModelError(OctogateError):
    """A model bundle, or the runtime that should run it, is unusable."""


class DeadlineError(ModelError):
    """A worker did not answer before its deadline."""


class OutputError(ModelError):
    """A model's outputs do not fit its post steps, or are not finite."""


class StoreError(OctogateError):
    """The spool cannot be opened, read or written."""


class DiskFullError(StoreError):
    """There is no room for the next batch."""


class UplinkError(OctogateError):
    """The broker cannot be reached or refuses the connection."""


class ControlError(OctogateError):
    """The control socket cannot be reached, or the daemon refuses the request."""
