"""For every test: integration tests are marked by their folder; unit tests stay off the network."""

import ipaddress
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_offline = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(TESTS / "unit"):
            item.add_marker(pytest.mark.integration)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped integration test is a part that nobody tested: a failure."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("CI") == "true" and item.get_closest_marker("integration"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where every part must be there: {report.longrepr}"
    return report


def is_loopback(address: object) -> bool:
    """True for unix sockets and for addresses of this host; names other than localhost leave it."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")


def _refuse_network(event: str, args: tuple[object, ...]) -> None:
    if _offline and event == "socket.connect" and not is_loopback(args[1]):
        raise PermissionError(f"a unit test must not use the network: connect to {args[1]!r}")


# An audit hook sees every way to connect, and cannot be taken off: hence the switch.
sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def off_the_network(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Unit tests may use loopback and unix sockets, nothing else."""
    global _offline
    _offline = request.node.get_closest_marker("integration") is None
    yield
    _offline = False
