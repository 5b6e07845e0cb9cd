"""How a report looks: one HTML file with its pictures inside, the same as Markdown, and a summary for a terminal."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from models import kit
from sdk.optimise.figures import Figures
from sdk.optimise.plots import best

if TYPE_CHECKING:
    from models.report import Section

STYLE = """:root{--ink:#1f2328;--soft:#667;--line:#e3e5e8;--mark:#b3261e}
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:var(--ink)}
h2{margin-top:2.2em;border-bottom:2px solid var(--line);padding-bottom:.2em}p{margin:.5em 0}.soft{color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:1em 0;font-size:13px;font-variant-numeric:tabular-nums}
td,th{border-bottom:1px solid var(--line);padding:4px 10px;text-align:right;white-space:nowrap}th{color:var(--soft);font-weight:600}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2),td:nth-child(3),th:nth-child(3){text-align:left}
tr.chosen td{background:#fdf1ef}tr.chosen td:last-child{color:var(--mark);font-weight:600}tr.stale td{color:#999}
img{max-width:100%;height:auto;margin:.6em 0}code{font-size:12px}ul{padding-left:1.2em}summary{cursor:pointer}"""
Rows = list[list[str]]


def metrics_of(section: Section) -> tuple[str, ...]:
    """Their names, the headline's first."""
    if not section.known:
        return ()
    return section.known.headline or tuple(sorted({name for one in section.known.figures for name in one.metrics}))


def table(section: Section) -> Rows:
    """A row for each variant on each runtime, the head first."""
    names, ways = metrics_of(section), section.ways
    threads = sorted({count for way in ways for count in way.p50_us})
    whole = next((way.metrics for way in ways if way.stage == "base" and way.metrics), {})
    line = best([way for way in ways if way.p50_us], section.metric)
    head = ["stage", "file", "runtime", "kB", "MMAC"]
    head += [part for name in names for part in ((name, "points lost") if whole else (name,))]
    head += [f"ms, {count} thread{'s' * (count > 1)}" for count in threads] + [
        "MB",
        *(["front"] if names else []),
        "auto",
    ]
    rows = [head]
    for way in ways:
        cells = [
            way.stage,
            way.file,
            way.where,
            f"{way.size / 1000:,.1f}",
            f"{way.macs / 1e6:.3g}" if way.macs else "-",
        ]
        for name in names:
            cells.append(f"{way.metrics[name]:.4f}" if name in way.metrics else "-")
            if whole:
                lost = (whole.get(name, 0.0) - way.metrics[name]) * 100 if name in way.metrics else None
                cells.append("-" if lost is None else f"{lost:+.2f}" if abs(lost) >= 0.005 else "0")
        cells += [f"{way.p50_us[count] / 1000:.3g}" if count in way.p50_us else "-" for count in threads]
        cells.append(f"{min(way.pss.values()) / 1e6:.0f}" if way.pss else "-")
        cells += ["yes" if way in line else ""] if names else []
        cells.append(f"chosen, x{way.chosen}" if way.chosen else "")
        rows.append(cells)
    return rows


def stale_table(figures: Figures) -> Rows:
    names = sorted({name for one in figures.figures for name in one.metrics})
    return [
        ["stage", "file", "runtime", *names],
        *(
            [one.stage, one.file, one.backend, *(f"{one.metrics[name]:.4f}" if name in one.metrics else "-" for name in names)]
            for one in figures.figures
        ),
    ]  # fmt: skip


def chosen(section: Section) -> str:
    """What `auto` chose, in a sentence."""
    way, gain = section.auto, section.placement.gain
    if way is None:
        return "auto chose nothing: no candidate runs here."
    before = f", {gain:.1f} times as fast as {section.placement.before}" if gain and gain >= 1.05 else ""
    return (
        f"auto chose {way.file} on {way.where} with {way.chosen} thread{'s' * (way.chosen > 1)}: "
        f"{way.p50_us[way.chosen] / 1000:.3g} ms, {way.pss[way.chosen] / 1e6:.0f} MB{before}."
    )


def summary(sections: Sequence[Section], absent: Sequence[str]) -> Rows:
    rows = [["model", "auto", "file", "bundle kB", "ms", "MB", "metric", "value"]]
    for one in sections:
        way = one.auto
        value = f"{way.metrics[one.metric]:.4f}" if way and one.metric in way.metrics else "-"
        rows.append([
            one.name,
            f"{way.where} x{way.chosen}" if way else "nothing runs",
            way.file if way else "-",
            f"{one.size / 1000:,.0f}",
            f"{way.p50_us[way.chosen] / 1000:.3g}" if way else "-",
            f"{way.pss[way.chosen] / 1e6:.0f}" if way else "-",
            one.metric or ("stale" if one.stale else "not evaluated"),
            value,
        ])  # fmt: skip
    rows += [[name, "no bundle here", "-", "-", "-", "-", "-", "-"] for name in absent]
    return rows


def terminal(sections: Sequence[Section], absent: Sequence[str]) -> list[str]:
    """The summary, in columns."""
    rows = summary(sections, absent)
    wide = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    left = {0, 1, 2, 6}
    return [
        "  ".join(cell.ljust(wide[at]) if at in left else cell.rjust(wide[at]) for at, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def as_html(rows: Rows, kind: str = "") -> str:
    head, *body = rows
    lines = ['<div class="scroll"><table><tr>' + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in body:
        mark = kind or ("chosen" if row[-1].startswith("chosen") else "")
        lines.append(f'<tr class="{mark}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table></div>"])


def facts(section: Section) -> list[str]:
    """Sentences on a model, plain text."""
    split = f" Accuracy: {section.known.split} split." if section.known else ""
    lines = [f"Bundle {section.digest}, {section.size / 1000:,.1f} kB.{split}", chosen(section)]
    return [*lines, *section.missing]


def stale_words(figures: Figures) -> str:
    return f"Stale, of bundle {figures.bundle[:16]}... and not of this one:"


def html_page(sections: Sequence[Section], absent: Sequence[str], pictures: Mapping[str, bytes]) -> str:
    """One file. Pictures: PNG by model."""
    key = sections[0].placement.key if sections else None
    where = f"Measured on {key.cpu}, {key.cpus} processors: {', '.join(key.versions)}." if key else ""
    page = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Octogate: models</title><style>{STYLE}</style><h1>Models</h1>",
        f'<p class="soft">{html.escape(where)} Latency and memory are those of a worker process, as on a gateway. '
        "Points lost are hundredths of a metric, against the base on its first runtime.</p>",
        as_html(summary(sections, absent)),
    ]
    for one in sections:
        page.append(f'<h2 id="{one.name}">{one.name}</h2>')
        page += [f"<p>{html.escape(line)}</p>" for line in facts(one)]
        encoded = base64.b64encode(pictures[one.name]).decode()
        page += [f'<img alt="figures of {one.name}" src="data:image/png;base64,{encoded}">', as_html(table(one))]
        if one.stale:
            page += [f"<p>{stale_words(one.stale)}</p>", as_html(stale_table(one.stale), "stale")]
        if one.rejected:
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in one.rejected)
            page.append(
                f"<details><summary>{len(one.rejected)} candidates were rejected</summary><ul>{lines}</ul></details>"
            )
    return "\n".join([*page, "</html>", ""])


def markdown(sections: Sequence[Section], absent: Sequence[str]) -> str:
    rows = summary(sections, absent)
    lines = ["# Models", "", *kit.table(rows[0], rows[1:]), ""]
    for one in sections:
        rows = table(one)
        lines += [f"## {one.name}", "", *(f"- {line}" for line in facts(one)), "", f"![{one.name}]({one.name}.png)", ""]
        lines += [*kit.table(rows[0], rows[1:]), ""]
        if one.stale:
            rows = stale_table(one.stale)
            lines += [stale_words(one.stale), "", *kit.table(rows[0], rows[1:]), ""]
        lines += [*(f"- rejected: {line}" for line in one.rejected), *([""] if one.rejected else [])]
    return "\n".join(lines)
