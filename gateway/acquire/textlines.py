"""Lines of text out of bytes, sans-I/O: cut, checked, matched against patterns; what fits none is counted and kept."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from gateway.acquire.pattern import Match, Pattern

MAX_LINE = 512  # bytes; NMEA 0183 has 82, scanners some hundred
KEPT = 8  # bad lines, the newest
SHOWN = 120  # characters of one
_ENDS = re.compile(rb"[\r\n\x02\x03]+")  # STX and ETX too: many scales and scanners frame with them
_NMEA = re.compile(r"([$!])([^*]*)\*([0-9a-fA-F]{2})\s*")


class LineReader:
    """Everything that is known about one line of text sensors.

    Args:
        patterns: the first that fits a line counts.
        nmea: lines must be `$...*hh`, the checksum right; patterns see them without `*hh`.

    Attributes:
        bad: lines that were too long, had a wrong checksum, or fit no pattern.
        bad_lines: the newest of them, fit to be printed.
    """

    def __init__(self, patterns: Sequence[Pattern], *, nmea: bool = False) -> None:
        self._patterns = patterns
        self._nmea = nmea
        self._rest = b""
        self._fresh = True  # nothing before the first end of a line is known to be whole
        self._overlong = False
        self.bad = 0
        self.bad_lines: deque[str] = deque(maxlen=KEPT)

    def clear(self) -> None:
        """The line was cut."""
        self._rest = b""
        self._fresh = True
        self._overlong = False

    def feed(self, chunk: bytes) -> list[tuple[int, Match]]:
        """The lines that `chunk` completes and that fit: which pattern, and its fields."""
        pieces = _ENDS.split(self._rest + chunk)
        self._rest = pieces.pop()
        matches = []
        for piece in pieces:
            overlong, self._overlong = self._overlong or len(piece) > MAX_LINE, False
            fresh, self._fresh = self._fresh, False
            if overlong:
                self._refuse("longer than a line", piece)
            elif piece.strip() and (match := self._match(piece, fresh)) is not None:
                matches.append(match)
        if len(self._rest) > MAX_LINE:
            self._rest = self._rest[-64:]  # enough to show where it ended
            self._overlong = True
        return matches

    def _match(self, piece: bytes, fresh: bool) -> tuple[int, Match] | None:
        line = piece.decode("latin-1")
        why = ""
        if self._nmea:
            checked = _checked(line)
            line, why = (checked, "") if checked is not None else (line, "wrong checksum")
        if not why:
            for i, pattern in enumerate(self._patterns):
                if (match := pattern.match(line)) is not None:
                    return i, match
            why = "fits no pattern"
        if not fresh:  # the first one may be the end of a line that began before we listened
            self._refuse(why, piece)
        return None

    def _refuse(self, why: str, piece: bytes) -> None:
        self.bad += 1
        text = ascii(piece[:SHOWN].decode("latin-1"))
        self.bad_lines.append(f"{why}: {text}{'...' if len(piece) > SHOWN else ''}")


def _checked(line: str) -> str | None:
    """An NMEA 0183 sentence without its checksum, the XOR of what is between `$` and `*`; None when it is wrong."""
    found = _NMEA.fullmatch(line)
    if found is None:
        return None
    check = 0
    for byte in found[2].encode("latin-1"):
        check ^= byte
    return found[1] + found[2] if check == int(found[3], 16) else None
