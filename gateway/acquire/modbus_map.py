"""Register maps: what the registers of a kind of device mean, as TOML files, and the block reads that fetch them.

A map is data: `gateway/acquire/maps/` holds ours, a config may name a file of its own. Addresses are those of the
protocol, from 0 (a manual's "40001" is holding register 0, its "30001" input register 0). Nothing here does I/O beyond
reading the file; nothing here needs pymodbus.
"""

from __future__ import annotations

import math
import struct
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway import ucum
from gateway.contract import Channel, Schema
from gateway.errors import ConfigError, SourceError
from gateway.tables import Table

MAPS = Path(__file__).parent / "maps"
MAX_MAP_BYTES = 256 << 10
MAX_REGISTERS = 125  # of one read, by the Modbus application protocol V1.1b3, 6.3 and 6.4
MAX_BITS = 2000  # 6.1 and 6.2

Kind = Literal["u16", "i16", "u32", "i32", "f32", "u64", "bits"]
_CODES: dict[Kind, str] = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "u64": "Q"}
_BITS = ("coil", "discrete")


class ChannelTable(Table, frozen=True):
    """One value of the device, and the channel that it becomes.

    With `scale` or `offset` the channel is a float: value = raw * scale + offset. Without, it keeps the raw type; a coil
    or discrete input and a field of up to 8 bits become a byte.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
    at: Annotated[int, Meta(ge=0, le=65535)]  # the protocol's address, from 0
    table: Literal["input", "holding", "coil", "discrete"] = "input"
    type: Kind = "u16"
    order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"  # of the bytes of 32 bits; of 64 likewise, by words
    bit: Annotated[int, Meta(ge=0, le=15)] = 0  # of bits: the lowest, 0 is the least significant of the register
    width: Annotated[int, Meta(ge=1, le=16)] = 1  # of bits: how many
    scale: float = 1.0
    offset: float = 0.0
    unit: Annotated[str, Meta(max_length=32, pattern=r"^[^,:\x00-\x20\x7f]*$")] = ""  # UCUM
    write: bool = False  # may be set by a command

    @property
    def size(self) -> int:
        """Registers that it takes; bits, of a coil or discrete input."""
        if self.table in _BITS or self.type == "bits":
            return 1
        return struct.calcsize(_CODES[self.type]) // 2

    @property
    def scaled(self) -> bool:
        return self.scale != 1.0 or self.offset != 0.0

    def channel(self) -> Channel:
        if self.scaled:
            code = "d"
        elif self.table in _BITS:
            code = "B"
        elif self.type == "bits":
            code = "B" if self.width <= 8 else "H"
        else:
            code = _CODES[self.type]
        return Channel(self.name, code, self.unit)

    def decode(self, words: Sequence[int]) -> int | float:
        """The channel's value from its registers (or its one bit)."""
        raw: int | float
        if self.table in _BITS:
            raw = int(bool(words[0]))
        elif self.type == "bits":
            raw = words[0] >> self.bit & (1 << self.width) - 1
        else:
            packed = struct.pack(f">{len(words)}H", *_ordered(words, self.order))
            raw = struct.unpack(">" + _CODES[self.type], packed)[0]
        return raw * self.scale + self.offset if self.scaled else raw

    def encode(self, value: bool | int | float | str) -> list[int]:
        """The registers (or the one bit) that set it to `value`.

        Raises:
            SourceError: it is no number, or out of range.
        """
        if isinstance(value, str) or not math.isfinite(value):
            raise SourceError(f"{self.name}: {value!r} is no number")
        if self.table in _BITS:
            if value not in (0, 1):
                raise SourceError(f"{self.name}: {value!r} is neither 0 nor 1")
            return [int(value)]
        raw = (value - self.offset) / self.scale if self.scaled else value
        if self.type != "f32" and not self.scaled and raw != int(raw):
            raise SourceError(f"{self.name}: {value!r} is no whole number")
        try:
            packed = struct.pack(">" + _CODES[self.type], raw if self.type == "f32" else round(raw))
        except (struct.error, OverflowError) as error:
            raise SourceError(f"{self.name}: {value!r} is out of range for {self.type}") from error
        return list(_ordered(struct.unpack(f">{self.size}H", packed), self.order))


class MapTable(Table, frozen=True):
    """A file of `gateway/acquire/maps/`."""

    title: str
    manual: str  # where the addresses are from
    channel: Annotated[tuple[ChannelTable, ...], Meta(min_length=1, max_length=500)]
    max_registers: Annotated[int, Meta(ge=1, le=MAX_REGISTERS)] = MAX_REGISTERS  # of one read, by its manual
    max_gap: Annotated[int, Meta(ge=0, le=MAX_REGISTERS)] = 8  # unneeded registers between two that are read at once


class Block(msgspec.Struct, frozen=True):
    """One read: `count` registers (or bits) of a table from `at` on."""

    table: Literal["input", "holding", "coil", "discrete"]
    at: int
    count: int


