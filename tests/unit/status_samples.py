"""A `GatewayStatus` as a small factory would give it, for the tests of the panel and of the demo's view."""

from __future__ import annotations

import math

from gateway.contract import (
    BatchKind,
    BreakerStatus,
    Detection,
    Event,
    GatewayStatus,
    Inference,
    ModelStatus,
    PipelineStatus,
    ProcessStatus,
    Result,
    Severity,
    SourceState,
    SourceStatus,
    SpoolStatus,
    Stamp,
    StreamStatus,
    UplinkStatus,
)

WALL_NS = 1_700_000_000_000_000_000


def stamp(seconds: float) -> Stamp:
    nanoseconds = int(seconds * 1e9)
    return Stamp("b0071d", nanoseconds, WALL_NS + nanoseconds, 1_000_000)


def event(
    seconds: float,
    name: str,
    origin: str,
    state: str = "point",
    severity: Severity = Severity.INFO,
    message: str = "",
) -> Event:
    return Event(name, origin, state, severity, stamp(seconds), message)


def state_inference(seconds: float) -> Inference:
    running = 0.5 + 0.48 * math.sin(seconds / 3)
    scores = {"running": running, "idle": (1 - running) * 0.7, "off": (1 - running) * 0.3}
    label = max(scores, key=lambda name: scores[name])
    result = Result(label, scores[label], scores)
    took_us = 1850
    return Inference("press-state", stamp(seconds), "machine-state", "0f1e2d3c4b5a", "onnx int8 x1", took_us, result)


def picture_inference(seconds: float) -> Inference:
    found = (Detection("person", 0.93, 0.12, 0.18, 0.34, 0.95), Detection("box", 0.71, 0.55, 0.52, 0.8, 0.86))
    result = Result(detections=found)
    frame = int(seconds * 2)
    return Inference("dock-objects", stamp(seconds), "detect", "a1b2c3d4e5f6", "litert fp32 x1", 61_000, result, frame)


def events() -> tuple[Event, ...]:
    return (
        event(41, "person-at-dock", "dock-objects", "raised", message="person with 0.93"),
        event(38, "press-overcurrent", "press-4/power", "cleared", Severity.WARNING, "current 6.9 below 7.5"),
        event(33, "press-overcurrent", "press-4/power", "raised", Severity.WARNING, "current 8.4 above 8"),
        event(30, "uplink.up", "uplink", message="connected to 127.0.0.1:1883"),
        event(21, "press-running", "press-state", "raised", message="running with 0.97"),
    )


def status(
    seconds: float = 42.0,
    *,
    uplink: str = "up",
    source: SourceState = SourceState.OK,
    spool: str = "ok",
    newest: tuple[Event, ...] | None = None,
    warnings: tuple[str, ...] = (),
) -> GatewayStatus:
    """The factory after `seconds`, its parts in the given states."""
    readings = int(seconds * 200)
    backlog = 40 if uplink == "up" else 1640
    current = 4 + 3 * math.sin(seconds / 2) + 0.4 * math.sin(seconds * 5)
    values = {"current": current, "power": current * 231}
    power, states, objects = "press-4/power", "press-state", "dock-objects"
    return GatewayStatus(
        gateway="line-1",
        version="0.1.0",
        boot="b0071d",
        pictures={"dock-cam": int(seconds * 2), "arm/top": 3},
        process=ProcessStatus(4711, seconds, seconds * 0.02, 27 << 20),
        sources=(
            SourceStatus("press-4", "node", source, "octogate node 1, MicroPython 1.28", readings, resent=3, gaps=1),
            SourceStatus("dock-cam", "pictures", SourceState.OK, "12 pictures", frames=int(seconds * 2), dropped=2),
        ),
        streams=(
            StreamStatus(
                power, BatchKind.SAMPLES, readings, readings - backlog, values, {"current": "A", "power": "W"}
            ),
            StreamStatus(states, BatchKind.INFERENCES, int(seconds * 2), int(seconds * 2)),
            StreamStatus(objects, BatchKind.INFERENCES, int(seconds * 2), int(seconds * 2)),
            StreamStatus("events", BatchKind.EVENTS, 5, 5),
        ),
        models=(
            ModelStatus("machine-state", "ready", "onnx int8 x1", "0f1e2d3c4b5a", True, 4712, 84, 0, 1.8, 3.2),
            ModelStatus(
                "detect",
                "ready",
                "litert fp32 x1",
                "a1b2c3d4e5f6",
                True,
                4713,
                84,
                1,
                58.0,
                83.0,
                rss_mib=117,
                standby="litert fp32 x1",
                failed_over=True,
                breakers=(
                    BreakerStatus("openvino fp32 NPU x1", "open", "device lost"),
                    BreakerStatus("litert fp32 x1", "closed"),
                ),
            ),
        ),
        pipelines=(
            PipelineStatus(states, "press-4", "machine-state", int(seconds * 2), 0, state_inference(seconds)),
            PipelineStatus(objects, "dock-cam", "detect", int(seconds * 2), 2, picture_inference(seconds)),
        ),
        spool=SpoolStatus("/var/lib/octogate/spool.db", "5b1c", spool, 1_480_000, 812, backlog, 1630, 3.9, 11.2, ""),
        uplink=UplinkStatus(
            uplink, "127.0.0.1:1883", 12.0, 2, 801, 1, 1, "" if uplink == "up" else "connection refused"
        ),
        events=events() if newest is None else newest,
        warnings=warnings,
    )
