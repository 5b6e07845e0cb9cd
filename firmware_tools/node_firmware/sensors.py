# A sensor has `channels` ([name, struct code, UCUM unit]) and `fill(buf, at, n)`, which packs n readings into buf from
# byte `at` on. With `block` it is asked for a whole frame at once (recorded, or buffered by hardware), without it for
# one reading when that is due. `commands` says what may be set: {channel: f(value)}.
import struct


def record_size(channels):
    return struct.calcsize("<" + "".join(code for _, code, _ in channels))


class Counter:
    """0, 1, 2, ...: proves that nothing is lost or doubled."""

    channels = [["n", "I", "1"]]
    block = True

    def __init__(self, start=0):
        self._n = start
        self.commands = {"n": self.set}

    def set(self, n):
        if type(n) is not int:
            raise ValueError("a whole number")
        self._n = n

    def fill(self, buf, at, n):
        for i in range(n):
            struct.pack_into("<I", buf, at + 4 * i, self._n & 0xFFFFFFFF)
            self._n += 1


class Replay:
    """Packed records from a file, again from its start when it ends."""

    block = True

    def __init__(self, file, channels):
        self.channels = channels
        self._size = record_size(channels)
        self._file = open(file, "rb")
        if not self._file.read(self._size):
            raise ValueError("%s holds no record" % file)
        self._file.seek(0)

    def fill(self, buf, at, n):
        view = memoryview(buf)[at : at + n * self._size]
        while view:
            got = self._file.readinto(view)
            if not got:
                self._file.seek(0)
            view = view[got:]
