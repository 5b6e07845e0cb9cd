"""The TOML schema of the gateway: every setting once, checked at load, immutable after.

`load` reads a file and gives a `Config`, or raises a `ConfigError` that names the file, the key, what is wrong and
what to do. `gateway/example.toml` shows every key with a comment.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from gateway.cascade import resolve
from gateway.contract import TOPIC_ROOT
from gateway.errors import ConfigError, OctogateError
from gateway.model_tables import InferenceTable, ModelTable, check_devices
from gateway.source_tables import (
    CameraSource,
    ModbusDevice,
    ModbusSource,
    PluginSource,
    TextLine,
    TextSource,
    VideoSource,
)
from gateway.tables import Name, Port, Positive, Score, Seconds, Table

MAX_CONFIG_BYTES = 1 << 20
MAX_SOCKET_PATH = 107  # bytes of sun_path, `man 7 unix`


class GatewayTable(Table, frozen=True):
    id: Name
    data_dir: str  # spool, pictures and control socket; relative to the config file


class StreamTable(Table, frozen=True):
    """What to keep of the streams whose names match; the first table that matches counts."""

    match: Annotated[str, Meta(min_length=1, max_length=100)]  # `*` and `?` as in a shell
    priority: Literal["low", "normal", "high"] = "normal"  # who is dropped first; events go after everything else
    keep_mib: Annotated[int, Meta(ge=0)] = 0  # of history, that is of what every uplink has; 0 is no limit
    keep_days: Annotated[float, Meta(ge=0, le=36500)] = 0.0  # days the machine was switched on; 0 is no limit


class StoreTable(Table, frozen=True):
    commit_ms: Annotated[int, Meta(ge=1, le=2000)] = 20  # shortest wait of a reading for its commit: the latency
    durability_ms: Annotated[int, Meta(ge=0, le=2000)] = 1000  # longest wait: no uplink is up, or to spare the disk
    wear_gb_day: Annotated[float, Meta(ge=0)] = 3.0  # written a day, past which a steady flow waits; 0: no limit
    max_mib: Positive = 512  # of the spool file; past half of it what every uplink has is forgotten, oldest first
    when_full: Literal["wait", "drop"] = "wait"  # of what is not delivered: acquisition waits, or low priority goes
    ballast_mib: Annotated[int, Meta(ge=0, le=64)] = 8  # given up when the disk is full, so that deleting works
    card_tbw: Annotated[float, Meta(ge=0)] = 0.0  # terabytes the disk is good for; 0: nobody knows
    pictures_max_mib: Positive = 64  # event pictures; the oldest goes first
    stream: tuple[StreamTable, ...] = ()


class LiveTable(Table, frozen=True):
    group: Annotated[str, Meta(pattern=r"^[^+#/\x00-\x1f]{1,64}\Z")] = "octogate"  # Sparkplug group id
    min_interval_ms: Annotated[int, Meta(ge=50)] = 1000  # newest value of a metric at most this often
    primary_host: Annotated[str, Meta(pattern=r"^[^+#/\x00-\x1f]{0,64}\Z")] = ""  # host id; birth waits for its STATE
    flush_historical: bool = False  # after an outage, tell what was missed as historical metrics


class UplinkTable(Table, frozen=True):
    host: str
    name: Name = "main"
    port: Port = 1883
    protocol: Literal["3.1.1", "5"] = "3.1.1"  # of MQTT
    prefix: Annotated[str, Meta(pattern=r"^[^+#/$\x00-\x1f][^+#/\x00-\x1f]*(/[^+#/\x00-\x1f]+)*$", max_length=64)] = (
        TOPIC_ROOT
    )
    username: str = ""
    password_file: str = ""
    ca_file: str = ""  # turns TLS on, with verification
    cert_file: str = ""
    key_file: str = ""
    keepalive_s: Annotated[int, Meta(ge=5, le=600)] = 15
    backoff_max_s: Annotated[float, Meta(ge=0.1, le=600)] = 120.0
    window: Annotated[int, Meta(ge=1, le=50)] = 50  # unacknowledged publishes under way
    max_packet_kib: Annotated[int, Meta(ge=0, le=262144)] = (
        0  # what the broker takes; 0: as it says (MQTT 5), or learned
    )
    backlog_kib_s: Annotated[float, Meta(ge=0)] = 0.0  # how fast what has waited goes out; 0 is without limit
    pictures: Literal["none", "events", "thumbnails"] = "none"  # which of the kept pictures are sent
    live: LiveTable | None = None
    commands: bool = False  # take commands: whoever may publish below octo/v1/<id>/cmd may then set the config
    command_keys: tuple[str, ...] = ()  # Ed25519 public keys (PEM) of which one must have signed each command


class PanelTable(Table, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8080


class NodeSource(Table, frozen=True, tag_field="kind", tag="node"):
    """A MicroPython node that speaks the Octogate link over a serial line."""

    name: Name
    port: str  # /dev/serial/by-id/...; anything pyserial opens
    baud: Positive = 115200
    silent_s: Seconds = 5.0  # no frame for so long: the source counts as silent
    node: Annotated[str, Meta(max_length=48)] = ""  # what it must call itself in HELLO; empty: any node is welcome
    picture_kib: Annotated[int, Meta(ge=1, le=65536)] = 2048  # the largest picture of a camera on the node


class PicturesSource(Table, frozen=True, tag_field="kind", tag="pictures"):
    """A camera replayed from a folder of JPEG or PNG pictures, in the order of their names."""

    name: Name
    folder: str
    fps: Annotated[float, Meta(gt=0, le=120)] = 2.0
    loop: bool = True


SourceTable = NodeSource | PicturesSource | CameraSource | VideoSource | ModbusSource | TextSource | PluginSource
CAMERAS = (PicturesSource, CameraSource, VideoSource)  # kinds that give pictures and nothing else


class TrustTable(Table, frozen=True):
    keys: tuple[str, ...] = ()  # files with Ed25519 public keys (PEM) that may sign bundles
    allow_unsigned: bool = False  # development only; the panel shows it


class PipelineTable(Table, frozen=True):
    name: Name
    model: Name
    source: Name = ""  # with `after` that pipeline's own; `load` fills it in
    stream: str = ""  # a node's stream, or a camera on it; empty for other cameras
    window: Annotated[int, Meta(ge=0, le=65536)] = 0  # readings a window; 0 takes the model's own length
    hop: Annotated[int, Meta(ge=0, le=65536)] = 0  # readings between windows; 0 is half a window
    max_fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0  # of a camera: look at no more pictures a second; 0: at all
    form: str = ""  # a paper form's template: read each picture as one
    after: Name = ""  # a pipeline that detects: look closer at each region it found
    labels: tuple[str, ...] = ()  # of these objects only; empty takes all
    min_score: Score = 0.5  # of the detection
    max_regions: Annotated[int, Meta(ge=1, le=32)] = 8  # of one picture, the best first
    margin: Annotated[float, Meta(ge=0, le=2)] = 0.1  # added to each side, as a share of the box


class ThresholdRule(Table, frozen=True, tag_field="kind", tag="threshold"):
    """Raised when a channel stays above `above` for `hold_s`, cleared below `above - hysteresis`."""

    name: Name
    stream: str  # <source>/<stream>
    channel: str
    above: float
    hysteresis: Annotated[float, Meta(ge=0)] = 0.0
    hold_s: Seconds = 0.0
    severity: str = "warning"


class ClassRule(Table, frozen=True, tag_field="kind", tag="class"):
    """Raised while a pipeline's class is one of `labels` with `min_score`, after `hold_s` of it."""

    name: Name
    pipeline: Name
    labels: tuple[str, ...]
    min_score: Score = 0.5
    hold_s: Seconds = 0.0
    severity: str = "info"


