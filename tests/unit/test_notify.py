"""What a service manager is told, by a real socket; and that nobody is told, and no timer runs, where nobody asked."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.notify import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.setblocking(False)
        yield server


def test_it_says_that_it_is_ready_and_that_it_stops(manager: socket.socket) -> None:
    service = ServiceManager.of({"NOTIFY_SOCKET": manager.getsockname()})
    service.tell("READY=1", "STATUS=all well")
    service.tell("STOPPING=1")
    assert manager.recv(4096) == b"READY=1\nSTATUS=all well"
    assert manager.recv(4096) == b"STOPPING=1"


def test_an_abstract_address(tmp_path: Path) -> None:
    name = f"octogate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        ServiceManager(f"@{name}").tell("READY=1")
        assert server.recv(100) == b"READY=1"


def test_the_watchdog_is_told_only_while_healthy(manager: socket.socket) -> None:
    health = iter([True, True, False, False, True])
    asked = asyncio.Event()

    def healthy() -> bool:
        try:
            return next(health)
        except StopIteration:
            asked.set()
            return False

    async def scenario() -> None:
        service = ServiceManager(manager.getsockname(), watchdog_s=0.02)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(service.watch(healthy), name="watchdog")
            await asked.wait()
            watching.cancel()

    asyncio.run(scenario())
    told = []
    while True:
        try:
            told.append(manager.recv(100))
        except BlockingIOError:
            break
    assert told == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"NOTIFY_SOCKET": "/x"}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 0.0),
        ({}, 0.0),
    ],
)
def test_no_timer_unless_asked_for(environment: dict[str, str], seconds: float) -> None:
    service = ServiceManager.of(environment)
    assert service.watchdog_s == seconds
    if not seconds:
        asyncio.run(service.watch(lambda: pytest.fail("asked for the health of nobody")))  # ends at once


def test_a_manager_that_is_gone_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "nobody")).tell("READY=1")
    assert "READY=1" in caplog.text
    ServiceManager().tell("READY=1")


def test_a_manager_that_does_not_read_does_not_hold_us_up(manager: socket.socket) -> None:
    service = ServiceManager(manager.getsockname())
    for _ in range(1000):  # more than any queue of datagrams
        service.tell("WATCHDOG=1")
