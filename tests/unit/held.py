"""What this process holds open: for tests that say nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import threading


def descriptors() -> int:
    """How many file descriptors are open.

    What an earlier test left in a reference cycle is collected first: it would be closed at a moment of
    its own, between the two counts that a test compares.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def held() -> tuple[int, int, int]:
    """Descriptors, tasks of the running loop and threads."""
    return descriptors(), len(asyncio.all_tasks()), threading.active_count()
