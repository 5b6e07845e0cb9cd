"""The demo's screen: it fits, and it says what must not be missed."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from gateway.contract import SourceState
from sdk.demo_screen import record
from sdk.demo_view import BLOCKS, Moment, View, sparkline
from tests.unit import status_samples


def a_view(*, away_s: float | None = None, total_s: float | None = 60.0) -> View:
    view = View("http://127.0.0.1:8080", "node: real MicroPython", "press-4/power")
    for quarter in range(160):
        seconds = 2 + quarter / 4
        uplink = "up" if away_s is None else "down"
        status = status_samples.status(seconds, uplink=uplink, source=SourceState.OK)
        view.update(Moment(status, seconds, total_s, "running", 8400, 8200, away_s))
    return view


def screen(view: View, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(view.render(width, height), end="")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (200, 60)])
@pytest.mark.parametrize("away_s", [None, 5.2])
def test_it_fits_the_terminal(width: int, height: int, away_s: float | None) -> None:
    lines = screen(a_view(away_s=away_s), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_at_80_by_24_everything_that_matters_is_readable() -> None:
    text = "\n".join(screen(a_view(), 80, 24))
    for wanted in (
        "line-1", "http://127.0.0.1:8080", "press-4/power", "200/s", "current", " A ", "power", " W ", "running",
        "sent 8,400", "delivered 8,200", "waiting 40", "● up", "to disk", "machine-state", "detect", "58.0", "person",
        "press-overcurrent", "real MicroPython", "00:18 left",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_an_outage_cannot_be_missed() -> None:
    text = "\n".join(screen(a_view(away_s=5.2), 80, 24))
    assert "BROKER AWAY 5 s: kept on disk" in text
    assert "● down" in text


def test_without_an_end_it_says_how_it_ends() -> None:
    assert "Ctrl-C ends it" in "\n".join(screen(a_view(total_s=None), 80, 24))


def test_before_the_first_look() -> None:
    view = View("http://127.0.0.1:8080", "", "press-4/power")
    assert screen(view, 80, 24) == ["starting ..."]
    assert view.line() == "starting"


def test_the_plain_line() -> None:
    line = a_view().line()
    assert "sent 8400" in line
    assert "uplink up" in line
    assert "\n" not in line


def test_sparklines() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([3.0, 3.0], 5) == BLOCKS[0] * 2
    assert sparkline([0, 7, 1, 2, 3], 3) == BLOCKS[0] + BLOCKS[4] + BLOCKS[-1]


def test_the_recorded_picture_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    record(a_view(), tmp_path / "demo.svg")
    svg = (tmp_path / "demo.svg").read_text()
    assert "press-4/power" in svg.replace("&#160;", " ")
    assert set(re.findall(r"https?://([\w.-]+)", svg)) <= {"www.w3.org", "127.0.0.1"}
    assert "url(http" not in svg
