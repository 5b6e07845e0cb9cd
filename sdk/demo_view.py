"""The demo in a terminal: streams, inferences, link, latency and events, drawn anew a few times a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.contract import Event, GatewayStatus, PipelineStatus, Severity, StreamStatus

BLOCKS = "▁▂▃▄▅▆▇█"
STATE_STYLE = {
    "ok": "green", "ready": "green", "up": "green", "starting": "cyan", "connecting": "cyan", "silent": "yellow",
    "restarting": "yellow", "down": "red", "lost": "red", "failing": "red", "failed": "red", "full": "red",
}  # fmt: skip
SEVERITY_STYLE = {Severity.INFO: "cyan", Severity.WARNING: "yellow", Severity.ALARM: "bold red"}
HISTORY = 240


class Moment(msgspec.Struct, frozen=True):
    """One look at the running demo.

    Attributes:
        status: what the gateway says.
        elapsed_s: since it was ready.
        total_s: how long the demo shall run; None is until Ctrl-C.
        phase: what goes on, a few words.
        sent: readings the node has put on the wire.
        delivered: readings in the consumer's table.
        away_s: how long the broker has been away; None while it is there.
        outage_s: all outages before.
    """

    status: GatewayStatus
    elapsed_s: float
    total_s: float | None
    phase: str
    sent: int
    delivered: int
    away_s: float | None = None
    outage_s: float = 0.0


class View:
    """Remembers what sparklines and rates need; `render` gives the whole screen."""

    def __init__(self, url: str, node: str, stream: str) -> None:
        self._url = url
        self._node = node
        self._stream = stream
        self._values: dict[str, deque[float]] = {}
        self._rates: dict[str, tuple[float, int, float]] = {}  # at, count, rate
        self._moment: Moment | None = None

    def update(self, moment: Moment) -> None:
        self._moment = moment
        for stream in moment.status.streams:
            self._rate(stream.name, stream.next_seq, moment.elapsed_s)
            for channel, value in stream.values.items():
                self._values.setdefault(f"{stream.name} {channel}", deque(maxlen=HISTORY)).append(value)

    def _rate(self, name: str, count: int, now: float) -> None:
        at, before, rate = self._rates.get(name, (now, count, 0.0))
        if now - at >= 1.0:
            self._rates[name] = (now, count, (count - before) / (now - at))
        else:
            self._rates[name] = (at, before, rate)

    def render(self, width: int, height: int) -> RenderableType:
        """The screen, at most `height` lines of `width` columns."""
        if self._moment is None:
            return Text("starting ...")
        moment = self._moment
        half = width // 2
        layout = Layout()
        status = moment.status
        wanted = max(sum(1 + len(s.values) for s in status.streams), 4 * len(status.pipelines))
        upper = 8 + min(max(0, wanted - 6), max(0, height - 24) // 2)
        layout.split_column(
            Layout(self._head(moment, width), size=2),
            Layout(name="upper", size=upper),
            Layout(name="middle", size=7),
            Layout(self._events(status.events, max(1, height - upper - 11))),
        )
        layout["upper"].split_row(
            Layout(_panel("Streams", self._streams(moment.status.streams, half - 4))),
            Layout(_panel("Inferences", _inferences(moment.status.pipelines, width - half - 4))),
        )
        layout["middle"].split_row(Layout(self._way(moment)), Layout(_panel("Latency", _latency(moment.status))))
        return layout

    def line(self) -> str:
        """The moment in one line, for logs."""
        if self._moment is None:
            return "starting"
        m = self._moment
        stored = next((s.next_seq for s in m.status.streams if s.name == self._stream), 0)
        inferences = sum(pipeline.inferences for pipeline in m.status.pipelines)
        return (
            f"{_clock(m.elapsed_s)} sent {m.sent} stored {stored} delivered {m.delivered} inferences {inferences} "
            f"uplink {m.status.uplink.state} backlog {m.status.spool.backlog}: {m.phase}"
        )

    def _head(self, moment: Moment, width: int) -> RenderableType:
        title = Text.assemble(("Octogate demo", "bold"), f"  {moment.status.gateway}  ", (moment.phase, "cyan"))
        address = Text(self._url, "underline")
        if moment.total_s is None:
            clock = f"{_clock(moment.elapsed_s)}, Ctrl-C ends it"
            bar = Text("")
        else:
            left = max(0.0, moment.total_s - moment.elapsed_s)
            clock = f"{_clock(left)} left"
            bar = _bar(1 - left / moment.total_s if moment.total_s else 1, max(10, width - len(clock) - 3), "cyan")
        top = Table.grid(expand=True)
        top.add_column(ratio=1, no_wrap=True)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(title, address)
        below = Table.grid(expand=True)
        below.add_column(ratio=1, no_wrap=True)
        below.add_column(justify="right", no_wrap=True)
        below.add_row(bar, Text(clock))
        return Group(top, below)

    def _streams(self, streams: Iterable[StreamStatus], width: int) -> RenderableType:
        lines = []
        for stream in sorted(streams, key=lambda s: not s.values):
            rate = self._rates.get(stream.name, (0.0, 0, 0.0))[2]
            speed = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
            name = Text.assemble((stream.name, "bold"), (" stale" if stream.stale else "", "yellow"))
            lines.append(_line(name, Text(f"{speed:>7} {stream.next_seq:>8,}"), width))
            for channel, value in stream.values.items():
                reading = f" {channel:<8.8} {_number(value):>7} {stream.units.get(channel, ''):<4.4}"
                line = sparkline(self._values.get(f"{stream.name} {channel}", ()), max(4, width - len(reading)))
                lines.append(Text.assemble(reading, (line, "cyan")))
        return Group(*_clipped(lines))

    def _way(self, moment: Moment) -> RenderableType:
        """From the node to the consumer, with the outage where nobody can miss it."""
        link, spool = moment.status.uplink, moment.status.spool
        stored = next((s.next_seq for s in moment.status.streams if s.name == self._stream), 0)
        lines = [
            Text.assemble("sent ", (f"{moment.sent:,}", "bold"), "  stored ", (f"{stored:,}", "bold")),
            Text.assemble("delivered ", (f"{moment.delivered:,}", "bold green"), f"  waiting {spool.backlog:,}"),
        ]
        style = STATE_STYLE.get(link.state, "")
        lines.append(
            Text.assemble(
                "uplink ",
                (f"● {link.state}", style),
                f"{f' {link.since_s:.0f} s' if link.state == 'up' else ''}  {link.broker}",
            )
        )
        lines.append(Text(f"batches {link.sent:,}  reconnects {link.reconnects}  rewinds {link.rewinds}", "dim"))
        if moment.away_s is not None:
            lines.append(Text(f" BROKER AWAY {moment.away_s:.0f} s: kept on disk ", "bold white on red"))
        elif moment.outage_s:
            lines.append(Text(f"the broker was away for {moment.outage_s:.0f} s", "yellow"))
        else:
            lines.append(Text(f"spool {spool.state}, {spool.bytes / (1 << 20):.1f} MiB", "dim"))
        return _panel("Way to the consumer", Group(*_clipped(lines)), "red" if moment.away_s is not None else "")

    def _events(self, events: Iterable[Event], room: int) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, None, None, 1):
            grid.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        for event in list(events)[:room]:
            style = "dim" if event.state == "cleared" else SEVERITY_STYLE[event.severity]
            state = "" if event.state == "point" else event.state
            grid.add_row(Text("●", style), Text(event.name, "bold"), Text(state, style), Text(event.message))
        return _panel(f"Events   ({self._node})", grid)


def sparkline(values: Iterable[float], width: int) -> str:
    """The newest `width` values as blocks from their least to their greatest."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    room = high - low
    return "".join(BLOCKS[round((v - low) / room * (len(BLOCKS) - 1)) if room else 0] for v in shown)


