"""Updates of the whole machine that come in blocks. The gateway only receives them: who installs is root's own service.

A whole update is handed over by a rename to `install.raucb`; a path unit of the image watches for it, RAUC believes it by
its signature only, and the outcome stands in a file that this process can read and not write. Calls block.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gateway.command import BundlePutArgs, Have, UpdateState
from gateway.errors import ControlError
from gateway.sync.blocks import Bundles, explained

INSTALLER = Path("/usr/lib/octogate/update.py")  # of the image
OUTCOME = Path("/run/octogate-update/update.json")
HANDED_OVER = "install.raucb"
_MAX_OUTCOME = 4096


class Updates:
    """The folder of updates on their way.

    Args:
        installer: who has to be there for an update to be installed at all; the image's if None.
        outcome: where that one writes what became of it; the image's if None.
    """

    def __init__(self, folder: Path, installer: Path | None = None, outcome: Path | None = None) -> None:
        self._folder = folder
        self._installer, self._outcome = installer or INSTALLER, outcome or OUTCOME
        self._files = Bundles(folder, ".raucb")

    def put(self, block: BundlePutArgs) -> Have:
        """Take one block; see `Bundles.put`. ControlError: nobody on this machine could install it."""
        self._installable()
        return self._files.put(block)

    def install(self, sha256: str) -> UpdateState:
        """Hand a whole update over; the machine starts anew when it is installed.

        Raises:
            ControlError: it is not here, or another is being installed.
            StoreError: the disk refused.
        """
        self._installable()
        with explained(self._folder):
            whole, handed_over = self._files.path(sha256), self._folder / HANDED_OVER
            if handed_over.exists():
                raise ControlError("an update is being installed already", hint="update.status says how it went")
            if not whole.exists():
                raise ControlError(f"no update {sha256[:12]} was sent here", hint="update.put first")
            whole.rename(handed_over)
            fd = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return UpdateState("installing")

    def state(self) -> UpdateState:
        """What became of the last update since this machine started."""
        if (self._folder / HANDED_OVER).exists():
            return UpdateState("installing")
        try:
            with self._outcome.open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_OUTCOME), type=UpdateState)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return UpdateState("none")

    def _installable(self) -> None:
        if not self._installer.exists():
            raise ControlError("this machine does not run Octogate's image", hint="update its packages instead")
