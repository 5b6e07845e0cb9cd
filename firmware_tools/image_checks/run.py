"""Runs the checks of an image, in the order of their importance, and says what became of each."""

from __future__ import annotations

import enum
import inspect
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.image_checks import power, update, work
from firmware_tools.image_checks.bench import Bench, Check
from firmware_tools.image_checks.target import CannotError
from gateway.errors import OctogateError

# What is done on every push.
CHECKS: tuple[Check, ...] = (
    work.boots,
    work.reads,
    work.infers,
    work.syncs,
    work.starts_reading,
    power.survives_cuts,
    work.replugs,
    power.bears_an_early_clock,
    update.updates,
    update.refuses_a_stranger,
    update.comes_back_from_a_panic,
    update.comes_back_from_illness,
    power.is_reset_by_its_watchdog,
    work.sees,
    work.shows,
    work.flaps,
    work.sees_a_clock_step,
)
LONG_CHECKS = (*CHECKS, power.bears_a_late_clock)


class Word(enum.StrEnum):
    PASSED = "passed"
    FAILED = "FAILED"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Attributes:
        detail: what it found, why it failed, or why it was not run.
        seconds: how long it took.
        console: what the console said meanwhile.
    """

    name: str
    what: str
    word: Word
    detail: str
    seconds: float
    console: str = ""


def title(check: Check) -> str:
    """The check's docstring."""
    return inspect.getdoc(check) or ""


def named(names: Sequence[str], checks: Sequence[Check]) -> list[Check]:
    """The checks of these names, in their order; all of them for none.

    Raises:
        OctogateError: there is no such check.
    """
    known = {check.__name__.replace("_", "-"): check for check in checks}
    if unknown := [name for name in names if name not in known]:
        raise OctogateError(f"there is no check {', '.join(unknown)}", hint=f"there are: {', '.join(known)}")
    return [check for name, check in known.items() if not names or name in names]


def nobody(name: str) -> None:
    """Nobody is told."""


async def run(bench: Bench, checks: Sequence[Check], begun: Callable[[str], None] = nobody) -> AsyncIterator[Outcome]:
    """One after the other. After a failed one the target is brought back by force; if it cannot, the rest is not run.

    Args:
        begun: is told the name of each check that begins.
    """
    lost = ""
    for check in checks:
        name, what = check.__name__.replace("_", "-"), title(check)
        if lost:
            yield Outcome(name, what, Word.NOT_RUN, f"the gateway did not come back after {lost}", 0.0)
            continue
        begun(name)
        outcome = await _run_one(bench, check, name, what)
        yield outcome
        if outcome.word is Word.FAILED:
            try:
                await bench.recover()
            except (OctogateError, OSError, TimeoutError):
                lost = name


async def _run_one(bench: Bench, check: Check, name: str, what: str) -> Outcome:
    log = bench.target.console_log
    began, started = _size(log), time.monotonic()
    try:
        word, detail = Word.PASSED, await check(bench)
    except CannotError as error:
        word, detail = Word.NOT_RUN, str(error)
    except (OctogateError, OSError, TimeoutError) as error:
        word, detail = Word.FAILED, str(error) or type(error).__name__
    except (ExceptionGroup, LookupError, ValueError, TypeError) as error:  # an answer of another form than expected
        word, detail = Word.FAILED, repr(error)
    return Outcome(name, what, word, detail, time.monotonic() - started, _since(log, began))


def _size(log: Path | None) -> int:
    return log.stat().st_size if log and log.exists() else 0


def _since(log: Path | None, began: int) -> str:
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(began)
        return file.read().decode(errors="replace")
