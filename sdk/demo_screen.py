"""Where the demo's view goes: a live terminal, lines on stderr, or an SVG picture; and the summary at the end."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sdk.demo_summary import Summary
from sdk.demo_view import View

Screen = Callable[[View], None]
REFRESH_HZ = 4
PICTURE_WIDTH, PICTURE_HEIGHT = 108, 30
# rich's own format names a font on the network; this one takes what the reader has
SVG_FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" class="rich-terminal" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


@contextmanager
def rich_screen(_: View) -> Iterator[Screen]:
    """The whole terminal, until the block is left; drawn a few times a second."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:

        def show(view: View) -> None:
            live.update(view.render(console.width, console.height), refresh=True)

        yield show


@contextmanager
def plain_screen(_: View) -> Iterator[Screen]:
    """A line a second on stderr."""
    last = 0.0

    def show(view: View) -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            print(view.line(), file=sys.stderr, flush=True)

    yield show


def record(view: View, path: Path) -> None:
    """The view as an SVG picture."""
    console = Console(
        record=True, width=PICTURE_WIDTH, height=PICTURE_HEIGHT, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(view.render(PICTURE_WIDTH, PICTURE_HEIGHT))
    path.write_text(console.export_svg(title="./inv demo", code_format=SVG_FORMAT))


def show_summary(summary: Summary) -> None:
    """A table, and the verdict in one sentence."""
    table = Table(box=box.SIMPLE_HEAD, title="What the demo shows", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in _rows(summary):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(Text(summary.verdict(), "bold green" if summary.ok else "bold red"))


def _rows(s: Summary) -> Iterator[tuple[str, str]]:
    yield f"readings sent by the node ({s.node})", f"{s.sent:,}"
    yield "readings stored by the gateway", f"{s.stored:,}"
    yield "readings delivered to the consumer", f"{s.delivered:,}"
    yield "lost / duplicated / reordered", f"{s.lost:,} / {s.duplicated:,} / {s.reordered:,}"
    yield "broker away", f"{s.outage_s:.1f} s of {s.seconds:.0f} s"
    yield "inferences stored / delivered", f"{s.inferences:,} / {s.inferences_delivered:,}"
    yield "events stored / delivered", f"{s.events:,} / {s.events_delivered:,}"
    yield "batches sent twice and dropped by key", f"{s.repeats_dropped:,}"
    for name, (p50, p99) in s.models_ms.items():
        yield f"model {name}, p50 / p99", f"{p50:.1f} / {p99:.1f} ms"
    yield "reading to disk, p50 / p99", f"{s.commit_p50_ms:.1f} / {s.commit_p99_ms:.1f} ms"
    yield "workers restarted", f"{s.restarts:,}"
    yield "gateway's own process", f"{s.cpu_s:.1f} CPU s, {s.rss_mib:.0f} MiB"
