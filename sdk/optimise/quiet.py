"""Converters talk: of themselves, of what they miss, of every step. None of it is a user's business."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without warnings, Python's standard output, and what these loggers say below an error."""
    for name, value in (("TF_CPP_MIN_LOG_LEVEL", "3"), ("TQDM_DISABLE", "1")):
        os.environ.setdefault(name, value)
    levels = {name: logging.getLogger(name).level for name in ("absl", "root", *loggers)}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def last_line(error: BaseException) -> str:
    """What an exception of a converter says at its end: the rest is its own stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
