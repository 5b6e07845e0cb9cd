"""A Modbus RTU bus as a source: every device of it read once a period, commands between the reads.

A turn reads all blocks of one device; only a whole record becomes a reading. Whose turn it is, and how little a silent
device may cost the others, is `gateway.acquire.modbus_schedule`. Devices remember nothing: what was not read is not
there, and while the store takes nothing more the bus is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections import deque

from gateway.acquire.modbus_line import ModbusLine, NoAnswer, Refused
from gateway.acquire.modbus_map import ChannelTable, DeviceMap
from gateway.acquire.modbus_schedule import SILENT_AFTER, Schedule, Slot
from gateway.acquire.port import SerialPort, open_port
from gateway.acquire.states import Health, keep_open
from gateway.acquire.unstored import Unstored
from gateway.clock import Clock
from gateway.contract import Sample, Severity, Sink, SourceState, SourceStatus
from gateway.errors import SourceError
from gateway.source_tables import ModbusDevice
from gateway.source_tables import ModbusSource as ModbusTable

REOPEN_S = (0.2, 5.0)  # first and longest pause before the port is opened again
UNSTORED_MAX = 10_000  # readings handed over and not on disk; past it the bus is not read
MAX_WRITES = 100  # waiting
NAMED = 4  # silent devices that the status names


class _Device:
    """One device, and how it is."""

    def __init__(self, table: ModbusDevice, map: DeviceMap, source: str) -> None:
        self.table = table
        self.map = map
        self.stream = f"{source}/{table.name}"
        self.slot = Slot(table.name, table.period_s, table.timeout_s, 0.0)
        self.trouble = ""  # device.silent or device.refusing, once it was told
        self.refusals = 0  # one after the other


class _Write:
    """A command that waits for its turn on the bus."""

    def __init__(self, device: _Device, channel: ChannelTable, words: list[int]) -> None:
        self.device = device
        self.channel = channel
        self.words = words
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class ModbusSource:
    """A `gateway.contract.WritableSource` for one bus.

    Args:
        table: its table of the config file, the port made absolute.
        maps: the map of each of its devices, in their order.
        clock: this machine's clock.
    """

    kind = "modbus"

    def __init__(self, table: ModbusTable, maps: list[DeviceMap], clock: Clock) -> None:
        self.name = table.name
        self._table = table
        self._clock = clock
        self._devices = {d.name: _Device(d, map, table.name) for d, map in zip(table.device, maps, strict=True)}
        self._schedule = Schedule([device.slot for device in self._devices.values()])
        self._health = Health(table.name)
        self._unstored = Unstored(UNSTORED_MAX, self._poke)
        self._writes: deque[_Write] = deque()
        self._port: SerialPort | None = None
        self._readings = 0
        self._bad = 0

    # --- the source ------------------------------------------------------------------------------------------

    async def run(self, sink: Sink) -> None:
        """Reads until it is cancelled; an adapter that goes away is opened again when it is back."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        await keep_open(self._health, sink, self._watch, REOPEN_S)

    def status(self) -> SourceStatus:
        health = self._health
        stale = tuple(device.stream for device in self._devices.values() if device.trouble)
        return SourceStatus(
            self.name, self.kind, health.state, health.detail, readings=self._readings, bad=self._bad, stale=stale
        )

    async def write(self, metric: str, value: bool | int | float | str) -> None:
        """Set `<device>/<channel>`; returns when the device has confirmed it.

        Raises:
            SourceError: there is no such metric, the map does not let it be written, the value does not fit, or the
                device did not take it.
        """
        name, _, channel_name = metric.partition("/")
        device = self._devices.get(name)
        if device is None:
            raise SourceError(f"there is no device '{name}'", hint=f"declared are {', '.join(self._devices)}")
        channel = device.map.writable(channel_name)
        words = channel.encode(value)
        if self._port is None:
            raise SourceError(f"'{self.name}' is not connected: {self._health.detail}")
        if len(self._writes) >= MAX_WRITES:
            raise SourceError(f"{MAX_WRITES} writes are waiting already")
        write = _Write(device, channel, words)
        self._writes.append(write)
        self._poke()
        await write.done

    # --- one connection --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            await self._converse()
        except SourceError as error:
            self._drop_writes(str(error))
            raise

    async def _converse(self) -> None:
        """From opening the port to losing it, which raises."""
        table = self._table
        port = open_port(table.port, table.baud, self._sink.wait_s, parity=table.parity, stop_bits=table.stop_bits)
        self._port = port
        try:
            line = ModbusLine(port, table.baud, 9 + (table.parity != "N") + table.stop_bits)
            now = self._loop.time()
            for device in self._devices.values():
                # a bus that was unplugged says nothing about its devices: all of them get their turn at once
                device.slot.failures, device.slot.due = 0, now
                device.slot.cost_s = line.cost_s(device.map.blocks[0], device.table.timeout_s)
            while True:
                await self._step(port, line)
        finally:
            self._port = None
            port.close()

    async def _step(self, port: SerialPort, line: ModbusLine) -> None:
        """One command, one turn of a device, or a wait until there is something to do."""
        if self._writes:
            await self._write_one(line, self._writes.popleft())
            return
        wait: float | None = None
        if not self._unstored.full:
            slot, wait = self._schedule.next(self._loop.time())
            if slot is not None:
                await self._turn(line, self._devices[slot.name])
                return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await port.wait()  # ends for a command and for what is on disk too, and raises when the port goes
        port.take()

    async def _turn(self, line: ModbusLine, device: _Device) -> None:
        begin, begin_ns, bad = self._loop.time(), self._clock.mono_ns(), line.bad
        try:
            answers = [await line.read(device.table.unit, block, device.table.timeout_s) for block in device.map.blocks]
        except NoAnswer as error:
            now = self._loop.time()
            self._schedule.failed(device.slot, now, now - begin)
            self._bad += line.bad - bad
            if device.slot.failures >= SILENT_AFTER:
                self._tell(device, "device.silent", str(error))
            return
        except Refused as error:
            self._schedule.answered(device.slot, self._loop.time())
            device.refusals += 1
            if device.refusals >= SILENT_AFTER:  # one may pass: it was busy
                self._tell(device, "device.refusing", str(error))
            return
        self._schedule.answered(device.slot, self._loop.time())
        self._pour(device, device.map.record(answers), (begin_ns + self._clock.mono_ns()) // 2)
        device.refusals = 0
        self._tell(device, "", "it answers")

    def _pour(self, device: _Device, record: bytes, mono_ns: int) -> None:
        times = array("q", (mono_ns,)), array("q", (0,)), array("H", (1,))
        self._readings += 1
        self._unstored.add(self._sink.samples([Sample(device.stream, device.map.schema, *times, record)], None), 1)

    async def _write_one(self, line: ModbusLine, write: _Write) -> None:
        if write.done.done():  # whoever asked has gone
            return
        table = write.device.table
        try:
            await line.write(table.unit, write.channel.table, write.channel.at, write.words, table.timeout_s)
        except (NoAnswer, Refused) as error:
            outcome: SourceError | None = error
        except (SourceError, asyncio.CancelledError):
            self._writes.appendleft(write)  # it is answered with the others, when it is known why
            raise
        else:
            outcome = None
            self._schedule.soon(write.device.slot, self._loop.time())
        if not write.done.done():
            if outcome:
                write.done.set_exception(outcome)
            else:
                write.done.set_result(None)

    def _drop_writes(self, why: str) -> None:
        while self._writes:
            done = self._writes.popleft().done
            if not done.done():
                done.set_exception(SourceError(f"'{self.name}' went away: {why}"))

    def _poke(self) -> None:
        if self._port is not None:
            self._port.poke()

    # --- what the world sees ---------------------------------------------------------------------------------

    def _tell(self, device: _Device, trouble: str, why: str) -> None:
        """A device that falls silent, refuses, or is well again is an event; the bus is as its devices are."""
        old, device.trouble = device.trouble, trouble
        if old == trouble and self._health.state in (SourceState.OK, SourceState.SILENT, SourceState.FAILING):
            return
        what = f"{self.name}: device '{device.table.name}' (unit {device.table.unit}): {why}"
        if old and old != trouble:
            self._sink.event(old, "cleared", Severity.INFO, what, device=device.table.name)
        if trouble and old != trouble:
            self._sink.event(trouble, "raised", Severity.WARNING, what, device=device.table.name)
        ill = [name for name, other in self._devices.items() if other.trouble]
        if len(ill) == len(self._devices):
            state = SourceState.SILENT if trouble == "device.silent" else SourceState.FAILING
            self._health.turn(self._sink, state, f"no device gives readings: {why}")
            return
        more = f" and {len(ill) - NAMED} more" if len(ill) > NAMED else ""
        named = f"; not: {', '.join(ill[:NAMED])}{more}" if ill else ""
        well = len(self._devices) - len(ill)
        self._health.turn(self._sink, SourceState.OK, f"{well} of {len(self._devices)} devices give readings{named}")