class DetectionRule(Table, frozen=True, tag_field="kind", tag="detection"):
    """Raised while at least `min_count` objects of `labels` with `min_score` are on the picture."""

    name: Name
    pipeline: Name
    labels: tuple[str, ...]
    min_score: Score = 0.5
    min_count: Positive = 1
    hold_s: Seconds = 0.0
    picture: bool = True  # keep the picture that raised it
    severity: str = "info"


RuleTable = ThresholdRule | ClassRule | DetectionRule


class Config(Table, frozen=True):
    gateway: GatewayTable
    store: StoreTable = StoreTable()
    uplink: tuple[UplinkTable, ...] = ()  # one [uplink] or several [[uplink]]
    panel: PanelTable | None = None
    trust: TrustTable = TrustTable()
    inference: InferenceTable = InferenceTable()
    source: tuple[SourceTable, ...] = ()
    model: tuple[ModelTable, ...] = ()
    pipeline: tuple[PipelineTable, ...] = ()
    rule: tuple[RuleTable, ...] = ()
    base: str = "."  # folder of the config file; set by `load`, never in the file

    def path(self, text: str) -> Path:
        """A path of the file, made absolute from the file's own folder."""
        return (Path(self.base) / Path(text).expanduser()).absolute()

    @property
    def data_dir(self) -> Path:
        return self.path(self.gateway.data_dir)

    @property
    def spool_path(self) -> Path:
        return self.data_dir / "spool.db"

    @property
    def control_path(self) -> Path:
        return self.data_dir / "control.sock"