def _inferences(pipelines: Iterable[PipelineStatus], width: int) -> RenderableType:
    lines = []
    for pipeline in pipelines:
        newest = pipeline.newest
        result = newest.result if newest else None
        lines.append(_line(Text(pipeline.name, "bold"), Text(f"{pipeline.inferences:,}"), width))
        scores = [(d.label, d.score) for d in result.detections] or sorted(result.scores.items()) if result else []
        if result and result.fields:  # a paper form
            lines.append(Text(f" {result.text}", "green" if result.label == "accepted" else "yellow"))
            continue
        best = max((score for _, score in scores), default=0.0)
        if not scores:
            lines.append(Text(" nothing found" if result else " waiting for input", "dim"))
        for label, score in scores[:3]:
            style = "green" if score == best else "dim"
            bar = _bar(score, max(4, width - 19), style)
            lines.append(Text.assemble((f" {label:<11.11} ", style), bar, (f"{score * 100:4.0f} %", style)))
    return Group(*_clipped(lines))


def _latency(status: GatewayStatus) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    grid.add_row(Text("ms", "dim"), Text("p50", "dim"), Text("p99", "dim"), "")
    spool, process = status.spool, status.process
    state = Text(spool.state, STATE_STYLE.get(spool.state, ""))
    grid.add_row("to disk", _ms(spool.commit_p50_ms), _ms(spool.commit_p99_ms), state)
    for model in status.models[:2]:
        restarts = f" {model.restarts}x" if model.restarts else ""
        state = Text(model.state + restarts, STATE_STYLE.get(model.state, ""))
        grid.add_row(model.name, _ms(model.p50_ms), _ms(model.p99_ms), state)
    own = Text(f"gateway {process.cpu_s:.1f} CPU s, {process.rss_bytes / (1 << 20):.0f} MiB", "dim")
    return Group(grid, *_clipped([own]))


def _panel(title: str, content: RenderableType, style: str = "") -> Panel:
    return Panel(content, title=title, title_align="left", box=box.ROUNDED, border_style=style or "bright_black")


def _line(left: Text, right: Text, width: int) -> Text:
    """What is told on the left, a number at the right edge."""
    left.truncate(max(1, width - len(right) - 1), overflow="ellipsis")
    return Text.assemble(left, " " * max(1, width - len(left) - len(right)), right)


def _clipped(lines: Iterable[Text]) -> list[Text]:
    clipped = list(lines)
    for line in clipped:
        line.no_wrap, line.overflow = True, "ellipsis"
    return clipped


def _bar(share: float, width: int, style: str) -> Text:
    full = round(min(1.0, max(0.0, share)) * width)
    return Text.assemble(("━" * full, style), ("━" * (width - full), "bright_black"))


def _ms(value: float) -> str:
    return f"{value:.1f}"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"
