"""What a source's table says beyond its types, checked at load. Imports a kind's own parts only for tables of it."""

from __future__ import annotations

from collections import Counter

from gateway.config import Config, PicturesSource, SourceTable
from gateway.errors import ConfigError
from gateway.source_tables import ModbusSource, PluginSource


def check_source(source: SourceTable, config: Config) -> None:
    """Raises ConfigError or SourceError: a setting that cannot work, and what to do."""
    if isinstance(source, PluginSource):
        from gateway import plugins

        plugins.check(source)
        return
    if not isinstance(source, PicturesSource) and source.port.startswith("usb:"):
        from gateway.acquire.identity import check_usb

        check_usb(source.port)
    if isinstance(source, ModbusSource):
        _check_modbus(source, config)


def _check_modbus(source: ModbusSource, config: Config) -> None:
    from gateway.acquire.modbus_map import load_map

    for key in ("name", "unit"):
        [(value, times)] = Counter(getattr(device, key) for device in source.device).most_common(1)
        if times > 1:
            raise ConfigError(f"device.{key}: {value!r} is there {times} times", hint="each device once")
    for map in {device.map for device in source.device}:
        load_map(map, config.path(map))