def load(path: Path) -> Config:
    """Read and check a config file.

    Raises:
        ConfigError: unreadable, not TOML, a key unknown, missing, of the wrong type or out of range, or two
            settings that contradict each other.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}", hint="name the file with --config") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB", hint="is this the right file?")
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", hint="mend that line") from error
    if "base" in raw:
        raise ConfigError(f"{path}: base: unknown key", hint="delete the line")
    if alone := isinstance(raw.get("uplink"), dict):
        raw["uplink"] = [raw["uplink"]]
    if isinstance(raw.get("source"), list):
        raw["source"] = _of_packages(path, raw["source"])
    try:
        config = msgspec.convert({**raw, "base": str(path.absolute().parent)}, Config)
    except msgspec.ValidationError as error:
        message = str(error)
        raise _explained(path, message.replace("$.uplink[0]", "$.uplink") if alone else message) from error
    if len(os.fsencode(config.control_path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"{path}: gateway.data_dir: too long a path for its control socket", hint="at most 90 bytes")
    config = msgspec.structs.replace(config, pipeline=_resolved_pipelines(path, config))
    _check_references(path, config)
    check_devices(path, config.inference)
    _check_files(path, config)
    _check_sources(path, config)
    return config


def _of_packages(path: Path, tables: list[Any]) -> list[Any]:
    """Tables of a kind that is not ours, wrapped; what is ours stays a strict union."""
    known = {table.__struct_config__.tag for table in get_args(SourceTable)}
    kinds = [table.get("kind") if isinstance(table, dict) else None for table in tables]
    if PluginSource.__struct_config__.tag in kinds:  # how they are wrapped is nobody's to write
        raise ConfigError(f"{path}: source[{kinds.index('plugin')}]: 'plugin' is not a known kind", hint="name its own")
    if known.issuperset(kind for kind in kinds if isinstance(kind, str)):
        return tables
    from gateway import plugins

    return plugins.wrap(tables, known)


def _explained(path: Path, message: str) -> ConfigError:
    """msgspec's message, with its JSON path rewritten as the key a user typed."""
    what, _, where = message.partition(" - at `")
    key = where.rstrip("`").removeprefix("$").removeprefix(".") or "the file"
    hint = "see `octogate run --help` for the example config"
    if unknown := re.search(r"unknown field `([^`]+)`", what):
        near = difflib.get_close_matches(unknown[1], _all_keys(), 1)
        key = f"{key}.{unknown[1]}" if where else unknown[1]
        what = "unknown key"
        hint = f"did you mean '{near[0]}'?" if near else "delete the line"
    elif missing := re.search(r"missing required field `([^`]+)`", what):
        key = f"{key}.{missing[1]}" if where else missing[1]
        what, hint = "missing", f"add {missing[1]} = ..."
    elif "matching regex" in what:
        what = "not a valid name"
        hint = "lower-case letters, digits, '-' and '_', at most 48, starting with a letter or digit"
    elif found := re.search(r"Invalid value '([^']*)'", what):
        what, hint = f"'{found[1]}' is not a known kind", "one of the kinds in gateway/example.toml"
    return ConfigError(f"{path}: {key}: {what}", hint=hint)


def _all_keys() -> set[str]:
    tables: tuple[Any, ...] = (
        Config, GatewayTable, StoreTable, StreamTable, LiveTable, UplinkTable, PanelTable, NodeSource, PicturesSource,
        CameraSource, VideoSource, ModbusSource, ModbusDevice, TextSource, TextLine, ModelTable, InferenceTable,
        TrustTable, PipelineTable, ThresholdRule, ClassRule, DetectionRule,
    )  # fmt: skip
    return {field.encode_name for table in tables for field in msgspec.structs.fields(table)}


def _resolved_pipelines(path: Path, config: Config) -> tuple[PipelineTable, ...]:
    _unique(path, "pipeline", (p.name for p in config.pipeline))
    return resolve(str(path), config.pipeline)


