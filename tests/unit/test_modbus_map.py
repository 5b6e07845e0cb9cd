"""Register maps: types, word orders, block reads; those that are shipped, and those that are wrong."""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire.modbus_map import MAPS, ChannelTable, DeviceMap, MapTable, load_map, plan_blocks
from gateway.errors import ConfigError, SourceError

RANGES = {"u16": (0, 2**16 - 1), "i16": (-(2**15), 2**15 - 1), "u32": (0, 2**32 - 1), "i32": (-(2**31), 2**31 - 1)}
RANGES["u64"] = (0, 2**64 - 1)
ORDERS = st.sampled_from(["ABCD", "CDAB", "BADC", "DCBA"])
HEAD = 'title = "t"\nmanual = "m"\n'
ONE = '[[channel]]\nname = "a"\nat = 0\n'


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("ABCD", [0x4148, 0x0001]),
        ("CDAB", [0x0001, 0x4148]),
        ("BADC", [0x4841, 0x0100]),
        ("DCBA", [0x0100, 0x4841]),
    ],
)
def test_the_four_orders_of_32_bits(order: str, words: list[int]) -> None:
    channel = ChannelTable(name="a", at=0, type="u32", order=order)  # type: ignore[arg-type]
    assert channel.decode(words) == 0x41480001
    assert channel.encode(0x41480001) == words


@given(st.sampled_from(sorted(RANGES)), ORDERS, st.data())
def test_whole_numbers_come_back(kind: str, order: str, data: st.DataObject) -> None:
    value = data.draw(st.integers(*RANGES[kind]))
    channel = ChannelTable(name="a", at=0, table="holding", type=kind, order=order)  # type: ignore[arg-type]
    words = channel.encode(value)
    assert len(words) == channel.size and all(0 <= word <= 0xFFFF for word in words)
    assert channel.decode(words) == value
    with pytest.raises(SourceError, match="out of range"):
        channel.encode(RANGES[kind][1] + 1)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), ORDERS)
def test_floats_come_back(value: float, order: str) -> None:
    channel = ChannelTable(name="a", at=0, type="f32", order=order)  # type: ignore[arg-type]
    assert channel.decode(channel.encode(value)) == value


@given(st.integers(0, 0xFFFF), st.integers(0, 15), st.integers(1, 16))
def test_fields_of_bits(word: int, bit: int, width: int) -> None:
    if bit + width > 16:
        return
    channel = ChannelTable(name="a", at=0, type="bits", bit=bit, width=width)
    assert channel.decode([word]) == int(f"{word:016b}"[16 - bit - width : 16 - bit], 2)


def test_a_scaled_value_is_a_float() -> None:
    channel = ChannelTable(name="a", at=0, table="holding", type="i16", scale=0.1, offset=-40.0, unit="Cel")
    assert channel.channel().type == "d"
    assert channel.decode([655]) == pytest.approx(25.5)
    assert channel.encode(25.5) == [655]


def channels_of(spans: list[tuple[int, str]]) -> list[ChannelTable]:
    return [ChannelTable(name=f"c{i}", at=at, type=kind) for i, (at, kind) in enumerate(spans)]  # type: ignore[arg-type]


SPANS = st.lists(
    st.tuples(st.integers(0, 3000), st.sampled_from(["u16", "f32", "u64"])), min_size=1, max_size=60, unique=True
)


@given(SPANS, st.integers(4, 125), st.integers(0, 125))
def test_blocks_hold_every_channel_within_the_limits(spans: list[tuple[int, str]], limit: int, gap: int) -> None:
    channels = channels_of(spans)
    blocks = plan_blocks(channels, limit, gap)
    for channel in channels:
        assert any(b.at <= channel.at and channel.at + channel.size <= b.at + b.count for b in blocks)
    used = {register for c in channels for register in range(c.at, c.at + c.size)}
    for block in blocks:
        assert 1 <= block.count <= limit
        wanted = [r in used for r in range(block.at, block.at + block.count)]
        assert wanted[0] and wanted[-1]
        longest = max(len(run) for run in re.findall("0*", "".join("01"[w] for w in wanted)))
        assert longest <= gap


