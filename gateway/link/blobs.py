"""Puts the chunks of large things (pictures of a serial camera) together again, in bounded memory."""

from __future__ import annotations

from gateway.link.messages import BlobChunk


class Assembler:
    """One blob at a time, chunks in order; whatever breaks that drops the blob, the next one starts afresh.

    Attributes:
        dropped: blobs that were begun and never completed, or were larger than `max_bytes`.
    """

    def __init__(self, max_bytes: int = 4 << 20) -> None:
        self.dropped = 0
        self._max = max_bytes
        self._blob = -1
        self._total = 0
        self._data = bytearray()  # not a list of pieces: those may be of one byte

    def add(self, chunk: BlobChunk) -> bytes | None:
        """The whole blob when this chunk completes it."""
        if chunk.offset == 0:
            self._give_up()
            if not 0 < chunk.total <= self._max:
                self.dropped += 1
                return None
            self._blob, self._total = chunk.blob, chunk.total
        elif chunk.blob != self._blob or chunk.offset != len(self._data) or chunk.total != self._total:
            self._give_up()
            return None
        self._data += chunk.data
        if len(self._data) < self._total and chunk.data:
            return None
        if len(self._data) != self._total:
            self._give_up()
            return None
        whole = bytes(self._data)
        self._reset()
        return whole

    def stop(self) -> None:
        """The line was cut: what was begun does not go on."""
        self._give_up()

    def _give_up(self) -> None:
        self.dropped += self._blob >= 0
        self._reset()

    def _reset(self) -> None:
        self._blob, self._total = -1, 0
        self._data = bytearray()
