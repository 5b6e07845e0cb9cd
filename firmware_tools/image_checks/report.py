"""What became of the checks: a table for the terminal, JUnit XML for a CI, HTML with the consoles for people."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from rich.table import Table

from firmware_tools.image_checks.run import Outcome, Word

_COLOUR = {Word.PASSED: "green", Word.FAILED: "red", Word.NOT_RUN: "yellow"}
# What a terminal obeys and a file does not show: ECMA-48 sequences, and control characters but tab and line feed.
_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_STYLE = """body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .8em;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}.passed{color:#176b2c}.FAILED{color:#b00020;font-weight:bold}
.not{color:#8a6100}pre{background:#111;color:#ddd;padding:1em;overflow:auto;max-height:40em;font-size:12px}"""


def plain(text: str) -> str:
    """Without what only a terminal understands."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def table(outcomes: Sequence[Outcome]) -> Table:
    """For the terminal."""
    made = Table("check", "", "seconds", "what it found", box=None)
    for one in outcomes:
        colour = _COLOUR[one.word]
        made.add_row(one.name, f"[{colour}]{one.word}[/]", f"{one.seconds:.0f}", plain(one.detail).replace("[", "\\["))
    return made


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: how many of each."""
    counts = {word: sum(one.word is word for one in outcomes) for word in Word}
    total = sum(one.seconds for one in outcomes)
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n) + f" in {total / 60:.1f} min"


def junit(board: str, outcomes: Sequence[Outcome]) -> bytes:
    """JUnit XML, as CI servers read it: one suite, one case a check, its console as output."""
    count = {word: str(sum(one.word is word for one in outcomes)) for word in Word}
    suite = ElementTree.Element(
        "testsuite",
        name=f"image.{board}",
        tests=str(len(outcomes)),
        failures=count[Word.FAILED],
        errors="0",
        skipped=count[Word.NOT_RUN],
        time=f"{sum(one.seconds for one in outcomes):.1f}",
    )
    for one in outcomes:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"image.{board}", name=one.name, time=f"{one.seconds:.1f}"
        )
        if one.word is Word.FAILED:
            ElementTree.SubElement(case, "failure", message=plain(one.detail)).text = plain(one.detail)
        elif one.word is Word.NOT_RUN:
            ElementTree.SubElement(case, "skipped", message=plain(one.detail))
        if one.console:
            ElementTree.SubElement(case, "system-out").text = plain(one.console)
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written


def page(board: str, outcomes: Sequence[Outcome], figures: Mapping[str, str]) -> str:
    """A page that stands alone: the checks, the figures, and each console to unfold."""
    rows = "".join(
        f"<tr><td>{_text(one.name)}<td class='{one.word}'>{one.word}<td class=n>{one.seconds:.0f} s<td>{_text(one.what)}"
        f"<br><small>{_text(one.detail)}</small></tr>\n"
        for one in outcomes
    )
    quoted = "".join(f"<tr><td>{_text(name)}<td>{_text(value)}</tr>\n" for name, value in figures.items())
    consoles = "".join(
        f"<details{' open' if one.word is Word.FAILED else ''}><summary>{_text(one.name)}</summary>"
        f"<pre>{_text(one.console)}</pre></details>\n"
        for one in outcomes
        if one.console
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>image.test {_text(board)}</title>"
        f"<style>{_STYLE}</style><h1>image.test --board {_text(board)}</h1><p>{_text(summary(outcomes))}</p>"
        f"<table><tr><th>check<th><th>time<th>what</tr>\n{rows}</table>"
        f"<h2>Figures</h2><table>{quoted}</table><h2>Consoles</h2>{consoles}</html>\n"
    )


def _text(value: str) -> str:
    return html.escape(plain(value))
