"""What a build shows while it works: each step with its time, a bar where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

STEPS = 12  # of the longest flow; a shorter one ends its bar early


@contextmanager
def shown(title: str) -> Iterator[Callable[[str, bool], None]]:
    """Gives what hears of each step: its name, and whether its result was there already."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console,
        redirect_stdout=True, transient=True,
    ) as progress:  # fmt: skip
        bar = progress.add_task(title, total=STEPS)
        last: list[tuple[str, float]] = []

        def finish() -> None:
            if last:
                step, began = last.pop()
                progress.console.print(f"  {step}: {time.monotonic() - began:.1f} s", highlight=False)

        def tell(step: str, was_kept: bool) -> None:
            finish()
            progress.update(bar, advance=1, description=f"{title}: {step}")
            if was_kept:
                progress.console.print(f"  {step}: kept from an earlier build", highlight=False)
            else:
                last.append((step, time.monotonic()))

        yield tell
        finish()
