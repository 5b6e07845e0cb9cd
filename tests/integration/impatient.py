"""`octogate` that misses a consumer's word after a second in place of half a minute.

python -m tests.integration.impatient run --config gateway.toml
"""

from __future__ import annotations

import sys

from gateway.__main__ import main
from gateway.sync import backlog

if __name__ == "__main__":
    backlog.SILENCE_S = 1.0
    sys.exit(main(sys.argv[1:]))
