"""The peers by name: what to run, where its readings come in, and how to read what it sends."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.store.columns import Codec


@dataclass(frozen=True)
class Place:
    """Where one run takes place.

    Attributes:
        inlet: port of the local broker that the producer publishes to (topic r/in); of the peer's own if it is one.
        out: port of the link to the far broker.
        line: the serial line, for who reads one.
    """

    folder: Path
    inlet: int
    out: int
    line: Path
    installed: Path


@dataclass(frozen=True)
class System:
    """A peer.

    Attributes:
        prepare: writes its configuration; the command to run it.
        missing: what cannot be found here, empty when all is.
        topic: what it sends at the far broker.
        read: the numbers of the readings in one message.
        asks: what it asks its platform, and waits for the answer to; topic and payload of the answer to a topic.
        is_broker, serial: it is the inlet itself; it reads the line instead.
    """

    name: str
    prepare: Callable[[Place], Sequence[str]]
    missing: Callable[[Path], str]
    topic: str
    read: Callable[[bytes], list[int]]
    is_broker: bool = False
    serial: bool = False
    asks: str = ""
    answer: Callable[[str], tuple[str, bytes]] = field(default=lambda topic: (topic, b""))


def mosquitto() -> str:
    return shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") or ""


def _nothing(_installed: Path) -> str:
    return ""


def _text(payload: bytes) -> list[int]:
    return [int(json.loads(payload)["n"])]


# --- ours --------------------------------------------------------------------------------------------------------


def _ours(place: Place) -> Sequence[str]:
    config = place.folder / "gateway.toml"
    config.write_text(
        f'[gateway]\nid = "bench"\ndata_dir = "data"\n[[source]]\nkind = "node"\nname = "node"\nport = "{place.line}"\n'
        f'[uplink]\nhost = "127.0.0.1"\nport = {place.out}\nbackoff_max_s = 1\n[uplink.live]\n'
    )
    return (sys.executable, "-m", "gateway", "run", "--config", str(config))


def _batch(payload: bytes) -> list[int]:
    sample = Codec().decode_samples(payload)[1]
    size = sample.schema.record_size
    return [int.from_bytes(sample.data[at : at + 4], "little") for at in range(0, len(sample.data), size)]


# --- mosquitto as a bridge -----------------------------------------------------------------------------------------


def _bridge(place: Place) -> Sequence[str]:
    conf = place.folder / "bridge.conf"
    conf.write_text(
        f"listener {place.inlet} 127.0.0.1\nallow_anonymous true\nuser root\n"
        f"persistence true\npersistence_location {place.folder}/\nautosave_on_changes true\nautosave_interval 1\n"
        "max_queued_messages 0\nmax_inflight_messages 0\n"
        f"connection far\naddress 127.0.0.1:{place.out}\ntopic r/# out 1\ncleansession false\nrestart_timeout 1\n"
        "keepalive_interval 15\nbridge_attempt_unsubscribe false\nnotifications false\n"
    )
    return (mosquitto(), "-c", str(conf))


# --- a script ----------------------------------------------------------------------------------------------------


def _plain(place: Place) -> Sequence[str]:
    ports = (str(place.inlet), str(place.out))
    return (sys.executable, "-m", "bench.peer_systems.plain", *ports, str(place.folder / "plain.db"))


# --- Node-RED ----------------------------------------------------------------------------------------------------


def _node_red(place: Place) -> Sequence[str]:
    brokers = [
        {
            "id": name, "type": "mqtt-broker", "broker": "127.0.0.1", "port": port, "clientid": f"red-{name}",
            "autoConnect": True, "protocolVersion": 4, "keepalive": 15, "cleansession": False,
        }
        for name, port in (("near", place.inlet), ("far", place.out))
    ]  # fmt: skip
    flow: list[dict[str, Any]] = [
        {"id": "tab", "type": "tab", "label": "bench"},
        *brokers,
        {"id": "in", "type": "mqtt in", "z": "tab", "topic": "r/in", "qos": "1", "datatype": "buffer", "broker": "near",
         "wires": [["out"]]},
        {"id": "out", "type": "mqtt out", "z": "tab", "topic": "r/out", "qos": "1", "broker": "far", "wires": []},
    ]  # fmt: skip
    home = place.folder / "node-red"
    home.mkdir(exist_ok=True)
    (home / "flows.json").write_text(json.dumps(flow))
    (home / "settings.js").write_text(
        "module.exports = {flowFile: 'flows.json', uiPort: 0, httpAdminRoot: false, httpNodeRoot: false,"
        " mqttReconnectTime: 1000, logging: {console: {level: 'warn'}}};\n"
    )
    red = place.installed / "nodered/node_modules/node-red/red.js"
    return (shutil.which("node") or "node", str(red), "--userDir", str(home))


def _no_node_red(installed: Path) -> str:
    there = (installed / "nodered/node_modules/node-red/red.js").is_file()
    return "" if there and shutil.which("node") else "not installed: npm install --prefix DIR/nodered node-red@4"


# --- ThingsBoard gateway -------------------------------------------------------------------------------------------


def _thingsboard(place: Place) -> Sequence[str]:
    config = place.folder / "tb"
    (config / "logs").mkdir(parents=True, exist_ok=True)
    unlimited = dict.fromkeys(
        ("rateLimits", "dpRateLimits", "messagesRateLimits", "deviceMessagesRateLimits", "deviceRateLimits",
         "deviceDpRateLimits"), "0:0,",
    )  # fmt: skip
    settings = {
        "thingsboard": {
            "host": "127.0.0.1", "port": place.out, "remoteShell": False, "remoteConfiguration": False, "qos": 1,
            "minPackSendDelayMS": 50, "minPackSizeToSend": 500, "maxPayloadSizeBytes": 8196,
            "security": {"type": "accessToken", "accessToken": "bench"},
            "statistics": {"enable": False}, "reportStrategy": {"type": "ON_RECEIVED"}, **unlimited,
        },
        "storage": {"type": "sqlite", "data_file_path": str(config) + "/", "max_read_records_count": 1000},
        "grpc": {"enabled": False},
        "connectors": [{"type": "mqtt", "name": "bench", "configuration": "mqtt.json"}],
    }  # fmt: skip
    connector = {
        "broker": {
            "host": "127.0.0.1", "port": place.inlet, "clientId": "tb", "version": 4, "cleanSession": False,
            "maxMessageNumberPerWorker": 10, "maxNumberOfWorkers": 100, "security": {"type": "anonymous"},
        },
        "mapping": [{
            "topicFilter": "r/in", "subscriptionQos": 1,
            "converter": {
                "type": "json", "timeout": 60000, "sendDataOnlyOnChange": False, "attributes": [],
                "deviceInfo": {
                    "deviceNameExpressionSource": "constant", "deviceNameExpression": "press",
                    "deviceProfileExpressionSource": "constant", "deviceProfileExpression": "default",
                },
                "timeseries": [{"type": "integer", "key": "n", "value": "${n}"}],
            },
        }],
        "requestsMapping": {},
    }  # fmt: skip
    (config / "tb_gateway.json").write_text(json.dumps(settings))
    (config / "mqtt.json").write_text(json.dumps(connector))
    shipped = next((place.installed / "tb/lib").glob("python*/site-packages/thingsboard_gateway/config/logs.json"))
    (config / "logs.json").write_bytes(shipped.read_bytes())
    # its own launcher takes the folder from the environment, and logs into the current one
    program = "import os, sys; os.chdir(sys.argv[1]); os.environ['TB_GW_CONFIG_DIR'] = sys.argv.pop(1); " + (
        "from thingsboard_gateway.tb_gateway import main; main()"
    )
    return (str(place.installed / "tb/bin/python"), "-c", program, str(config))


def _no_thingsboard(installed: Path) -> str:
    there = (installed / "tb/bin/thingsboard-gateway").exists()
    return "" if there else "not installed: python -m venv DIR/tb && DIR/tb/bin/pip install thingsboard-gateway"


def _telemetry(payload: bytes) -> list[int]:
    devices = json.loads(payload)
    return [int(row["values"]["n"]) for rows in devices.values() for row in rows if "n" in row.get("values", {})]


def _limits(topic: str) -> tuple[str, bytes]:
    """It sends nothing before its platform has said how much it may; a platform without limits says this."""
    limits = {"maxPayloadSize": 65536, "maxInflightMessages": 100, "rateLimits": {}, "gatewayRateLimits": {}}
    return topic.replace("/request/", "/response/"), json.dumps(limits).encode()


SYSTEMS = (
    System("octogate", _ours, _nothing, "octo/v1/bench/up/node/bench", _batch, serial=True),
    System(
        "thingsboard-gateway, sqlite",
        _thingsboard,
        _no_thingsboard,
        "v1/gateway/telemetry",
        _telemetry,
        asks="v1/devices/me/rpc/request/+",
        answer=_limits,
    ),
    System("mosquitto bridge, autosave", _bridge, _nothing, "r/in", _text, is_broker=True),
    System("node-red, mqtt in -> out", _node_red, _no_node_red, "r/out", _text),
    System("paho + sqlite script", _plain, _nothing, "r/out", _text),
)
