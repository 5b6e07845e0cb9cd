"""Configs to begin with in tests: a gateway with a node and a folder of pictures, and how a wrong one is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ConfigError

PRESS_AND_DOCK = """
[gateway]
id = "line-1"
data_dir = "data"
[[source]]
kind = "node"
name = "press"
port = "/dev/null"
[[source]]
kind = "pictures"
name = "dock"
folder = "."
"""


def assert_refused(text: str, old: str, new: str, says: str, write: Callable[[str], Path]) -> None:
    """With `new` instead of `old` it is refused in one line, which names the file that `write` made and `says` why."""
    assert old in text
    path = write(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert re.search(says, message), message
    assert "\n" not in message
