"""Whether a Sparkplug host is there, from the STATE messages that it retains."""

from __future__ import annotations

import msgspec

from gateway.sync.sparkplug import NAMESPACE

MAX_STATE = 1024  # bytes


class State(msgspec.Struct, frozen=True):
    """The JSON of a STATE message; `timestamp` in ms since 1970, made by the host at its CONNECT."""

    online: bool
    timestamp: int


_decode = msgspec.json.Decoder(State).decode


class PrimaryHost:
    """One host's word, in the order of its own timestamps: a death that arrives late does not count.

    Args:
        host_id: the last token of its STATE topic.
    """

    def __init__(self, host_id: str) -> None:
        self.id = host_id
        self.topic = f"{NAMESPACE}/STATE/{host_id}"
        self.online = False
        self._timestamp: int | None = None

    def reset(self) -> None:
        """Another connection: nothing has been heard on it yet."""
        self.online = False
        self._timestamp = None

    def hear(self, payload: bytes) -> bool:
        """Take a message of its topic; False when it says nothing that counts (no STATE, or older than the last)."""
        if len(payload) > MAX_STATE:
            return False
        try:
            state = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if self._timestamp is not None and state.timestamp < self._timestamp:
            return False
        self._timestamp, self.online = state.timestamp, state.online
        return True
