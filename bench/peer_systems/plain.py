"""The script that one writes oneself: paho in, SQLite (WAL, FULL, a commit a reading), paho out, a row deleted at its PUBACK.

python -m bench.peer_systems.plain INLET_PORT OUT_PORT FILE
"""

from __future__ import annotations

import sqlite3
import sys
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion


def main(inlet: int, out: int, file: str) -> None:
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS reading (id INTEGER PRIMARY KEY AUTOINCREMENT, text BLOB)")
    taker = paho.Client(CallbackAPIVersion.VERSION2, client_id="plain", clean_session=False)
    taker.on_connect = lambda client, *_: client.subscribe("r/#", qos=1)

    def arrived(_c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        own = sqlite3.connect(file, isolation_level=None) if not store else store[0]
        if not store:
            own.execute("PRAGMA synchronous = FULL")
            store.append(own)
        own.execute("INSERT INTO reading (text) VALUES (?)", (bytes(message.payload),))

    store: list[sqlite3.Connection] = []  # of paho's thread
    taker.on_message = arrived
    taker.connect_async("127.0.0.1", inlet)
    taker.loop_start()
    giver = paho.Client(CallbackAPIVersion.VERSION2, client_id="plain-out")
    giver.reconnect_delay_set(1, 2)
    giver.connect_async("127.0.0.1", out, keepalive=15)
    giver.loop_start()
    while True:
        rows = db.execute("SELECT id, text FROM reading ORDER BY id LIMIT 100").fetchall()
        if not rows or not giver.is_connected():
            time.sleep(0.05)
            continue
        for id_, text in rows:
            info = giver.publish("r/out", text, qos=1)
            while not info.is_published():
                info.wait_for_publish(1.0)
            db.execute("DELETE FROM reading WHERE id = ?", (id_,))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