@given(SPANS)
def test_every_channel_of_a_record_is_its_own_registers(spans: list[tuple[int, str]]) -> None:
    table = MapTable(title="t", manual="m", channel=tuple(channels_of(spans)))
    device = DeviceMap(table)
    answers = [[(block.at + k) & 0xFFFF for k in range(block.count)] for block in device.blocks]  # each its address
    record = device.record(answers)
    for channel, value in zip(table.channel, struct.unpack(device.schema.format, record), strict=True):
        expected = channel.decode([channel.at + k for k in range(channel.size)])
        assert value == expected


def test_neighbours_share_a_read_and_coils_do_not_join_registers() -> None:
    channels = [
        *channels_of([(0, "f32"), (6, "f32"), (30, "u16")]),
        ChannelTable(name="x", at=8, table="coil"),
        ChannelTable(name="y", at=100, table="coil"),
    ]
    blocks = [(b.table, b.at, b.count) for b in plan_blocks(channels, 80, 8)]
    assert blocks == [("coil", 8, 93), ("input", 0, 8), ("input", 30, 1)]


@pytest.mark.parametrize("name", sorted(file.stem for file in MAPS.glob("*.toml")))
def test_our_maps_load(name: str, tmp_path: Path) -> None:
    device = load_map(name, tmp_path)
    assert device.title and 1 <= len(device.blocks) <= 6


def test_what_the_meters_are_read_with(tmp_path: Path) -> None:
    blocks = {
        name: [(b.table, b.at, b.count) for b in load_map(name, tmp_path).blocks] for name in ("sdm120", "sdm630")
    }
    assert blocks["sdm120"] == [("input", 0, 32), ("input", 70, 6), ("input", 342, 2)]
    assert blocks["sdm630"] == [("input", 0, 76), ("input", 342, 2)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = 1\nmanual = ''\n" + ONE, r"Expected `str`, got `int`"),
        (HEAD, r"missing required field `channel`"),
        (HEAD + "colour = 1\n" + ONE, r"unknown field `colour`"),
        (HEAD + ONE + ONE, r"channel 'a' is there twice"),
        (HEAD + ONE.replace('"a"', '"A b"'), r"matching regex"),
        (HEAD + ONE + 'type = "u12"', r"Invalid enum value 'u12'"),
        (HEAD + ONE + 'unit = "a,b"', r"matching regex"),
        (HEAD + ONE + 'type = "bits"\nbit = 12\nwidth = 8', r"more than a register's 16"),
        (HEAD + ONE + "bit = 2", r"bit and width are for"),
        (HEAD + ONE + "scale = 0.0", r"scale must be a number that is not 0"),
        (HEAD + ONE + "scale = nan", r"scale must be a number"),
        (HEAD + ONE + "write = true", r"only a coil or whole holding registers"),
        (HEAD + ONE + 'table = "coil"\ntype = "u32"', r"a coil is one bit"),
        (HEAD + "max_registers = 1\n" + ONE + 'type = "f32"', r"does not fit into one read"),
        (HEAD + ONE.replace("at = 0", "at = 65535") + 'type = "f32"', r"does not fit into one read"),
        (HEAD + "max_registers = 126\n" + ONE, r"Expected `int` <= 125"),
        ("title = ", r"not valid TOML"),
    ],
)
def test_a_wrong_map_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        load_map("own.toml", file)
    assert str(file) in str(error.value)


def test_maps_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no map 'sdm12' \(ours are .*sdm120"):
        load_map("sdm12", tmp_path / "sdm12")
    with pytest.raises(ConfigError, match=r"own\.toml: cannot read it"):
        load_map("own.toml", tmp_path / "own.toml")
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (300 << 10))
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        load_map("big.toml", big)


@given(st.text(max_size=80))
def test_any_text_is_a_map_or_an_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fuzzed.toml"
        file.write_text(HEAD + ONE + text, errors="replace")
        try:
            load_map("fuzzed.toml", file)
        except ConfigError as error:
            assert "fuzzed.toml" in str(error)
