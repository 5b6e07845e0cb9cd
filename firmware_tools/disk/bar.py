"""Progress of a transfer: a bar on a terminal, a line every ten per cent elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_STEPS = 10
_BYTES = 1000  # a total above it is one of bytes, below it of steps or per cent


class _Amount(ProgressColumn):
    """How much, and how fast where it is bytes."""

    def render(self, task: Task) -> Text:
        total = task.total or 1.0
        if total <= _BYTES:
            return Text(f"{100 * task.completed / total:3.0f} %")
        speed = f"  {task.speed / 1e6:.0f} MB/s" if task.speed else ""
        return Text(f"{task.completed / 1e6:.0f}/{total / 1e6:.0f} MB{speed}")


class Bar:
    """Give its `progress` to what works: `(stage, done, total)`, in bytes, or in steps of at most 1000."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rich = Progress(
            TextColumn("{task.description:<10}"), BarColumn(), _Amount(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
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
            self._console.print(f"{stage}: {100 * step // _STEPS} %" + (f" of {total / 1e6:.0f} MB" * (total > _BYTES)))
