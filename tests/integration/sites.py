"""A broker with everybody's account on it: the gateway's, the operator's, the receiver's."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway import command
from gateway.command import Answer
from sdk.client import Gateway, over_mqtt
from sdk.ingest import Account
from tests.integration.harness import ROOT, broker, free_port, uplink
from tests.integration.mosquitto import SECRET, mosquitto

GATEWAY, OPERATOR, RECEIVER = "test", "operator", "ingest"


@dataclass(frozen=True)
class Site:
    """How each of them comes to the broker.

    Attributes:
        port: the gateway's.
        table: its uplink, with commands.
        receiver: the account of octogate-ingest.
        ca: vouches for the broker; None where all is in the clear and open.
    """

    port: int
    table: str
    receiver: Account
    ca: Path | None = None

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self.ca)) if self.ca else None

    def remote(self, key: Path | None = None) -> AbstractAsyncContextManager[Gateway]:
        """The operator's client."""
        user = OPERATOR if self.ca else ""
        return over_mqtt(GATEWAY, "127.0.0.1", self.port, username=user, password=SECRET, tls=self.tls, key=key)


class Raw:
    """A bare MQTT client that publishes what it is told and keeps every answer. Calls block."""

    def __init__(self, site: Site, user: str = OPERATOR) -> None:
        self.answers: list[Answer] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        if site.tls is not None:
            self._client.username_pw_set(user, SECRET)
            self._client.tls_set_context(site.tls)
        self._client.on_message = lambda _c, _u, m: self.answers.append(command.parse_answer(bytes(m.payload)))
        self._client.connect("127.0.0.1", site.port)
        self._client.subscribe(f"octo/v1/{GATEWAY}/ans/#", qos=1)
        self._client.loop_start()

    def send(self, id: str, payload: bytes, retain: bool = False) -> None:
        """Returns when the broker has it."""
        self._client.publish(f"octo/v1/{GATEWAY}/cmd/{id}", payload, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def documented_acl() -> str:
    """The access list that docs/commands.md shows."""
    [text] = re.findall(r"```\n(# mosquitto's acl_file.*?)```", (ROOT / "docs/commands.md").read_text(), re.DOTALL)
    return str(text)


@contextmanager
def site(kind: str, folder: Path) -> Iterator[Site]:
    """iotcore, open to all; or mosquitto by TLS, with passwords and the documented access list."""
    if kind == "iotcore":
        port = free_port()
        with broker(port):
            yield Site(port, uplink(port, "commands = true"), Account(port=port))
        return
    with mosquitto(folder / "mosquitto", users=(GATEWAY, OPERATOR, RECEIVER), acl=documented_acl()) as secured:
        ca, password = secured.folder / "ca.pem", secured.folder / "password"
        receiver = Account(port=secured.tls, username=RECEIVER, password_file=password, ca_file=ca)
        yield Site(secured.tls, secured.uplink("commands = true", user=GATEWAY), receiver, ca)
