"""Patterns for lines of text, and the reader that cuts and checks lines: examples, and whatever bytes may come."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire.pattern import MAX_PATTERN, Pattern
from gateway.acquire.textlines import KEPT, MAX_LINE, SHOWN, LineReader
from gateway.errors import ConfigError

GGA = "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47"
GGA_PATTERN = "$GPGGA,{_},{lat:angle},{lon:angle},{fix:int},{used:int},{_},{height:float m},M,{_}"


@pytest.mark.parametrize(
    ("pattern", "line", "fields"),
    [
        ("ST,GS, {weight:float kg}kg", "ST,GS,+  12.50kg", {"weight": 12.5}),
        ("{weight:float kg} kg", "   -0.125 kg  ", {"weight": -0.125}),
        ("{a:float},{b:int}", "1.5e-3,-7", {"a": 0.0015, "b": -7}),
        ("{a:float};{b:float}", ".5;5.", {"a": 0.5, "b": 5.0}),
        ("#{a:hex}!", "#0xfFff!", {"a": 0xFFFF}),
        ("{code:text}", "ABC-12 3", {"code": "ABC-12 3"}),
        ("{code:text};{n:int}", "A;B;3", None),
        ("{code:text} {n:int}", "AB 3", {"code": "AB", "n": 3}),
        ("{_}T={t:float Cel}{_}", "P=3 T=20.5 C", {"t": 20.5}),
        ("{{{n:int}}}", "{4}", {"n": 4}),
        ("ok", "ok", {}),
        ("ok", "ok!", None),
        ("{n:int}", "12.5", None),
        ("{n:int}", "99999999999999999999", None),
        ("{n:int}", "9223372036854775808", None),
        ("{n:int}", "", None),
        ("{n:float}", "1e999", None),
        ("{n:float}", "nan", None),
        ("{n:float}", "٣", None),  # a digit, but not of ASCII
        ("{a:angle}", "9030.000,N", None),
        ("{a:angle}", "4860.000,N", None),
    ],
)
def test_lines(pattern: str, line: str, fields: dict[str, object] | None) -> None:
    assert Pattern(pattern).match(line) == fields


def test_a_position() -> None:
    pattern = Pattern(GGA_PATTERN)
    match = pattern.match(GGA[:-3])
    assert match is not None and pattern.schema is not None
    assert match["lat"] == pytest.approx(48 + 7.038 / 60) and match["lon"] == pytest.approx(11 + 31 / 60)
    assert pattern.schema.spec() == "lat:d:deg,lon:d:deg,fix:q:,used:q:,height:d:m"
    assert len(pattern.record(match)) == pattern.schema.record_size
    south = pattern.match(GGA[:-3].replace(",N,", ",S,").replace(",E,", ",W,"))
    assert south is not None and south["lat"] == -float(match["lat"]) and south["lon"] == -float(match["lon"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{a:float", r"character 1: a lone \{"),
        ("a}", r"character 2: a lone \}"),
        ("{a}", r"'\{a\}' is no field"),
        ("{A:float}", r"'\{A:float\}' is no field"),
        ("{a:flaot}", r"'flaot' is no type \(one of float, int, hex, angle, text"),
        ("{a:float k g}", r"'k g' is no unit here"),
        ("{a:text kg}", r"'kg' is no unit here"),
        ("{a:float}{b:float}", r"character 10: two numbers with nothing between"),
        ("{a:text}{_}", r"two fields with nothing between"),
        ("{a:float},{a:int}", r"field 'a' is there twice"),
        ("{a:float}0 {b:int}", r"'0' would be part of the number before"),
        ("  ", r"2 characters \(1 to"),
        ("x" * (MAX_PATTERN + 1), r"401 characters"),
        ("caf\u00e9", r"only printable ASCII"),
        ("a\\r\n", r"only printable ASCII"),
        (",".join(f"{{a{i}:int}}" for i in range(65)), r"characters \(1 to|more than 64 fields"),
    ],
)
def test_wrong_patterns_are_named(pattern: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Pattern(pattern)


@given(st.floats(-1e12, 1e12), st.integers(-(2**63), 2**63 - 1), st.text("AZaz09-_", min_size=1, max_size=20))
def test_what_is_written_is_read(number: float, whole: int, word: str) -> None:
    pattern = Pattern("N={x:float V}; {n:int} [{w:text}]")
    match = pattern.match(f"N={number!r};  {whole} [{word}]")
    assert match == {"x": number, "n": whole, "w": word}
    assert len(pattern.record(match)) == 16


@given(st.text("{}_:,. aNfloatinhex09", max_size=60), st.text("aN,. 09+-e{}", max_size=80))
def test_any_pattern_is_one_or_an_error_and_matches_or_not(source: str, line: str) -> None:
    try:
        pattern = Pattern(source)
    except ConfigError as error:
        assert "pattern" in str(error)
        return
    match = pattern.match(line)
    if match is not None and pattern.schema is not None:
        record = pattern.record(match)
        assert len(record) == pattern.schema.record_size
        assert all(math.isfinite(v) for v in match.values() if not isinstance(v, str))


def test_what_makes_regular_expressions_explode_is_cheap() -> None:
    """Forty nested choices would be 2**40 steps for a backtracking matcher; here each field moves on once."""
    pattern = Pattern("{_}a" * 40 + "b")
    assert pattern.match("a" * MAX_LINE) is None
    assert re.fullmatch(".*a" * 3 + "b", "a" * 20) is None  # the same in small


# --- the reader -----------------------------------------------------------------------------------------------------


def reader(*patterns: str, nmea: bool = False) -> LineReader:
    return LineReader([Pattern(p) for p in patterns], nmea=nmea)


def test_lines_end_in_many_ways() -> None:
    lines = reader("{n:int}")
    got = lines.feed(b"1\r\n2\r3\n\n4\r\n\x025\x03 6 \r\n7")
    assert [match["n"] for _, match in got] == [1, 2, 3, 4, 5, 6]
    assert [match["n"] for _, match in lines.feed(b"8\n")] == [78]
    assert lines.bad == 0


@given(st.lists(st.integers(-99, 99), max_size=20), st.lists(st.integers(1, 9), max_size=40))
def test_however_the_bytes_are_cut_the_lines_are_the_same(numbers: list[int], cuts: list[int]) -> None:
    data = b"".join(b"%d\r\n" % number for number in numbers)
    lines, got, at = reader("{n:int}"), [], 0
    for cut in [*cuts, len(data)]:
        got += lines.feed(data[at : at + cut])
        at += cut
    assert [match["n"] for _, match in got] == numbers


@given(st.lists(st.binary(max_size=700), max_size=8))
def test_any_bytes_are_lines_or_bad_lines(chunks: list[bytes]) -> None:
    lines = reader("{n:int},{t:text}", "ok")
    for chunk in chunks:
        lines.feed(chunk)
        assert len(lines._rest) <= MAX_LINE
    assert len(lines.bad_lines) == min(lines.bad, KEPT)
    assert all(text.isascii() and text.isprintable() and len(text) < 5 * SHOWN for text in lines.bad_lines)
    lines.feed(b"\nfresh\n")
    assert lines.feed(b"7,x\r\n") == [(0, {"n": 7, "t": "x"})]  # nothing that came keeps the next line from being read


def test_the_first_line_may_be_half_a_line() -> None:
    lines = reader("w={n:int}")
    assert lines.feed(b"=4\nw=5\n") == [(0, {"n": 5})] and lines.bad == 0
    lines.clear()
    assert lines.feed(b"w=6\n") == [(0, {"n": 6})]
    assert lines.feed(b"x=6\n") == [] and lines.bad == 1
    assert list(lines.bad_lines) == ["fits no pattern: 'x=6'"]


def test_a_line_that_never_ends_is_one_bad_line() -> None:
    lines = reader("{n:int}")
    lines.feed(b"\n")
    for _ in range(100):
        assert lines.feed(b"x" * 100) == []
    assert lines.bad == 0
    assert lines.feed(b"\n5\n") == [(0, {"n": 5})]
    assert lines.bad == 1 and lines.bad_lines[0].startswith("longer than a line: 'xxx")


def test_nmea_checksums() -> None:
    lines = reader(GGA_PATTERN, "$GPGSV,{_}", nmea=True)
    lines.feed(b"\r\n")
    assert [i for i, _ in lines.feed(GGA.encode() + b"\r\n")] == [0]
    assert lines.feed(GGA.replace("4807", "4808").encode() + b"\r\n") == []
    assert lines.feed(b"$GPGSV,3\r\n") == []
    assert lines.bad == 2 and all(text.startswith("wrong checksum: '$GP") for text in lines.bad_lines)


def test_the_first_pattern_that_fits_counts() -> None:
    lines = reader("a{n:int}", "{w:text}")
    assert lines.feed(b"a1\nb1\n") == [(0, {"n": 1}), (1, {"w": "b1"})]


def test_a_flipped_bit_never_passes_the_checksum() -> None:
    lines = reader("{_}", nmea=True)
    lines.feed(b"\n")
    for at in range(len(GGA)):
        for bit in range(7):
            broken = bytearray(GGA.encode())
            broken[at] ^= 1 << bit
            assert lines.feed(bytes(broken) + b"\n") == []
    assert len(lines.feed(GGA.encode() + b"\n")) == 1
