"""What a node says, readable: its text, its frames, its readings. Nothing is acknowledged, so the node forgets nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from firmware_tools.wire import Wire
from gateway.contract import Sample
from gateway.link import messages
from gateway.link.messages import Hello, Nak, SayHello
from gateway.link.receiver import Receiver

_AGAIN_S = 1.0  # a line that may have been lost is said again
_MEGA = 1_000_000


class Monitor:
    """Turns the bytes of a line into lines for people, and says what asks the node for more.

    Args:
        show: takes a line for people.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._receiver = Receiver("node")
        self._lines_seen = 0
        self._tail: list[str] = []  # lines after the last frame that were shown; they come again when it is cut off
        self.hello: Hello | None = None

    def asks(self) -> bytes:
        """The line to say now; empty while all goes well."""
        if self.hello is None:
            return SayHello().to_line()
        if not self._receiver.ready or self._receiver.gap:
            return Nak(self._receiver.expected).to_line()
        return b""

    def take(self, chunk: bytes) -> bytes:
        """Show what `chunk` brings; gives what to say at once."""
        receiver = self._receiver
        for sample in receiver.feed(chunk, 0):
            self._show(_reading(sample))
        new, self._lines_seen = receiver.deframer.said - self._lines_seen, receiver.deframer.said
        texts = list(receiver.deframer.lines)[-new:] if new else []
        if texts:
            texts, self._tail = _without(self._tail, texts), []
        # a traceback with no frame after it; its last line may be unfinished
        tail = [line.strip() for line in receiver.deframer.rest().splitlines()[:-1] if line.strip()]
        for text in texts + _without(self._tail, tail):
            self._show(f"text    {text}")
        self._tail = tail
        answer = b""
        while receiver.messages:
            answer = self._message(receiver.messages.popleft()) or answer
        while receiver.faults:
            self._show(f"fault   {receiver.faults.popleft()}")
        return answer

    def _message(self, message: messages.Message) -> bytes:
        match message:
            case Hello():
                streams = "; ".join(f"{s.name}: {', '.join(c[0] for c in s.channels)}" for s in message.streams)
                self._show(
                    f"hello   node '{message.node}', firmware {message.firmware}, up {message.us / _MEGA:.1f} s, "
                    f"holds {message.next - message.oldest} of {message.ring} frames; {streams}"
                )
                if message.asked:
                    self.hello = message
                    self._receiver.start(message, message.oldest)
                    return self.asks()
                self.hello = None
                return SayHello().to_line()
            case messages.Resume():
                lost = f", {message.lost_readings} readings overwritten" if message.lost_readings else ""
                self._show(f"resume  from frame {message.first}{lost}")
            case messages.Log():
                self._show(f"log {message.level:<3} {message.text.decode(errors='replace')}")
            case messages.Reply():
                self._show(f"reply   {message.id}: {message.json.decode(errors='replace')}")
            case messages.BlobChunk():
                self._show(f"blob    {message.blob}: {message.offset + len(message.data)} of {message.total} bytes")
            case _:
                pass
        return b""


def _without(shown: list[str], lines: list[str]) -> list[str]:
    return lines[len(shown) :] if lines[: len(shown)] == shown else lines


def _reading(sample: Sample) -> str:
    units = {channel.name: channel.unit.removeprefix("1") for channel in sample.schema.channels}
    values = ", ".join(f"{name} {value:.6g} {units[name]}".rstrip() for name, value in sample.newest().items())
    return f"data    {sample.stream.partition('/')[2]} +{sample.n}: {values}"


async def monitor(wire: Wire, show: Callable[[str], None], seconds: float = 0.0) -> Hello | None:
    """Show what comes for so long, or until cancelled; the last HELLO.

    Raises:
        SourceError: the port went away.
    """
    watch, end = Monitor(show), time.monotonic() + seconds
    while not seconds or time.monotonic() < end:
        if asks := watch.asks():
            await wire.write(asks)
        again = time.monotonic() + _AGAIN_S
        while (wait := min(again, end if seconds else again) - time.monotonic()) > 0:
            if (chunk := await wire.some(wait)) and (answer := watch.take(chunk)):
                await wire.write(answer)
            await asyncio.sleep(0)  # a line that is never quiet lets others in
    return watch.hello
