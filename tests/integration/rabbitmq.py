"""A RabbitMQ cluster of a test's own: three nodes on loopback with quorum queues behind one port, as behind a balancer.

Node names, ports, folders, the cookie and even Erlang's port mapper are the cluster's own, so that it meets no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.integration.harness import free_port

START_S = 300.0  # a bound, no expectation: on two busy cores a node takes a minute, on idle ones six seconds
SIZE = 3


def program(name: str) -> str:
    """The program itself: what Debian puts into PATH changes the user and the folder."""
    own = Path("/usr/lib/rabbitmq/bin") / name
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"{name} is missing: ./inv test --integration installs or names its package"
    return found


class Node:
    def __init__(self, folder: Path, name: str, names: list[str], epmd: int) -> None:
        self.name = name
        self.mqtt = free_port()
        self._folder = folder / name
        self._folder.mkdir()
        peers = "".join(f"cluster_formation.classic_config.nodes.{i} = {peer}\n" for i, peer in enumerate(names, 1))
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp = none\nmqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt}\nmqtt.allow_anonymous = true\n"
            "mqtt.durable_queue_type = quorum\nmqtt.prefetch = 100\n"
            "cluster_formation.peer_discovery_backend = classic_config\n"
            f"{peers}"
        )
        (self._folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        self.environment = {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "said").open("ab") as log:
            self._process = subprocess.Popen(
                [program("rabbitmq-server")], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL of the script and of the virtual machine that it started; returns when its port is closed."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        end = time.monotonic() + START_S
        while self._takes_connections():  # the kernel needs a moment to take a large process down
            assert time.monotonic() < end, f"{self.name} does not die"
            time.sleep(0.02)

    def _takes_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.mqtt), 1):
            return True
        return False

    def until_up(self) -> None:
        """Returns when it takes MQTT connections."""
        end = time.monotonic() + START_S
        while not self._takes_connections():
            assert self._process is not None and self._process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return (self._folder / "said").read_text(errors="replace")[-3000:]


class Cluster:
    """Three nodes; `ask` runs a command of rabbitmqctl."""

    def __init__(self, folder: Path) -> None:
        cookie = folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        epmd = free_port()
        names = [f"octo{i}@localhost" for i in range(1, SIZE + 1)]
        self.nodes = [Node(folder, name, names, epmd) for name in names]
        # Erlang's port mapper: of our own, so that it ends with us
        self._mapper = subprocess.Popen([program("epmd"), "-port", str(epmd), "-address", "127.0.0.1"])

    def start(self) -> None:
        """One after the other: nodes that start together may form the Raft group in which RabbitMQ keeps the ids of MQTT
        clients without one of them. When another one then dies, the group has no majority, takes no client, and the
        dead node hangs at its next start, for it waits for the group's leader."""
        for node in self.nodes:
            node.start()
            node.until_up()
        self.until_agreed()
        # Clean sessions get classic queues, also for QoS 1. Without mirrors, a client whose queue was on a node that died
        # is refused by all others (404, "home node is down") until that node is back: docs/ingest.md.
        self.ask("set_policy", "mqtt", "^mqtt-subscription-", '{"ha-mode":"all"}', "--apply-to", "queues")

    def ask(self, *arguments: str, of: int = 0) -> str:
        command = [program("rabbitmqctl"), "--silent", *arguments]
        environment = self.nodes[of].environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until_agreed(self) -> None:
        """Returns when every node knows a leader and all members of the group of client ids."""
        self._until("case ra:members({mqtt_node, node()}) of {ok, M, {_, _}} -> length(M); _ -> 0 end", SIZE)

    def until_missed(self, number: int) -> None:
        """Returns when all others know that this node is gone: one that returns earlier hangs at its start."""
        self._until("length(rabbit_nodes:all_running())", SIZE - 1, without=number)

    def _until(self, expression: str, value: int, without: int = SIZE) -> None:
        """Returns when an Erlang expression has this value at each of the nodes; asked at once, for asking is slow."""
        asked = [number for number in range(SIZE) if number != without]
        nodes = ", ".join(f"'{self.nodes[number].name}'" for number in asked)
        question = f"[catch erpc:call(N, fun() -> {expression} end, 5000) || N <- [{nodes}]]."
        end = time.monotonic() + START_S
        while (said := self.ask("eval", question, of=asked[0]).strip()) != str([value] * len(asked)).replace(" ", ""):
            assert time.monotonic() < end, f"{expression}: {said}"

    def end(self) -> None:
        for node in self.nodes:
            node.kill()
        self._mapper.kill()
        self._mapper.wait()


@contextmanager
def rabbitmq() -> Iterator[Cluster]:
    """A started cluster; its folder is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="octogate-rabbitmq-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.start()
            yield made
        finally:
            made.end()


@asynccontextmanager
async def balancer(ports: list[int]) -> AsyncIterator[int]:
    """One port in front of these; a connection goes to the first that takes it, each time beginning with the next."""
    turn = 0

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        for i in range(len(ports)):
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", ports[(turn + i) % len(ports)])
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(pass_on(reader, back), name="balancer up")
                    tasks.create_task(pass_on(there, writer), name="balancer down")
                return
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
