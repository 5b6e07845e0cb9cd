"""The status as Prometheus metrics: names start with `octogate_`, units stand in the names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.contract import GatewayStatus, SourceState

# metric name without the prefix (counters get _total), its help, and where its value stands
Spec = tuple[str, str, Callable[[Any], float]]

SOURCE_COUNTERS: tuple[Spec, ...] = (
    ("source_readings", "Readings taken from the wire, in order, this run.", lambda s: s.readings),
    ("source_frames", "Pictures, or frames of a node's line, taken this run.", lambda s: s.frames),
    (
        "source_dropped",
        "Pictures replaced by a newer one, or readings a node's ring overwrote.",
        lambda s: s.dropped,
    ),
    ("source_bad_frames", "Frames of bytes refused: checksum, length or type.", lambda s: s.bad),
    ("source_resent_frames", "Frames that came again and were already taken.", lambda s: s.resent),
    ("source_gaps", "Times a frame was missing and was asked for again.", lambda s: s.gaps),
)
STREAM_COUNTERS: tuple[Spec, ...] = (
    ("stream_stored_rows", "Readings or rows on disk since the spool was made.", lambda s: s.next_seq),
    ("stream_delivered_rows", "Of these, confirmed by the consumer.", lambda s: s.delivered_seq),
)
MODEL_COUNTERS: tuple[Spec, ...] = (
    ("model_runs", "Inputs the model has answered.", lambda m: m.runs),
    ("model_restarts", "Times its worker was replaced.", lambda m: m.restarts),
)
PIPELINE_COUNTERS: tuple[Spec, ...] = (
    ("pipeline_inferences", "Inferences made.", lambda p: p.inferences),
    ("pipeline_skipped", "Pictures, windows and regions that were not looked at.", lambda p: p.skipped),
    ("pipeline_thinned", "Pictures left out because of max_fps.", lambda p: p.thinned),
)
GATEWAY_COUNTERS: tuple[Spec, ...] = (
    ("process_cpu_seconds", "CPU time of the gateway's own process.", lambda g: g.process.cpu_s),
    ("spool_commits", "Transactions committed.", lambda g: g.spool.commits),
    ("uplink_sent_batches", "Batches published, rewinds included.", lambda g: g.uplink.sent),
    ("uplink_reconnects", "Connections made after the first.", lambda g: g.uplink.reconnects),
    ("uplink_rewinds", "Times sending went back to the consumer's watermark.", lambda g: g.uplink.rewinds),
)
GATEWAY_GAUGES: tuple[Spec, ...] = (
    ("process_resident_memory_bytes", "Memory of the gateway's own process.", lambda g: g.process.rss_bytes),
    ("process_uptime_seconds", "Since the gateway was started.", lambda g: g.process.uptime_s),
    ("spool_ok", "1 while the spool takes readings.", lambda g: g.spool.state == "ok"),
    ("spool_bytes", "Size of the spool.", lambda g: g.spool.bytes),
    ("spool_batches", "Batches in the spool.", lambda g: g.spool.batches),
    ("spool_backlog_rows", "Readings and rows the consumer has not confirmed.", lambda g: g.spool.backlog),
    ("uplink_up", "1 while connected to the broker.", lambda g: g.uplink.state == "up"),
    ("uplink_inflight_batches", "Published and not yet acknowledged.", lambda g: g.uplink.inflight),
    ("warnings", "Unsafe settings that are on.", lambda g: len(g.warnings)),
)


def render(status: GatewayStatus | None, disk: Mapping[str, int], accept: str) -> tuple[bytes, str]:
    """The text of one scrape and its media type.

    Args:
        status: what the daemon said; None while it is away, then only `octogate_up` 0 and the disk are told.
        disk: `spool_bytes` and `disk_free_bytes` as the panel reads them; may be empty.
        accept: the scraper's Accept header; chooses OpenMetrics or the Prometheus text.
    """
    registry = CollectorRegistry()
    registry.register(_Status(status, disk))
    encode, media = choose_encoder(accept)
    return encode(registry), media


class _Status(Collector):
    def __init__(self, status: GatewayStatus | None, disk: Mapping[str, int]) -> None:
        self._status = status
        self._disk = disk

    def describe(self) -> Iterable[Metric]:
        return ()  # the names of one scrape are all there is: no need to collect twice

    def collect(self) -> Iterator[Metric]:
        yield _gauge("up", "1 while the gateway answers on its control socket.", self._status is not None)
        if "disk_free_bytes" in self._disk:
            free = self._disk["disk_free_bytes"]
            yield _gauge("spool_filesystem_free_bytes", "Free room where the spool lies.", free)
        if self._status is not None:
            yield from _gateway(self._status)
            yield from _sources(self._status)
            yield from _streams(self._status)
            yield from _models(self._status)
            yield from _pipelines(self._status)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"octogate_{name}", text, value=float(value))


def _counters(specs: Iterable[Spec], label: str, things: Iterable[Any]) -> Iterator[Metric]:
    """One labelled family a spec; things are told apart by their name."""
    things = tuple(things)
    for name, text, value in specs:
        family = CounterMetricFamily(f"octogate_{name}", text, labels=(label,))
        for thing in things:
            family.add_metric((thing.name,), float(value(thing)))
        yield family


def _quantiles(name: str, text: str, label: str, rows: Iterable[tuple[str, float, float]]) -> Metric:
    family = GaugeMetricFamily(f"octogate_{name}", text, labels=(label, "quantile"))
    for thing, p50_ms, p99_ms in rows:
        family.add_metric((thing, "0.5"), p50_ms / 1e3)
        family.add_metric((thing, "0.99"), p99_ms / 1e3)
    return family


def _gateway(status: GatewayStatus) -> Iterator[Metric]:
    about = {"gateway": status.gateway, "version": status.version, "boot": status.boot}
    yield InfoMetricFamily("octogate_gateway", "Which gateway this is.", value=about)
    for name, text, value in GATEWAY_COUNTERS:
        yield CounterMetricFamily(f"octogate_{name}", text, value=float(value(status)))
    for name, text, value in GATEWAY_GAUGES:
        yield _gauge(name, text, value(status))
    spool = status.spool
    family = GaugeMetricFamily(
        "octogate_spool_commit_seconds",
        "From a reading to the disk, the latest commits.",
        labels=("quantile",),
    )
    family.add_metric(("0.5",), spool.commit_p50_ms / 1e3)
    family.add_metric(("0.99",), spool.commit_p99_ms / 1e3)
    yield family


def _sources(status: GatewayStatus) -> Iterator[Metric]:
    up = GaugeMetricFamily("octogate_source_up", "1 while the source delivers.", labels=("source", "kind"))
    for source in status.sources:
        up.add_metric((source.name, source.kind), float(source.state is SourceState.OK))
    yield up
    yield from _counters(SOURCE_COUNTERS, "source", status.sources)


def _streams(status: GatewayStatus) -> Iterator[Metric]:
    yield from _counters(STREAM_COUNTERS, "stream", status.streams)
    newest = GaugeMetricFamily(
        "octogate_stream_value", "Newest reading of a channel.", labels=("stream", "channel", "unit")
    )
    for stream in status.streams:
        for channel, value in stream.values.items():
            newest.add_metric((stream.name, channel, stream.units.get(channel, "")), value)
    yield newest


def _models(status: GatewayStatus) -> Iterator[Metric]:
    ready = GaugeMetricFamily("octogate_model_ready", "1 while its worker answers.", labels=("model",))
    about = InfoMetricFamily("octogate_model", "What runs.", labels=("model",))
    for model in status.models:
        ready.add_metric((model.name,), float(model.state == "ready"))
        signed = "true" if model.signed else "false"
        about.add_metric((model.name,), {"backend": model.backend, "bundle": model.bundle, "signed": signed})
    yield ready
    yield about
    yield from _counters(MODEL_COUNTERS, "model", status.models)
    rows = ((m.name, m.p50_ms, m.p99_ms) for m in status.models)
    yield _quantiles("model_latency_seconds", "From handing over to the result, queueing included.", "model", rows)


def _pipelines(status: GatewayStatus) -> Iterator[Metric]:
    yield from _counters(PIPELINE_COUNTERS, "pipeline", status.pipelines)
    scores = GaugeMetricFamily(
        "octogate_pipeline_score", "Newest probability of a class.", labels=("pipeline", "label")
    )
    for pipeline in status.pipelines:
        if pipeline.newest is not None:
            for label, score in pipeline.newest.result.scores.items():
                scores.add_metric((pipeline.name, label), score)
    yield scores
