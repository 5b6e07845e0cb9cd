"""Units as UCUM writes them (Unified Code for Units of Measure, case sensitive, ucum.org), and what was meant otherwise.

Sparkplug leaves the text of a unit open; hosts and people need one spelling. What is known is a bounded table of the codes
that machines and their surroundings are measured in, with UCUM's prefixes, exponents, products and quotients:
`kW.h`, `m/s2`, `mg/L`, `V.A`, `/min`. What is no unit at all stands in braces, an annotation: `{parts}`, `{rev}/min`.
Nothing is converted.
"""

from __future__ import annotations

import difflib
import itertools
import re

MAX_UNIT = 32  # characters
MAX_DEPTH = 4  # of parentheses


def _codes(text: str) -> list[str]:
    return text.split()


# UCUM 2.2, tables 1 (prefixes) and 2 to 25 (units); those with prefixes first
_PREFIXES = _codes("Y Z E P T G M k h da d c m u n p f a z y Ki Mi Gi Ti")
_METRIC = _codes(
    "m s g rad K C cd mol sr Hz N Pa J W A V F Ohm S Wb Cel T H lm lx Bq Gy Sv kat l L ar t bar u eV cal "
    "B Np bit By Bd m[H2O] m[Hg] B[V] B[mV] B[W] B[kW] B[SPL]"
)
_OTHERS = _codes(
    "% [ppth] [ppm] [ppb] [pptr] 10* 10^ min h d wk mo a deg ' '' gon circ atm [pH] [g] [degF] [degR] [in_i] [ft_i] "
    "[yd_i] [mi_i] [nmi_i] [kn_i] [sin_i] [sft_i] [cin_i] [cft_i] [gal_us] [foz_us] [lb_av] [oz_av] [lbf_av] [psi] "
    "[Btu] [HP] [in_i'H2O] [in_i'Hg] [car_m]"
)
# what people write -> the code
_MEANT = {
    "°C": "Cel", "degC": "Cel", "celsius": "Cel", "°F": "[degF]", "°": "deg", "kWh": "kW.h", "Wh": "W.h", "MWh": "MW.h",
    "Ah": "A.h", "mAh": "mA.h", "VA": "V.A", "kVA": "kV.A", "var": "V.A{reactive}", "VAr": "V.A{reactive}",
    "kvar": "kV.A{reactive}", "varh": "V.A.h{reactive}", "kvarh": "kV.A.h{reactive}", "rpm": "{rev}/min",
    "Nm": "N.m", "ppm": "[ppm]", "ppb": "[ppb]", "psi": "[psi]", "PSI": "[psi]", "ohm": "Ohm", "Ω": "Ohm", "Volt": "V", "volts": "V", "amps": "A", "Amp": "A", "watts": "W", "sec": "s", "mins": "min",
    "hr": "h", "hour": "h", "inch": "[in_i]", "in": "[in_i]", "feet": "[ft_i]", "lb": "[lb_av]", "lbs": "[lb_av]",
    "gal": "[gal_us]", "mmHg": "mm[Hg]", "µm": "um", "µs": "us", "m³": "m3", "m²": "m2", "m³/h": "m3/h", "m/s²": "m/s2",
    "m^3": "m3", "m^2": "m2", "percent": "%", "pcs": "{pcs}", "km/hr": "km/h", "kph": "km/h", "kg/m^3": "kg/m3",
    "KW": "kW", "Kg": "kg", "KG": "kg", "HZ": "Hz", "hz": "Hz", "bars": "bar", "deg_C": "Cel", "lpm": "L/min",
}  # fmt: skip

CODES = frozenset(_METRIC) | frozenset(_OTHERS) | {p + u for p, u in itertools.product(_PREFIXES, _METRIC)}
_TOKEN = re.compile(r"\{[\x21-\x7a\x7c\x7e]*\}|[./()]|[^./(){}]+")
_ATOM = re.compile(r"(10\*|10\^|[^0-9+-]*(?:\[[^\]]*\])?)([+-]?[0-9]{1,3})?")
_FACTOR = re.compile(r"[1-9][0-9]{0,8}")


class _NoUnit(ValueError):
    """Says which part is none."""


def problem(unit: str) -> str:
    """What is wrong with a unit, with the nearest right one; empty when nothing is. No unit at all is right too."""
    try:
        _parse(unit)
    except _NoUnit as error:
        return f"'{unit}' is no UCUM unit: {error}; did you mean '{nearest(unit)}'?"
    return ""


def nearest(unit: str) -> str:
    """The unit that was probably meant: of the table, or the same word as an annotation."""
    if unit in _MEANT:
        return _MEANT[unit]
    known = {
        **{code.lower(): code for code in reversed(_COMMON)},
        **{word.lower(): code for word, code in _MEANT.items()},
    }
    for match in difflib.get_close_matches(unit[:MAX_UNIT].lower(), known, 1, 0.7):
        return known[match]
    word = re.sub(r"[^A-Za-z0-9_%/.-]", "", unit)[: MAX_UNIT - 2]
    return f"{{{word or 'count'}}}"


# what a wrong word is compared with: the table with the prefixes that are used
_COMMON = [
    *_METRIC, *_OTHERS, *(p + u for p in ("k", "m", "u", "M", "c") for u in _codes("m g s Hz N Pa J W A V F Ohm L l bar")),
    "kW.h", "V.A", "kV.A", "N.m", "m/s", "m/s2", "km/h", "L/min", "m3/h", "/min", "mg/L", "kg/m3", "g/m3", "W/m2",
]  # fmt: skip


def _parse(unit: str) -> None:
    """Raises _NoUnit unless it is one (UCUM's grammar, 2.2: term, component, annotatable, exponent)."""
    if not unit:
        return
    if len(unit) > MAX_UNIT:
        raise _NoUnit(f"longer than {MAX_UNIT} characters")
    tokens = _TOKEN.findall(unit)
    if "".join(tokens) != unit:
        raise _NoUnit("braces are for annotations such as {parts}, of printable ASCII")
    depth, open_, annotated = 0, True, False  # open_: a component must come
    for i, token in enumerate(tokens):
        if token in "./":
            if open_ and not (token == "/" and (i == 0 or tokens[i - 1] == "(")):
                raise _NoUnit(f"nothing before '{token}'")
            open_ = True
        elif token == "(":
            depth += 1
            if not open_ or depth > MAX_DEPTH:
                raise _NoUnit("a parenthesis too many" if open_ else "'.' or '/' is missing before '('")
        elif token == ")":
            depth -= 1
            if open_ or depth < 0:
                raise _NoUnit("nothing before ')'" if open_ else "a ')' too many")
        elif token[0] == "{":
            if not open_ and (annotated or tokens[i - 1] == ")"):
                raise _NoUnit("two annotations, or one of a parenthesis")
            open_ = False
        else:
            if not open_:
                raise _NoUnit(f"'.' or '/' is missing before '{token}'")
            _component(token)
            open_ = False
        annotated = token[0] == "{"
    if open_ or depth:
        raise _NoUnit("something is missing at its end" if open_ else "a ')' is missing")


def _component(token: str) -> None:
    """A number, or a unit with or without an exponent."""
    if _FACTOR.fullmatch(token):
        return
    found = _ATOM.fullmatch(token)
    if found is None or (found[1] not in CODES and token not in CODES):
        raise _NoUnit(f"'{token}' is not known")
