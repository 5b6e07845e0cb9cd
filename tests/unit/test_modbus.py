"""A Modbus bus as a source, against simulated devices on pseudo terminals."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire import modbus
from gateway.acquire.modbus import ModbusSource
from gateway.acquire.modbus_line import ModbusLine
from gateway.acquire.modbus_map import load_map
from gateway.clock import Clock
from gateway.contract import Severity, SourceState
from gateway.errors import SourceError
from gateway.source_tables import ModbusDevice
from gateway.source_tables import ModbusSource as Table
from gateway.writes import Writes
from sdk.simulated_bus import SDM120, Bus, floats
from tests.unit.held import held
from tests.unit.sinks import Collector

METER = floats(SDM120)
DRIVE = list(range(512))


def device(name: str, unit: int, map: str = "sdm120", *, period_s: float = 0.05) -> ModbusDevice:
    return ModbusDevice(name=name, unit=unit, map=map, period_s=period_s, timeout_s=0.1)


def source(port: Path, *devices: ModbusDevice) -> ModbusSource:
    maps = [load_map(d.map, port.parent / d.map) for d in devices]
    return ModbusSource(Table(name="bus", port=str(port), baud=115200, device=devices), maps, Clock())


def test_a_meter_gives_readings(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {7: METER}):
            made = source(tmp_path / "tty", device("meter", 7))
            async with sink.running(made):
                before = Clock().mono_ns()
                await sink.has(3, "bus/meter")
                status = made.status()
                assert (status.state, status.kind, status.bad) == (SourceState.OK, "modbus", 0)
                assert status.readings >= 3 and status.detail == "1 of 1 devices give readings"
        sample = sink.samples_of("bus/meter")[0]
        assert list(sample.newest().values()) == list(SDM120.values())
        assert sample.schema.channels[2].unit == "W" and before - 10**9 < sample.firsts[0] < Clock().mono_ns()
        assert sink.events == []

    asyncio.run(story())


def test_a_silent_device_is_an_event_and_the_others_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: METER, 2: METER}) as bus:
            made = source(tmp_path / "tty", device("a", 1, period_s=0.3), device("b", 2, period_s=0.3))
            async with sink.running(made):
                await sink.has(1, "bus/b")
                bus.dead.add(2)
                await sink.saw("device.silent", "raised")
                assert sink.events[-1][2:] == (
                    "bus: device 'b' (unit 2): unit 2: no answer (check its power, address, baud rate, parity, and A "
                    "and B of the line)",
                    {"device": "b"},
                )
                assert made.status().detail == "1 of 2 devices give readings; not: b"
                assert made.status().state is SourceState.OK
                assert made.status().stale == ("bus/b",)
                await sink.has(len(sink.samples_of("bus/a")) + 5, "bus/a")
                bus.dead.clear()
                await sink.saw("device.silent", "cleared")
                assert made.status().detail == "2 of 2 devices give readings"
                assert made.status().stale == ()

    asyncio.run(story())


def test_a_bus_without_any_answer_is_silent(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: METER}) as bus:
            bus.dead.add(1)
            made = source(tmp_path / "tty", device("a", 1))
            async with sink.running(made):
                await sink.saw("source.silent", "raised")
                bus.dead.clear()
                await sink.saw("source.silent", "cleared")
                assert made.status().state is SourceState.OK

    asyncio.run(story())


def test_a_refusal_is_told_with_what_the_device_said(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: [0] * 20, 2: METER}):
            made = source(tmp_path / "tty", device("a", 1), device("b", 2))
            async with sink.running(made):
                await sink.saw("device.refusing", "raised")
                assert "unit 1: it has no such address (exception 2)" in sink.events[-1][2]
                await sink.has(3, "bus/b")

    asyncio.run(story())


def test_broken_answers_count_as_bad_and_give_no_reading(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: METER}) as bus:
            bus.garble.add(1)
            made = source(tmp_path / "tty", device("a", 1))
            async with sink.running(made):
                await sink.saw("device.silent", "raised")
                assert "bytes that are no answer" in sink.events[0][2]
                assert made.status().bad >= 3 and sink.got == []
                bus.garble.clear()
                await sink.has(1)

    asyncio.run(story())


def test_noise_before_an_answer_is_passed_over(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: METER}) as bus:
            bus.slow[1] = 0.03
            made = source(tmp_path / "tty", device("a", 1))
            async with sink.running(made):
                for n in range(5):
                    asked = bus.asked.get(1, 0)
                    while bus.asked.get(1, 0) == asked:
                        await asyncio.sleep(0.001)
                    bus.cable.say(b"\x00\xff\x01\x04\x02\x01")  # the start of an answer of another length among it
                    await sink.has(n + 1)
                assert all(list(s.newest().values()) == list(SDM120.values()) for s in sink.got)

    asyncio.run(story())


def test_commands_are_written_and_read_back(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {3: DRIVE}):
            made = source(tmp_path / "tty", device("fan", 3, "sinamics_g120", period_s=5))
            with pytest.raises(SourceError, match="'bus' is not connected"):
                await made.write("fan/control_word", 1)
            async with sink.running(made):
                await sink.has(1)
                await asyncio.gather(made.write("fan/control_word", 0x047F), made.write("fan/main_setpoint", -50.0))
                await sink.has(2)  # at once, not after its period
                newest = sink.got[-1].newest()
                assert (newest["control_word"], newest["main_setpoint"]) == (0x047F, -50.0)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        ("pump/speed", 1, r"there is no device 'pump' \(declared are fan\)"),
        ("fan/sped", 1, r"there is no channel 'sped'"),
        ("fan/speed", 1, r"'speed' can only be read"),
        ("fan/control_word", -1, r"-1 is out of range for u16"),
        ("fan/control_word", 1.5, r"1\.5 is no whole number"),
        ("fan/control_word", "on", r"'on' is no number"),
        ("fan/main_setpoint", 250.0, r"250\.0 is out of range for i16"),
        ("fan/main_setpoint", float("nan"), r"nan is no number"),
    ],
)
def test_commands_that_cannot_be_are_refused(tmp_path: Path, metric: str, value: float | str, says: str) -> None:
    made = source(tmp_path / "tty", device("fan", 3, "sinamics_g120"))
    with pytest.raises(SourceError, match=says):
        asyncio.run(made.write(metric, value))


def test_a_command_to_a_dead_device_is_answered(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {3: DRIVE}) as bus:
            made = source(tmp_path / "tty", device("fan", 3, "sinamics_g120"))
            async with sink.running(made):
                await sink.has(1)
                bus.dead.add(3)
                with pytest.raises(SourceError, match="unit 3: no answer"):
                    await made.write("fan/control_word", 1)

    asyncio.run(story())


def test_a_command_of_a_host_ends_in_an_event(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {3: DRIVE}):
            made = source(tmp_path / "tty", device("fan", 3, "sinamics_g120"))

            def notify(name: str, state: str, severity: Severity, message: str) -> None:
                sink.event(name, state, severity, message)

            writes = Writes({"bus": made}, notify)
            async with sink.running(made), asyncio.TaskGroup() as tasks:
                task = tasks.create_task(writes.run(), name="writes")
                await sink.has(1)
                writes.put("bus", "fan/control_word", 3)
                writes.put("bus", "fan/speed", 3)
                await sink.saw("command.refused", "point")
                task.cancel()
        assert [(name, message) for name, _, message, _ in sink.events] == [
            ("command.done", "bus: fan/control_word = 3"),
            (
                "command.refused",
                "bus: fan/speed: 'speed' can only be read (write = true in its map, if the device takes it)",
            ),
        ]

    asyncio.run(story())


def test_coils_and_floats_of_a_map_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "valve.toml").write_text(
        'title = "valve"\nmanual = "none"\n'
        '[[channel]]\nname = "open"\ntable = "coil"\nat = 17\nwrite = true\n'
        '[[channel]]\nname = "flow"\ntable = "holding"\nat = 40\ntype = "f32"\norder = "CDAB"\nwrite = true\nunit = "l/min"\n'
    )

    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {9: [0] * 100}):
            made = source(tmp_path / "tty", device("valve", 9, "valve.toml", period_s=5))
            async with sink.running(made):
                await sink.has(1)
                await made.write("valve/open", True)
                await made.write("valve/flow", 12.5)
                await sink.until(lambda: sink.got[-1].newest()["flow"] == 12.5)
                assert sink.got[-1].newest()["open"] == 1

    asyncio.run(story())


def test_an_adapter_comes_back_a_hundred_times_without_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modbus, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        sink = Collector()
        async with Bus(tmp_path / "tty", {1: METER, 3: DRIVE}) as bus:
            made = source(tmp_path / "tty", device("a", 1), device("fan", 3, "sinamics_g120"))
            async with sink.running(made):
                await sink.has(1)
                before = held()
                for _ in range(100):
                    bus.cable.unplug()
                    await sink.saw("source.lost", "raised")
                    assert made.status().state is SourceState.LOST
                    sink.events.clear()
                    bus.cable.plug()
                    await sink.saw("source.lost", "cleared")
                    await sink.has(len(sink.got) + 2)
                assert held() == before

    asyncio.run(story())


def test_while_the_store_takes_nothing_the_bus_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modbus, "UNSTORED_MAX", 4)

    async def story() -> None:
        sink = Collector(held=True)
        async with Bus(tmp_path / "tty", {1: METER}) as bus:
            made = source(tmp_path / "tty", device("a", 1, period_s=0.01))
            async with sink.running(made):
                await sink.has(4)
                asked = bus.asked[1]
                await asyncio.sleep(0.1)  # ten periods
                assert bus.asked[1] == asked and len(sink.got) == 4
                sink.commit()
                await sink.has(8)

    asyncio.run(story())


@given(st.binary(max_size=64), st.integers(0, 3))
def test_no_bytes_break_the_reader_of_answers(noise: bytes, kind: int) -> None:
    from pymodbus.pdu.bit_message import ReadCoilsRequest
    from pymodbus.pdu.register_message import (
        ReadInputRegistersRequest,
        WriteMultipleRegistersRequest,
        WriteSingleRegisterRequest,
    )

    ask = (ReadCoilsRequest, ReadInputRegistersRequest, WriteMultipleRegistersRequest, WriteSingleRegisterRequest)
    request = ask[kind](dev_id=1, address=0, count=2)

    class Line(ModbusLine):
        def __init__(self) -> None:
            from pymodbus.framer import FramerRTU
            from pymodbus.pdu import DecodePDU

            self._framer = FramerRTU(DecodePDU(False))

    line = Line()
    starts = bytes([1, request.function_code]) + noise
    for heard in (noise, starts, bytes([1, request.function_code | 0x80]) + noise):
        crc = line._framer.compute_CRC(heard)
        for frame in (heard, heard + struct.pack(">H", crc)):
            try:
                line._answer(request, frame, lambda _: True)
            except SourceError as error:
                assert "exception" in str(error)
