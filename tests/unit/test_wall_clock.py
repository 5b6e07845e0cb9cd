"""A rule of the house like those of test_architecture.py: the gateway asks nobody but `gateway.clock` for the time of day.

A wall clock that is read elsewhere is one that nobody checked: it may be decades off, and step at any moment.
"""

from __future__ import annotations

import ast

import pytest

from tests.unit.test_architecture import PRODUCT

# "path" -> why the wall clock may be read there.
MAY_READ: dict[str, str] = {
    "gateway/clock.py": "the one place that says how far it can be trusted",
    "gateway/diagnostics.py": "the date of files in an archive that a person looks at: right or wrong, it is what `date` says",
}
# "path::function" -> why the date of a file, which is the wall clock's as well, may be looked at there.
MAY_READ_DATES: dict[str, str] = {
    "gateway/sync/blocks.py::age": "orders files of earlier runs among each other; the order of this run is remembered",
    "gateway/sync/pictures.py::_waiting": "orders pictures of a version that did not number them",
}
READS = {
    "time": {
        "time",
        "time_ns",
        "localtime",
        "gmtime",
        "ctime",
        "asctime",
        "strftime",
        "clock_gettime",
        "clock_gettime_ns",
    },
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "os": {"utime"},
}
DATES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "getmtime", "getctime"}
SQL_NOW = ("current_timestamp", "datetime('now", "julianday('now", "unixepoch('now", "strftime('%s', 'now")


def wall_clock_complaints(path: str, source: str) -> list[str]:
    """Where a source asks for the time of day, by whatever name it imported that under; or for the date of a file."""
    found: list[str] = []
    tree = ast.parse(source)
    names: dict[str, str] = {}  # as written here -> as it is called where it comes from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        where = f"{path}:{getattr(node, 'lineno', 0)}: in {function or 'the module'}"
        if isinstance(node, ast.Attribute | ast.Name) and path not in MAY_READ:
            written = ast.unparse(node)
            head, dot, rest = written.partition(".")
            parts = f"{names.get(head, head)}{dot}{rest}".split(".")
            if len(parts) > 1 and parts[-1] in READS.get(parts[-2], ()) and head in names:
                found.append(f"{where}: {written}: ask gateway.clock.Clock for the time of day")
        if isinstance(node, ast.Attribute) and node.attr in DATES and f"{path}::{function}" not in MAY_READ_DATES:
            found.append(f"{where}: {node.attr}: files are dated by the wall clock, whatever that says")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.extend(f"{where}: {word} is the wall clock's" for word in SQL_NOW if word in node.value.lower())
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


GATEWAY = {path: text for path, text in PRODUCT.items() if path.startswith("gateway/")}


def test_the_gateway_reads_the_wall_clock_in_one_place() -> None:
    assert [line for path, text in GATEWAY.items() for line in wall_clock_complaints(path, text)] == []


def test_the_allow_lists_name_what_is_there() -> None:
    for path in MAY_READ:
        assert wall_clock_complaints("gateway/elsewhere.py", GATEWAY[path]), f"{path} needs no leave any more"
    for key in MAY_READ_DATES:
        path, _, function = key.partition("::")
        lines = wall_clock_complaints("gateway/elsewhere.py", GATEWAY[path])
        assert any(f"in {function}:" in line for line in lines), f"{key} needs no leave any more"


@pytest.mark.parametrize(
    "source",
    [
        "import time\nnow = time.time()",
        "import time\ndef f(clock=time.time_ns): ...",
        "import time as t\nx = t.time_ns() // 10",
        "from time import time_ns\nx = time_ns()",
        "from time import time as now\nx = now()",
        "import datetime\nx = datetime.datetime.now()",
        "from datetime import datetime, UTC\nx = datetime.now(UTC)",
        "from datetime import date\nx = date.today()",
        "import time\nx = time.clock_gettime(time.CLOCK_REALTIME)",
        "import os\ndef f(p): return os.stat(p).st_mtime_ns",
        "import os\nx = os.path.getmtime('a')",
        "def f(db): db.execute('INSERT INTO t VALUES (CURRENT_TIMESTAMP)')",
    ],
)
def test_a_look_at_the_wall_clock_is_seen(source: str) -> None:
    assert len(wall_clock_complaints("gateway/sync/live.py", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.monotonic_ns()",
        "import time\nx = time.perf_counter(), time.process_time()",
        "import asyncio\nx = asyncio.get_running_loop().time()",
        "def f(clock): return clock.now()",
        "from datetime import datetime, UTC\ndef f(ns): return datetime.fromtimestamp(ns / 1e9, UTC)",
        "def f(p): return p.stat().st_size",
    ],
)
def test_other_clocks_are_nobodys_business(source: str) -> None:
    assert wall_clock_complaints("gateway/sync/live.py", source) == []