class DeviceMap:
    """A map, ready to use.

    Attributes:
        blocks: what has to be read for one record.
        schema: of that record; the channels in the order of the file.
    """

    def __init__(self, table: MapTable) -> None:
        self.title = table.title
        self.blocks = plan_blocks(table.channel, table.max_registers, table.max_gap)
        self.schema = Schema(tuple(channel.channel() for channel in table.channel))
        self._channels = {channel.name: channel for channel in table.channel}
        self._at = [self._place(channel) for channel in table.channel]
        self._record = struct.Struct(self.schema.format)

    def record(self, answers: Sequence[Sequence[int]]) -> bytes:
        """One packed record, from the answers to `blocks` in their order, each as long as was asked for."""
        values = [
            channel.decode(answers[block][start : start + channel.size])
            for channel, (block, start) in zip(self._channels.values(), self._at, strict=True)
        ]
        return self._record.pack(*values)

    def writable(self, name: str) -> ChannelTable:
        """The channel of that name, for a write.

        Raises:
            SourceError: there is none, or the map does not let it be written.
        """
        channel = self._channels.get(name)
        if channel is None:
            raise SourceError(f"there is no channel '{name}'", hint=f"its map has {', '.join(self._channels)}")
        if not channel.write:
            raise SourceError(f"'{name}' can only be read", hint="write = true in its map, if the device takes it")
        return channel

    def _place(self, channel: ChannelTable) -> tuple[int, int]:
        for i, block in enumerate(self.blocks):
            if block.table == channel.table and block.at <= channel.at < block.at + block.count:
                return i, channel.at - block.at
        raise AssertionError(f"{channel.name} is in no block")


def plan_blocks(channels: Sequence[ChannelTable], max_registers: int, max_gap: int) -> tuple[Block, ...]:
    """The reads that fetch all channels: neighbours together, none longer than the device allows.

    A request costs about 20 bytes of line time beside its registers, so a gap of some registers is cheaper read than left
    out; a device that refuses registers it does not know wants `max_gap = 0`.
    """
    blocks: list[Block] = []
    spans = sorted({(c.table, c.at, c.at + c.size) for c in channels})
    for table, at, end in spans:
        limit, gap = (MAX_BITS, 16 * max_gap) if table in _BITS else (max_registers, max_gap)
        last = blocks[-1] if blocks else None
        joins = last is not None and last.table == table and at - (last.at + last.count) <= gap
        if last is not None and joins and max(end, last.at + last.count) - last.at <= limit:
            blocks[-1] = Block(table, last.at, max(end, last.at + last.count) - last.at)
        else:
            blocks.append(Block(table, at, end - at))
    return tuple(blocks)


def load_map(name: str, path: Path) -> DeviceMap:
    """A map of ours by its name, or `path` when the name ends in .toml.

    Raises:
        ConfigError: there is none, or it is wrong; names the file and the key.
    """
    ours: Mapping[str, Path] = {file.stem: file for file in sorted(MAPS.glob("*.toml"))}
    file = path if name.endswith(".toml") else ours.get(name)
    if file is None:
        raise ConfigError(f"there is no map '{name}'", hint=f"ours are {', '.join(ours)}; or name a .toml file")
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_MAP_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"map {file}: cannot read it: {error.strerror}", hint="mend the path") from error
    if len(text) > MAX_MAP_BYTES:
        raise ConfigError(f"map {file}: larger than 256 KiB", hint="is this the right file?")
    try:
        return DeviceMap(_checked(msgspec.convert(tomllib.loads(text.decode()), MapTable)))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"map {file}: not valid TOML: {error}", hint="mend that line") from error
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"map {file}: {error}", hint="docs/sources.md shows a map") from error


def _checked(table: MapTable) -> MapTable:
    """What the types do not say; ValueError names the channel."""
    seen: set[str] = set()
    for channel in table.channel:
        where = f"channel '{channel.name}'"
        if channel.name in seen:
            raise ValueError(f"{where} is there twice")
        seen.add(channel.name)
        if wrong := ucum.problem(channel.unit):
            raise ValueError(f"{where}: {wrong}")
        if channel.table in _BITS and (channel.type, channel.width, channel.bit) != ("u16", 1, 0):
            raise ValueError(f"{where}: a {channel.table} is one bit: leave type, bit and width out")
        if channel.type == "bits" and channel.bit + channel.width > 16:
            raise ValueError(f"{where}: bit + width is more than a register's 16")
        if channel.type != "bits" and (channel.bit or channel.width != 1):
            raise ValueError(f'{where}: bit and width are for type = "bits"')
        if channel.size > table.max_registers or channel.at + channel.size > 65536:
            raise ValueError(f"{where}: does not fit into one read")
        if not (math.isfinite(channel.scale) and math.isfinite(channel.offset) and channel.scale):
            raise ValueError(f"{where}: scale must be a number that is not 0, offset a number")
        if channel.write and (channel.table not in ("holding", "coil") or channel.type == "bits"):
            raise ValueError(f"{where}: only a coil or whole holding registers can be written")
    return table


def _ordered(words: Sequence[int], order: str) -> Sequence[int]:
    """Between the device's order and the most significant first; its own inverse."""
    if order in ("BADC", "DCBA"):
        words = [word >> 8 | (word & 0xFF) << 8 for word in words]
    return words[::-1] if order in ("CDAB", "DCBA") else words
