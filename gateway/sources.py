"""Makes the sources that the config names. Each kind is imported when a table asks for it, not before."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from gateway.clock import Clock
from gateway.config import Config, NodeSource, SourceTable
from gateway.contract import Mark, Source
from gateway.errors import ConfigError
from gateway.source_tables import CameraSource, ModbusSource, PluginSource, TextSource, VideoSource


def make_source(
    table: SourceTable,
    config: Config,
    mark: Mark | None,
    clock: Clock,
    newest: Mapping[str, int] = MappingProxyType({}),
) -> Source:
    """The source of one table; it does not run yet.

    Args:
        mark: how far the source is on disk, or None for a new one.
        newest: stream -> time of its newest reading on disk, if that is of this boot.

    Raises:
        ConfigError: what it needs is not installed, or a third party's package cannot be used.
    """
    if isinstance(table, PluginSource):
        from gateway import plugins

        return plugins.make(table, plugins.Host(clock, mark, config.path))
    if isinstance(table, NodeSource):
        from gateway.acquire.node import NodeSource as Node

        return Node(msgspec.structs.replace(table, port=_port(config, table.port)), mark, clock, newest)
    if isinstance(table, ModbusSource):
        return _modbus(table, config, clock)
    if isinstance(table, TextSource):
        from gateway.acquire.text import TextSource as Text

        return Text(msgspec.structs.replace(table, port=_port(config, table.port)), clock)
    if isinstance(table, CameraSource):
        from gateway.acquire.camera import CameraSource as Camera

        return Camera(table, str(config.path(table.device)), clock)
    if isinstance(table, VideoSource):
        return _video(table, config, clock)
    from gateway.acquire.replay import PictureReplay

    return PictureReplay(table, config.path(table.folder), clock)


def _modbus(table: ModbusSource, config: Config, clock: Clock) -> Source:
    from gateway.acquire.modbus_map import load_map

    try:
        from gateway.acquire.modbus import ModbusSource as Modbus
    except ImportError as error:
        raise ConfigError(
            f"source '{table.name}': cannot import pymodbus: {error}", hint="pip install 'octogate[modbus]'"
        ) from error
    maps = [load_map(device.map, config.path(device.map)) for device in table.device]
    return Modbus(msgspec.structs.replace(table, port=_port(config, table.port)), maps, clock)


def _video(table: VideoSource, config: Config, clock: Clock) -> Source:
    from gateway.acquire.video import VideoSource as Video

    url = table.url if "://" in table.url else str(config.path(table.url))
    try:
        password = config.path(table.password_file).read_text().strip() if table.password_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"source '{table.name}': cannot read its password_file: {error}", hint="a text file for this user to read"
        ) from error
    return Video(table, url, clock, password)


def _port(config: Config, port: str) -> str:
    """A path from the config's folder; anything else that a port may be (a URL, a USB identity) as it is."""
    return port if "://" in port or port.startswith("usb:") else str(config.path(port))
