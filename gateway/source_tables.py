"""The `[[source]]` tables beside those of `gateway.config`: cameras, Modbus, text, and what a third party's package reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from gateway.tables import Name, Positive, Table


class CameraSource(Table, frozen=True, tag_field="kind", tag="camera"):
    """A USB camera (V4L2)."""

    name: Name
    device: str  # /dev/v4l/by-id/... or by-path/...; `octogate cameras` lists them
    width: Annotated[int, Meta(ge=16, le=16384)] = 640
    height: Annotated[int, Meta(ge=16, le=16384)] = 480
    fps: Annotated[float, Meta(gt=0, le=240)] = 5.0
    format: Literal["auto", "mjpeg", "yuyv"] = "auto"
    controls: dict[str, int] = field(default_factory=dict)  # exposure, gain, focus and whatever else the camera has
    memory_mib: Annotated[int, Meta(ge=1, le=1024)] = 32  # most that its pictures may take
    silent_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0  # no whole picture for so long: it is opened again


class VideoSource(Table, frozen=True, tag_field="kind", tag="video"):
    """A video stream (RTSP, HTTP) or file, read by FFmpeg in a process of its own: needs the extra `video`."""

    name: Name
    url: Annotated[str, Meta(max_length=2000)]  # rtsp://..., or a file; no password in it
    username: str = ""
    password_file: str = ""
    transport: Literal["tcp", "udp"] = "tcp"  # of RTSP
    fps: Annotated[float, Meta(gt=0, le=240)] = 5.0
    loop: bool = True  # of a file
    picture_kib: Annotated[int, Meta(ge=16, le=65536)] = 2048  # the largest JPEG; two of them are set aside
    silent_s: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0  # nothing for so long: the reader is killed, started again


class ModbusDevice(Table, frozen=True):
    """One device on a bus; its readings are the stream `<source>/<device>`."""

    name: Name
    unit: Annotated[int, Meta(ge=1, le=247)]  # its address on the bus
    map: Annotated[str, Meta(min_length=1)]  # a name in gateway/acquire/maps, or a .toml file of one's own
    period_s: Annotated[float, Meta(ge=0.01, le=86_400)] = 1.0
    timeout_s: Annotated[float, Meta(ge=0.01, le=10)] = 0.3  # for the device to begin its answer


class ModbusSource(Table, frozen=True, tag_field="kind", tag="modbus"):
    """Modbus RTU on RS-485: one bus with its devices."""

    name: Name
    port: str
    device: Annotated[tuple[ModbusDevice, ...], Meta(min_length=1, max_length=247)]
    baud: Positive = 9600
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1


class TextLine(Table, frozen=True):
    """One form that a line may have: `gateway.acquire.pattern`."""

    pattern: Annotated[str, Meta(min_length=1)]
    stream: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9_-]{0,47})?$")] = ""  # of its numbers; none has none


class TextSource(Table, frozen=True, tag_field="kind", tag="text"):
    """A sensor that sends lines of text over serial."""

    name: Name
    port: str
    line: Annotated[tuple[TextLine, ...], Meta(min_length=1, max_length=50)]
    baud: Positive = 9600
    parity: Literal["N", "E", "O"] = "N"
    data_bits: Literal[7, 8] = 8
    stop_bits: Literal[1, 2] = 1
    checksum: Literal["none", "nmea"] = "none"
    silent_s: Annotated[float, Meta(ge=0)] = 60.0  # no good line for so long: the source counts as silent; 0: never
    poll: Annotated[str, Meta(max_length=100, pattern=r"^[\x00-\x7f]*$")] = ""  # what makes it speak
    poll_s: Annotated[float, Meta(ge=0.05, le=86_400)] = 1.0  # how often it is asked


class PluginSource(Table, frozen=True, tag_field="kind", tag="plugin"):
    """A source of an installed package; `gateway.plugins` makes it from a table whose kind is not one of ours.

    So the union of the tables is the same on every machine, whatever is installed there.
    """

    name: Name
    of: str  # the kind that the file says, an entry point of the group `octogate.sources`
    settings: dict[str, Any]  # all other keys, as the file has them