def _check_references(path: Path, config: Config) -> None:
    sources = _unique(path, "source", (s.name for s in config.source))
    models = _unique(path, "model", (m.name for m in config.model))
    pipelines = {p.name for p in config.pipeline}
    _unique(path, "rule", (r.name for r in config.rule))
    _unique(path, "uplink", (u.name for u in config.uplink))
    kinds = {s.name: type(s) for s in config.source}
    for i, model in enumerate(config.model):
        if model.worker and model.workers > 1:
            raise ConfigError(f"{path}: model[{i}].workers: '{model.name}' shares a worker", hint="delete one of them")
    for i, pipeline in enumerate(config.pipeline):
        _known(path, f"pipeline[{i}].source", pipeline.source, sources)
        _known(path, f"pipeline[{i}].model", pipeline.model, models)
        kind = kinds[pipeline.source]
        camera = kind in CAMERAS
        if not pipeline.after and kind is not PluginSource and camera == bool(pipeline.stream):
            need = "takes no stream: delete the line" if pipeline.stream else "needs stream = the node's stream"
            raise ConfigError(f"{path}: pipeline[{i}].stream: '{pipeline.source}' {need}")
        if pipeline.window and pipeline.hop > pipeline.window:
            raise ConfigError(f"{path}: pipeline[{i}].hop: longer than its window", hint="hop <= window")
        if pipeline.name in ("events", "audit") or pipeline.name in sources:
            raise ConfigError(f"{path}: pipeline[{i}].name: '{pipeline.name}' is taken", hint="choose another")
    for i, rule in enumerate(config.rule):
        if isinstance(rule, ThresholdRule):
            _known(path, f"rule[{i}].stream", rule.stream.partition("/")[0], sources)
        else:
            _known(path, f"rule[{i}].pipeline", rule.pipeline, pipelines)
        if rule.severity not in ("info", "warning", "alarm"):
            raise ConfigError(f"{path}: rule[{i}].severity: '{rule.severity}'", hint="info, warning or alarm")


def _unique(path: Path, table: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise ConfigError(f"{path}: {table}[{i}].name: '{name}' is there twice", hint="rename one")
        seen.add(name)
    return seen


def _known(path: Path, key: str, name: str, names: set[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"declared are: {', '.join(sorted(names)) or 'none'}"
    raise ConfigError(f"{path}: {key}: there is no '{name}'", hint=hint)


def _check_files(path: Path, config: Config) -> None:
    """What must be there before the daemon starts; a device may come later, a file will not."""
    wanted = [(f"model[{i}].bundle", m.bundle) for i, m in enumerate(config.model)]
    wanted += [(f"trust.keys[{i}]", key) for i, key in enumerate(config.trust.keys)]
    for i, uplink in enumerate(config.uplink):
        table = f"uplink[{i}]" if len(config.uplink) > 1 else "uplink"
        files = {k: getattr(uplink, k) for k in ("password_file", "ca_file", "cert_file", "key_file")}
        wanted += [(f"{table}.{key}", file) for key, file in files.items() if file]
        wanted += [(f"{table}.command_keys[{k}]", key) for k, key in enumerate(uplink.command_keys)]
        if bool(uplink.cert_file) != bool(uplink.key_file):
            raise ConfigError(f"{path}: {table}: cert_file and key_file go together", hint="give both or none")
        if uplink.cert_file and not uplink.ca_file:
            raise ConfigError(f"{path}: {table}.ca_file: missing", hint="it turns TLS on; cert_file needs it")
    for i, source in enumerate(config.source):
        if isinstance(source, VideoSource):
            wanted += [(f"source[{i}].url", source.url)] if "://" not in source.url else []
            wanted += [(f"source[{i}].password_file", source.password_file)] if source.password_file else []
    wanted += [(f"pipeline[{i}].form", p.form) for i, p in enumerate(config.pipeline) if p.form]
    for key, file in wanted:
        if not config.path(file).is_file():
            raise ConfigError(f"{path}: {key}: no file {config.path(file)}", hint="build it or mend the path")
    for pipeline in config.pipeline:
        if pipeline.form:
            from gateway import forms  # few gateways read forms

            forms.load(config.path(pipeline.form))
    for i, source in enumerate(config.source):
        if isinstance(source, PicturesSource) and not config.path(source.folder).is_dir():
            raise ConfigError(
                f"{path}: source[{i}].folder: no folder {config.path(source.folder)}",
                hint="make it or mend the path",
            )


def _check_sources(path: Path, config: Config) -> None:
    """What a table of a source says beyond its types."""
    from gateway.source_checks import check_source  # parts of it need this module

    for i, source in enumerate(config.source):
        try:
            check_source(source, config)
        except OctogateError as error:
            raise ConfigError(f"{path}: source[{i}]: {error.what}", hint=error.hint) from error
