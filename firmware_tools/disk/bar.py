"""Progress of a transfer: a bar on a terminal, a line every ten per cent elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_STEPS = 10


class Bar:
    """Give its `progress` to what works: `(stage, done, total)`, in bytes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rich = Progress(
            TextColumn("{task.description:<10}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> Bar:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._rich.add_task(stage, total=total)
            self._rich.update(self._tasks[stage], completed=done, total=total)
            return
        step = _STEPS * done // max(total, 1)
        if step > self._told.get(stage, 0):
            self._told[stage] = step
            self._console.print(f"{stage}: {100 * step // _STEPS} % of {total / 1e6:.0f} MB")
