"""Modbus RTU on a serial port: one question, one answer. Frames and PDUs are pymodbus's, the port is ours.

pymodbus's own client is not used: it reopens a port by its old path, counts silent devices as a lost connection, and
takes the late answer of one question for the answer to the next (docs/decisions.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest, WriteSingleCoilRequest
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
    WriteSingleRegisterRequest,
)

from gateway.acquire.modbus_map import Block
from gateway.acquire.port import SerialPort
from gateway.errors import SourceError

MAX_HEARD = 1024  # bytes in one turn; a frame has at most 256
_OVERHEAD = 8 + 5  # bytes of a read and of its answer beside the registers
_MIN_SILENCE_S = 0.00175  # Modbus over serial line V1.02, 2.5.1.1: 3.5 characters, above 19200 baud this
_READS = {
    "coil": ReadCoilsRequest,
    "discrete": ReadDiscreteInputsRequest,
    "holding": ReadHoldingRegistersRequest,
    "input": ReadInputRegistersRequest,
}
_REFUSALS = {
    1: "it does not know this function",
    2: "it has no such address",
    3: "it does not take this value or this many registers",
    4: "it failed",
    5: "it is still at it",
    6: "it is busy",
}

_SILENCE = "check its power, address, baud rate, parity, and A and B of the line"
_NOISE = "check baud rate and parity, the line's termination, and that no address is there twice"

Fits = Callable[[ModbusPDU], bool]

# what pymodbus says about bytes it cannot use is said here as an error, once
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)


class NoAnswer(SourceError):
    """The device was silent, or what came was no answer to the question."""


class Refused(SourceError):
    """The device answered that it will not."""


class ModbusLine:
    """Asks the devices on an open port, one at a time.

    Attributes:
        bad: turns in which something came that was no answer.
    """

    def __init__(self, port: SerialPort, baud: int, bits: int) -> None:
        self._port = port
        self._byte_s = bits / baud
        self._silence_s = max(3.5 * self._byte_s, _MIN_SILENCE_S)
        self._framer = FramerRTU(DecodePDU(False))
        self._loop = asyncio.get_running_loop()
        self._quiet_at = self._loop.time() + self._silence_s
        self.bad = 0

    def cost_s(self, block: Block, timeout_s: float) -> float:
        """How long a read takes when nobody answers."""
        size = block.count // 8 + 1 if block.table in ("coil", "discrete") else 2 * block.count
        return timeout_s + self._byte_s * (_OVERHEAD + size) + self._silence_s

    async def read(self, unit: int, block: Block, timeout_s: float) -> Sequence[int]:
        """The registers, or the bits, of one block.

        Args:
            timeout_s: how long the device may think; the time of the bytes on the wire comes on top.

        Raises:
            NoAnswer, Refused: see there.
            PortGone: the adapter was unplugged.
        """
        request = _READS[block.table](dev_id=unit, address=block.at, count=block.count)
        bits = block.table in ("coil", "discrete")

        def fits(answer: ModbusPDU) -> bool:
            got = len(answer.bits) if bits else len(answer.registers)
            return got == (-(-block.count // 8) * 8 if bits else block.count)

        answer = await self._ask(request, fits, self.cost_s(block, timeout_s))
        return [int(bit) for bit in answer.bits[: block.count]] if bits else list(answer.registers)

    async def write(self, unit: int, table: str, at: int, words: Sequence[int], timeout_s: float) -> None:
        """Set a coil or holding registers; returns when the device has confirmed it.

        Raises:
            NoAnswer, Refused, PortGone: as of `read`.
        """
        request: ModbusPDU
        if table == "coil":
            request = WriteSingleCoilRequest(dev_id=unit, address=at, bits=[bool(words[0])])
        elif len(words) == 1:
            request = WriteSingleRegisterRequest(dev_id=unit, address=at, registers=list(words))
        else:
            request = WriteMultipleRegistersRequest(dev_id=unit, address=at, registers=list(words))

        def fits(answer: ModbusPDU) -> bool:
            if answer.address != at:
                return False
            if table == "coil":
                return bool(answer.bits[0]) == bool(words[0])
            return answer.count == len(words) if len(words) > 1 else list(answer.registers) == list(words)

        await self._ask(request, fits, self.cost_s(Block("holding", at, len(words)), timeout_s))

    async def _ask(self, request: ModbusPDU, fits: Fits, within_s: float) -> ModbusPDU:
        if (rest := self._quiet_at - self._loop.time()) > 0:
            await asyncio.sleep(rest)
        self._port.take()  # what came unasked, or too late
        self._port.write(self._framer.buildFrame(request))
        heard = b""
        try:
            async with asyncio.timeout(within_s):
                while len(heard) < MAX_HEARD:
                    await self._port.wait()
                    heard += self._port.take()
                    if (answer := self._answer(request, heard, fits)) is not None:
                        return answer
        except TimeoutError:
            pass
        finally:
            self._quiet_at = self._loop.time() + self._silence_s
        if heard:
            self.bad += 1
            raise NoAnswer(f"unit {request.dev_id}: {len(heard)} bytes that are no answer", hint=_NOISE)
        raise NoAnswer(f"unit {request.dev_id}: no answer", hint=_SILENCE)

    def _answer(self, request: ModbusPDU, heard: bytes, fits: Fits) -> ModbusPDU | None:
        """The first frame among the bytes that answers the request; noise before it is passed over."""
        for at in range(len(heard) - 1):
            if heard[at] != request.dev_id or heard[at + 1] & 0x7F != request.function_code:
                continue
            try:
                _, answer = self._framer.handleFrame(heard[at:], request.dev_id, 0)
            except ModbusException:  # a good checksum around nonsense
                continue
            if isinstance(answer, ExceptionResponse):
                code = answer.exception_code
                raise Refused(f"unit {request.dev_id}: {_REFUSALS.get(code, 'refused')} (exception {code})")
            if answer is not None and fits(answer):
                return answer
        return None
