"""How large a packet the broker takes: by config, by its own word (MQTT 5), or by how it ended the connection.

With MQTT 3.1.1 a broker that finds a packet too large closes the connection and says nothing. Sent again after every
reconnection, such a packet would stop everything behind it for ever. So a connection that ends twice while a packet
larger than any that was ever acknowledged is under way makes half its size the limit.
"""

from __future__ import annotations

import logging

from paho.mqtt.properties import Properties

from gateway.errors import UplinkError

log = logging.getLogger("octogate")

LEAST = 1024  # bytes; a broker that takes less than a topic and a header is none
SUSPECT = 4096  # smaller packets are not what ends a connection
STRIKES = 2
# fixed header (type, and a length of up to 4 bytes), length of the topic, packet identifier, no properties
_FRAME = 1 + 4 + 2 + 2 + 1


class PacketLimit:
    """What one broker takes; lives as long as its uplink.

    Args:
        where: the broker, for messages.
        configured: bytes of a whole packet; 0 when the config says nothing.
    """

    def __init__(self, where: str, configured: int = 0) -> None:
        self._where = where
        self._configured = configured
        self._said = 0
        self._learned = 0
        self._proven = 0  # the largest packet that was ever acknowledged
        self._strikes = 0

    @property
    def packet(self) -> int:
        """Of a whole packet; 0 when no limit is known."""
        return min(filter(None, (self._configured, self._said, self._learned)), default=0)

    def connected(self, said: Properties | None) -> None:
        """The broker has accepted us.

        Raises:
            UplinkError: it takes too little to be of any use.
        """
        self._said = int(getattr(said, "MaximumPacketSize", 0))
        if 0 < self._said < LEAST:
            message = f"{self._where}: the broker takes packets of {self._said} bytes only"
            raise UplinkError(message, hint=f"raise its limit to {LEAST} at least, better 1 MiB")

    def room(self, topic: str) -> int:
        """Bytes of payload that a publish on `topic` may have; 0 when no limit is known."""
        return max(1, self.packet - _overhead(topic)) if self.packet else 0

    def size(self, topic: str, payload: bytes) -> int:
        """Of the whole packet, at most."""
        return _overhead(topic) + len(payload)

    def acknowledged(self, size: int) -> None:
        """A packet of this size has been taken."""
        if size > self._proven:
            self._proven = size
            self._strikes = 0

    def broken(self, largest: int) -> None:
        """The connection ended, not by us; of what was under way the largest packet had this size."""
        if largest < SUSPECT or largest <= self._proven:
            return
        self._strikes += 1
        if self._strikes >= STRIKES:
            self._strikes = 0
            self._learned = max(LEAST, self._proven, largest // 2)
            log.warning(
                "uplink: %s ends the connection while packets of %d bytes are under way: from now on at most %d; "
                "say how much it takes with uplink.max_packet_kib",
                self._where, largest, self._learned,
            )  # fmt: skip


def _overhead(topic: str) -> int:
    return _FRAME + len(topic.encode())
