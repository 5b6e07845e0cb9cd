"""Makes docs/sparkplug.md: which test holds which normative statement of Sparkplug 3.0.

    python docs/make_sparkplug.py           write it
    python docs/make_sparkplug.py --check   exit 1 when it is out of date

Of docs/sparkplug-statements.tsv (the statements, in our words) and of the marks `@pytest.mark.tck("tck-id-...")` in
tests/. The tests are read, not run.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = ROOT / "docs" / "sparkplug-statements.tsv"
DOCUMENT = ROOT / "docs" / "sparkplug.md"

HEAD = """\
# Sparkplug B 3.0: what holds what

The live plane (`gateway/sync/live.py`) is a Sparkplug B edge node. This page maps each normative statement of the
specification that binds an edge node to the tests that hold it. It is made by `python docs/make_sparkplug.py` from
`docs/sparkplug-statements.tsv` and from the marks in the tests; a unit test fails when it is out of date. The middle
column says in our words what is asked; the specification's own text is found there by its id (without `tck-id-` here).

## What a host sees

| where | metric | is |
| --- | --- | --- |
| node (NBIRTH, NDATA) | `bdSeq`, `Node Control/Rebirth` | the specification's own |
| node | `Alarm/<rule>` | Boolean, true while the rule is raised |
| node | `Clock/known` | Boolean, false while the gateway does not know the time of day |
| device `<source>` (DBIRTH, DDATA) | `<stream>/<channel>` | the newest reading, with its unit as property `engUnit` |
| device | `inference/<pipeline>/label`, `.../score` | what the model says, null until it has said something |
| device | `Source/state` | `ok` or `silent`; lost and failing devices are dead (DDEATH) |

Values of a silent source, and of a Modbus device that answers no more, have the property `Quality` 500 (stale). With `uplink.live.primary_host` everything waits for
that host's STATE; with `uplink.live.flush_historical` what was missed follows the births, one reading an interval and
stream, as historical metrics. Commands to a device are checked against its birth and refused (event `command.refused`)
unless its source takes writes: nodes and Modbus devices do.

The specification knows no message without a timestamp in UTC. Before the gateway knows the time of day (docs/time.md) it
sends what the machine's clock tells, and `Clock/known` is false: a host should then use its own time of arrival. When the
clock becomes known, or is set, the node is born again within the same session (same `bdSeq`, seq 0), so that every newest
value is told once more with its right time. Historical metrics are held until they can be dated.

"""


@dataclass(frozen=True)
class Statement:
    """One line of the list; `reason` says why no test holds it."""

    id: str
    level: str
    binds: str  # edge, host, server
    asks: str
    reason: str


def statements(text: str) -> list[Statement]:
    """The list; ValueError for a line that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        parts = line.split("\t")
        if len(parts) != 5 or parts[2] not in ("edge", "host", "server"):
            raise ValueError(f"line {number}: not a statement: {line!r}")
        found.append(Statement(*parts))
    return found


def marks(path: str, source: str) -> Iterator[tuple[str, str]]:
    """(tck id, test) for each mark of a test file; ValueError for a mark that is not on a test, or not literal."""
    tree = ast.parse(source)
    told = 0
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.tck":
                told += 1
                for argument in mark.args:
                    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                        raise ValueError(f"{path}: {node.name}: an id must be a literal text")
                    yield argument.value, f"{path}::{node.name}"
    if told != sum(
        ast.unparse(node) == "pytest.mark.tck" for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    ):
        raise ValueError(f"{path}: a tck mark that is not on a test function")


def complaints(listed: list[Statement], held: Mapping[str, list[str]]) -> list[str]:
    """What does not fit together."""
    by_id = {statement.id: statement for statement in listed}
    found = [f"{name} is listed twice" for name, n in Counter(s.id for s in listed).items() if n > 1]
    for name, tests in held.items():
        if name not in by_id:
            found.append(f"{tests[0]} claims {name}, which is no statement")
        elif by_id[name].binds != "edge":
            found.append(f"{tests[0]} claims {name}, which binds a {by_id[name].binds}")
    for statement in listed:
        if statement.binds != "edge":
            continue
        if statement.id in held and statement.reason:
            found.append(f"{statement.id} is held by a test, and yet there is a reason why not")
        if statement.id not in held and not statement.reason:
            found.append(f"{statement.id} is held by no test, and no reason is given")
    return found


def document(listed: list[Statement], held: Mapping[str, list[str]]) -> str:
    edge = [statement for statement in listed if statement.binds == "edge"]
    open_ = [statement for statement in edge if statement.reason]
    counts = Counter(statement.binds for statement in listed)
    lines = [
        f"Of {len(listed)} statements {counts['edge']} bind an edge node: {len(edge) - len(open_)} are held by tests, "
        f"{len(open_)} are not, for the reasons below. {counts['host']} bind host applications and {counts['server']} "
        "MQTT servers; they are left out.",
        "",
        "## Held",
        "",
        "| statement | level | asks | tests |",
        "| --- | --- | --- | --- |",
    ]
    for s in edge:
        if not s.reason:
            tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in sorted(held[s.id]))
            lines.append(f"| {_short(s)} | {s.level} | {s.asks} | {tests} |")
    lines += ["", "## Not held", "", "| statement | level | asks | why |", "| --- | --- | --- | --- |"]
    lines += [f"| {_short(s)} | {s.level} | {s.asks} | {s.reason} |" for s in open_]
    return HEAD + "\n".join(lines) + "\n"


def _short(statement: Statement) -> str:
    return statement.id.removeprefix("tck-id-")


def made() -> str:
    """The document as it should be; ValueError when the list and the tests do not fit."""
    held: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, test in marks(path.relative_to(ROOT).as_posix(), path.read_text()):
            held.setdefault(name, []).append(test)
    listed = statements(STATEMENTS.read_text())
    if wrong := complaints(listed, held):
        raise ValueError("\n".join(wrong))
    return document(listed, held)


def main() -> int:
    try:
        text = made()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(text)
        return 0
    if DOCUMENT.read_text() == text:
        return 0
    print("docs/sparkplug.md is out of date: run python docs/make_sparkplug.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
