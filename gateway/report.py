"""A running gateway's status as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.contract import GatewayStatus, Inference, ModelStatus, SpoolStatus


def status_text(status: GatewayStatus) -> str:
    """Everything worth knowing, as tables of at most about 100 columns."""
    process, spool, uplink = status.process, status.spool, status.uplink
    parts = [
        f"{status.gateway}: Octogate {status.version}, up {_duration(process.uptime_s)}, pid {process.pid}, "
        f"{process.rss_bytes / 1e6:.0f} MB, {process.cpu_s:.1f} CPU s"
    ]
    parts += [f"WARNING {warning}" for warning in status.warnings]
    sources = [
        (s.name, s.kind, str(s.state), str(s.readings or s.frames), str(s.dropped), str(s.bad), str(s.gaps), s.detail)
        for s in status.sources
    ]
    parts.append(_table(("source", "kind", "state", "taken", "lost", "bad", "gaps", "detail"), sources))
    parts += [f"bad lines of {s.name}\n  " + "\n  ".join(s.bad_lines) for s in status.sources if s.bad_lines]
    streams = [
        (
            s.name,
            str(s.kind),
            str(s.next_seq),
            str(s.delivered_seq),
            str(s.next_seq - s.delivered_seq),
            _values(s.values, s.units) + ("  (stale)" if s.stale else ""),
        )
        for s in status.streams
    ]
    parts.append(_table(("stream", "kind", "on disk", "delivered", "backlog", "newest"), streams))
    models = [
        (m.name, m.state, m.backend, str(m.runs), f"{m.p50_ms:.1f}", f"{m.p99_ms:.1f}", str(m.restarts), _about(m))
        for m in status.models
    ]
    parts.append(_table(("model", "state", "backend", "runs", "p50 ms", "p99 ms", "restarts", "detail"), models))
    pipelines = [
        (p.name, f"after {p.after}" if p.after else p.source, str(p.inferences), str(p.skipped), str(p.thinned),
         _seen(p.newest))
        for p in status.pipelines
    ]  # fmt: skip
    parts.append(_table(("pipeline", "source", "inferences", "skipped", "thinned", "newest"), pipelines))
    parts.append(
        f"spool   {spool.state}, {spool.bytes / 1e6:.1f} MB, {spool.batches} batches, backlog {spool.backlog}, "
        f"commit p50 {spool.commit_p50_ms:.1f} ms, p99 {spool.commit_p99_ms:.1f} ms {spool.detail}".rstrip()
        + _wear(spool)
    )
    parts.append(
        f"uplink  {uplink.state} {uplink.broker} for {_duration(uplink.since_s)}, sent {uplink.sent}, in flight "
        f"{uplink.inflight}, reconnects {uplink.reconnects}, rewinds {uplink.rewinds} {uplink.detail}".rstrip()
        if uplink.broker
        else "uplink  none configured"
    )
    if (live := uplink.live) is not None:
        waits = f" for '{live.primary_host}'" if live.state == "waiting" else ""
        parts.append(f"live    {live.state}{waits}, {live.devices} devices, sent {live.sent}, bdSeq {live.bd_seq}")
    events = [(str(e.severity), e.name, e.state, e.message) for e in status.events[:10]]
    parts.append(_table(("severity", "event", "state", "message"), events))
    return "\n\n".join(part for part in parts if part)


def _about(model: ModelStatus) -> str:
    """What stands by, who failed and will be tried again, and what the engine has to say."""
    says = [f"{model.workers} workers"] if model.workers > 1 else []
    says += [f"standby: {model.standby}"] if model.standby else []
    says += [f"failed: {b.candidate} ({b.why})" for b in model.breakers if b.state == "open"]
    return "; ".join([*says, *([model.detail] if model.detail else [])])


def _wear(spool: SpoolStatus) -> str:
    parts = [f"\ndropped {spool.dropped}, of these damaged {spool.damaged}: octogate ledger"] if spool.dropped else []
    pace = f"{spool.written_mb_day:.0f} MB/day" if spool.written_mb_day else "less than a minute measured"
    card = (
        "not declared (store.card_tbw)" if spool.card_years is None else f"good for {spool.card_years:.1f} years more"
    )
    return "".join(parts) + f"\ndisk    {pace}, {spool.written_mb:.0f} MB written so far, card {card}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (head, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _values(values: dict[str, float], units: dict[str, str]) -> str:
    return ", ".join(f"{name} {value:.4g} {units.get(name, '')}".rstrip() for name, value in values.items())


def _seen(inference: Inference | None) -> str:
    if inference is None:
        return ""
    result = inference.result
    if result.detections:
        return ", ".join(f"{d.label} {d.score:.2f}" for d in result.detections[:4])
    if result.text:
        return f"'{result.text[:40]}' {result.score:.2f}"
    if result.masks:
        return ", ".join(f"{mask.label} {result.values.get(mask.label, 0.0):.0%}" for mask in result.masks[:4])
    return f"{result.label} {result.score:.2f}" if result.label else "nothing"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
