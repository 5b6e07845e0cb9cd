"""What a build shows while it works: each step with its time, a moving bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def shown(title: str, total: int | None = None) -> Iterator[Callable[[str, bool], None]]:
    """Gives what hears of each step: its name, and whether its result was there already. On standard error.

    Args:
        total: how many steps there will be; None when that is not known.
    """
    console = Console(stderr=True)
    began, done, kept = time.monotonic(), 0, 0
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console,
        redirect_stdout=True, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task(title, total=total)
        last: list[tuple[str, float]] = []

        def finish() -> None:
            if last:
                step, started = last.pop()
                progress.update(bar, advance=1)
                console.print(f"  {step}: {time.monotonic() - started:.1f} s", highlight=False)

        def tell(step: str, was_kept: bool) -> None:
            nonlocal done, kept
            finish()
            done, kept = done + 1, kept + was_kept
            progress.update(bar, description=f"{title}: {step}", advance=1 if was_kept else 0)
            if was_kept:
                console.print(f"  {step}: kept from an earlier build", highlight=False)
            else:
                last.append((step, time.monotonic()))

        yield tell
        finish()
    took = time.monotonic() - began
    console.print(
        f"{title}: {done} step{'s' * (done != 1)}, {kept} of them kept from earlier, {took:.1f} s", highlight=False
    )
