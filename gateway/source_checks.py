"""What a source's table says beyond its types, checked at load. Imports a kind's own parts only for tables of it."""

from __future__ import annotations

from collections import Counter

from gateway.config import Config, NodeSource, SourceTable
from gateway.errors import ConfigError
from gateway.source_tables import ModbusSource, PluginSource, TextSource


def check_source(source: SourceTable, config: Config) -> None:
    """Raises ConfigError or SourceError: a setting that cannot work, and what to do."""
    if isinstance(source, PluginSource):
        from gateway import plugins

        plugins.check(source)
        return
    if isinstance(source, NodeSource | ModbusSource | TextSource) and source.port.startswith("usb:"):
        from gateway.acquire.identity import check_usb

        check_usb(source.port)
    if isinstance(source, ModbusSource):
        _check_modbus(source, config)
    if isinstance(source, TextSource):
        _check_text(source)


def _check_modbus(source: ModbusSource, config: Config) -> None:
    from gateway.acquire.modbus_map import load_map

    for key in ("name", "unit"):
        [(value, times)] = Counter(getattr(device, key) for device in source.device).most_common(1)
        if times > 1:
            raise ConfigError(f"device.{key}: {value!r} is there {times} times", hint="each device once")
    for map in {device.map for device in source.device}:
        load_map(map, config.path(map))


def _check_text(source: TextSource) -> None:
    from gateway.acquire.pattern import Pattern

    streams: dict[str, str] = {}
    for i, line in enumerate(source.line):
        pattern = Pattern(line.pattern)
        if pattern.schema is not None and not line.stream:
            raise ConfigError(f"line[{i}].stream: missing", hint="name the stream that its numbers go to")
        if pattern.schema is None and not pattern.texts and line.stream:
            raise ConfigError(f"line[{i}].stream: its pattern keeps nothing", hint="delete the line, or name a field")
        spec = pattern.schema.spec() if pattern.schema else ""
        if spec and streams.setdefault(line.stream, spec) != spec:
            raise ConfigError(f"line[{i}].stream: '{line.stream}' has other fields above", hint="name another stream")
