"""`octogate` on a machine that is said to have the image's installer: a simulation, for who receives and who hands over.

python -m tests.integration.installing run --config gateway.toml
"""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.__main__ import main
from gateway.sync import updates

if __name__ == "__main__":
    updates.INSTALLER = Path(__file__)
    sys.exit(main(sys.argv[1:]))
