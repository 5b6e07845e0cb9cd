"""An RS-485 bus of simulated devices: pymodbus's own server behind a pair of pseudo terminals."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

from sdk.cable import Cable

REGISTERS = 512
SDM120 = {0: 230.5, 6: 1.5, 12: 345.0, 18: 346.0, 24: -12.5, 30: 0.75, 70: 50.0, 72: 1234.5, 74: 0.5, 342: 1235.0}


def floats(values: Mapping[int, float]) -> list[int]:
    """Registers of a device that holds IEEE 754 floats, high word first, at the addresses of `values`."""
    registers = [0] * REGISTERS
    for at, value in values.items():
        registers[at : at + 2] = struct.unpack(">HH", struct.pack(">f", value))
    return registers


class Bus:
    """Devices on a cable, as a context manager.

    Args:
        registers: of each unit; input and holding registers, coils and discrete inputs are the same, as in many devices.

    Attributes:
        dead: units that do not answer; may change at any time.
        slow: how long a unit thinks, seconds.
        shows: registers that a unit shall show from now on; taken when it is asked next.
        asked: how often each unit was asked for something.
    """

    def __init__(self, port: Path, registers: Mapping[int, Sequence[int]]) -> None:
        self._port = port
        self._registers = registers
        self.dead: set[int] = set()
        self.slow: dict[int, float] = {}
        self.shows: dict[int, list[int]] = {}
        self.asked: dict[int, int] = {}
        self.garble: set[int] = set()  # units whose answers lose their last byte

    async def __aenter__(self) -> Self:
        self.cable = Cable(self._port)
        devices = [self._device(unit, list(values)) for unit, values in self._registers.items()]
        self._server = ModbusSerialServer(
            devices, port=self.cable.far_end, baudrate=115200, ignore_missing_devices=True, trace_packet=self._packet
        )
        await self._server.serve_forever(background=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.shutdown()
        self.cable.close()

    def _device(self, unit: int, values: list[int]) -> SimDevice:
        async def think(_function: int, _start: int, _at: int, _count: int, now: list[int], *_: Any) -> ExcCodes | None:
            self.asked[unit] = self.asked.get(unit, 0) + 1
            now[:] = self.shows.pop(unit, now)
            if unit in self.slow:
                await asyncio.sleep(self.slow[unit])
            return None

        return SimDevice(id=unit, simdata=[SimData(0, values=values, datatype=DataType.REGISTERS)], action=think)

    def _packet(self, sending: bool, data: bytes) -> bytes:
        if sending and data[0] in self.dead:
            return b""
        return data[:-1] if sending and data[0] in self.garble else data
