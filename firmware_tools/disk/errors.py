"""What can go wrong with a disk image or the disk it goes to."""

from __future__ import annotations

from gateway.errors import OctogateError


class DiskError(OctogateError):
    """An image, its files or a target cannot be used; nothing was written, unless it is one of the next."""


class WriteError(DiskError):
    """Writing ended in the middle: the target has no partition table now, so nothing takes it for complete."""


class VerifyError(WriteError):
    """What the target gives back is not what was written."""
