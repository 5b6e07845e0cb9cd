"""Units: what the table and the grammar say is one, what is not, and what was meant."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import ucum
from gateway.acquire.modbus_map import MAPS, load_map
from gateway.acquire.pattern import Pattern
from gateway.errors import ConfigError

ANNOTATION = st.text(string.ascii_letters + string.digits + "_%#", max_size=8).map(lambda text: f"{{{text}}}")
EXPONENT = st.sampled_from(["", "2", "3", "-1", "+2", "-2"])
UNIT = st.builds(lambda code, exponent, note: code + exponent + note, st.sampled_from(sorted(ucum.CODES - {"10*", "10^"})), EXPONENT, st.one_of(st.just(""), ANNOTATION))  # fmt: skip
COMPONENT = st.one_of(UNIT, ANNOTATION, st.integers(1, 999).map(str), st.sampled_from(["10*6", "10^-3"]))
TERM = st.lists(st.tuples(st.sampled_from("./"), COMPONENT), min_size=1, max_size=3).map(
    lambda parts: "".join(sign + component for sign, component in parts)[1:]
)


@pytest.mark.parametrize(
    "unit",
    ["", "1", "%", "V", "kW.h", "V.A", "N.m", "m/s2", "mg/L", "/min", "{parts}", "{rev}/min", "Cel", "mm[Hg]", "m3/h", "dB",
     "10*6/L", "[ppm]", "W/(m2.K)", "kg.m2/s3", "g{dry}/kg", "s-1", "KiBy", "100.m", "B[SPL]", "/(m.s)", "[in_i]"],
)  # fmt: skip
def test_these_are_units(unit: str) -> None:
    assert ucum.problem(unit) == ""


@pytest.mark.parametrize(
    ("unit", "meant"),
    [("°C", "Cel"), ("kWh", "kW.h"), ("VA", "V.A"), ("rpm", "{rev}/min"), ("Nm", "N.m"), ("ppm", "[ppm]"), ("Volt", "V"),
     ("kw", "kW"), ("kwh", "kW.h"), ("khz", "kHz"), ("bars", "bar"), ("pieces", "{pieces}"), ("m³/h", "m3/h"), ("{a", "{a}"),
     ("bottles per hour", "{bottlesperhour}"), ("{a b}", "{ab}"), ("m//s", "m/s"), ("KHz", "kHz")],
)  # fmt: skip
def test_these_are_not_and_the_nearest_is_named(unit: str, meant: str) -> None:
    assert ucum.problem(unit).endswith(f"did you mean '{meant}'?") and ucum.problem(meant) == ""


@pytest.mark.parametrize("unit", ["kk", "mmin", "m(", "(m", "m)", "()", "m.", ".m", "m{a}{b}", "(m){a}", "V2A", "2m", "/", "m" * 33, "((((((m))))))", "m{a}s"])  # fmt: skip
def test_neither_are_these(unit: str) -> None:
    assert "is no UCUM unit" in ucum.problem(unit)


@given(TERM)
def test_whatever_the_grammar_makes_is_a_unit(unit: str) -> None:
    for form in (unit, f"/{unit}", f"({unit})", f"m/({unit})"):
        assert ucum.problem(form) == "" or len(form) > ucum.MAX_UNIT


@given(st.one_of(st.text(max_size=40), st.text("mkVA./(){}[]1-2%°", max_size=12)))
def test_any_text_is_one_or_has_a_nearest_that_is(unit: str) -> None:
    if ucum.problem(unit):
        assert ucum.problem(ucum.nearest(unit)) == ""


def test_every_suggestion_is_a_unit() -> None:
    assert {unit: said for unit in (*ucum._MEANT.values(), *ucum._COMMON) if (said := ucum.problem(unit))} == {}
    assert [word for word in ucum._MEANT if not ucum.problem(word)] == []


def test_our_maps_follow() -> None:
    for path in MAPS.glob("*.toml"):
        units = {channel.unit for channel in load_map(path.stem, Path()).schema.channels}
        assert units - {""} and not any(map(ucum.problem, units))


def test_a_pattern_and_a_map_with_a_wrong_unit_say_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'kWh' is no UCUM unit: 'kWh' is not known.*did you mean 'kW\.h'\?"):
        Pattern("E={energy:float kWh}")
    pattern = Pattern("N={n:int {parts}} T={t:float Cel}")
    assert pattern.schema is not None
    assert [channel.unit for channel in pattern.schema.channels] == ["{parts}", "Cel"]
    assert pattern.match("N=12 T=3.5") == {"n": 12, "t": 3.5}
    path = tmp_path / "m.toml"
    path.write_text('title = "t"\nmanual = "m"\n[[channel]]\nname = "t"\nat = 0\nunit = "degC"\n')
    with pytest.raises(ConfigError, match=r"channel 't': 'degC' is no UCUM unit.*'Cel'"):
        load_map("m.toml", path)
