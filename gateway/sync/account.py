"""Where to connect and as whom; and a paho client made of it, anew for every attempt."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.errors import UplinkError

CONNECT_S = 5.0
WINDOW_MAX = 50  # paho scans all that is under way at each PUBACK: more is slower, not faster
RECEIVE_MAXIMUM = 16  # ours, MQTT 5: QoS 1 messages that the broker may have under way towards us


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """One broker. Password and certificates are read at each attempt, so that renewed ones are taken up."""

    host: str
    port: int
    client_id: str
    protocol: str = "3.1.1"  # or "5"
    keepalive_s: int = 15
    window: int = 50
    backoff_max_s: float = 120.0
    max_packet: int = 0  # bytes that the broker takes, header included; 0: nobody has said
    username: str = ""
    password: Callable[[], str] | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"


def make_client(account: Account, will: Message | None) -> paho.Client:
    """A client that knows nothing of earlier connections.

    Raises:
        UplinkError: the password cannot be read.
    """
    five = account.protocol == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=account.client_id,
        clean_session=None if five else True,
        protocol=paho.MQTTv5 if five else paho.MQTTv311,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_S
    client.max_inflight_messages_set(2 * WINDOW_MAX)  # the window is ours; paho's own is never reached
    if account.username:
        client.username_pw_set(account.username, account.password() if account.password else None)
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
    return client


def dial(client: paho.Client, account: Account) -> None:
    """Open the socket, shake hands with TLS and send CONNECT. Blocks: to be called in a thread.

    Raises:
        OSError: nobody there, or TLS refused (ssl.SSLError is one).
        UplinkError: a certificate or key file that is none.
    """
    if account.ca_file:
        client.tls_set_context(tls_context(account))
    if account.protocol != "5":
        client.connect(account.host, account.port, account.keepalive_s)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    # what was under way is sent again from the watermark: the broker need not keep anything of us
    properties.SessionExpiryInterval = 0
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    client.connect(account.host, account.port, account.keepalive_s, clean_start=True, properties=properties)


def tls_context(account: Account) -> ssl.SSLContext:
    """TLS 1.2 or newer; the broker's certificate and name are verified; our own certificate where there is one.

    Raises:
        UplinkError: one of the files is no certificate or key, or is gone.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(account.ca_file)
        if account.cert_file:
            context.load_cert_chain(account.cert_file, account.key_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(filter(None, (account.ca_file, account.cert_file, account.key_file)))
        raise UplinkError(f"cannot use {files}: {error}", hint="check uplink.ca_file and its fellows") from error
    return context


def window_of(account: Account, said: Properties | None) -> int:
    """How many QoS 1 publishes may be under way, by our config and by what the broker said in its CONNACK.

    Raises:
        UplinkError: it offers less than delivery needs.
    """
    if getattr(said, "MaximumQoS", 1) < 1:
        raise UplinkError(f"{account.where}: the broker takes no QoS 1", hint="choose a broker that does")
    if getattr(said, "RetainAvailable", 1) < 1:
        raise UplinkError(f"{account.where}: the broker retains nothing", hint="let it keep retained messages")
    return min(account.window, WINDOW_MAX, int(getattr(said, "ReceiveMaximum", WINDOW_MAX)))
