"""Who is asked when: a bus in virtual time, with devices that are dead, slow or come back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.acquire.modbus_schedule import BACKOFF_MAX_S, PROBE_SHARE, Schedule, Slot


class VirtualBus:
    """Runs a schedule without a clock; counts the turns of each slot that were answered."""

    def __init__(self, count: int, *, period_s: float, cost_s: float, turn_s: float) -> None:
        self.now = 0.0
        self.slots = [Slot(f"d{i}", period_s, cost_s, 0.0) for i in range(count)]
        self.schedule = Schedule(self.slots)
        self.turn_s = {slot.name: turn_s for slot in self.slots}
        self.dead: set[str] = set()
        self.turns: dict[str, int] = {slot.name: 0 for slot in self.slots}
        self.tried: dict[str, int] = dict(self.turns)

    def run(self, seconds: float) -> dict[str, int]:
        """Turns answered, by device, within the next so many seconds."""
        self.turns = dict.fromkeys(self.turns, 0)
        end = self.now + seconds
        while self.now < end:
            slot, wait = self.schedule.next(self.now)
            if slot is None:
                assert wait > 0
                self.now += wait
                continue
            self.tried[slot.name] += 1
            if slot.name in self.dead:
                self.now += slot.cost_s
                self.schedule.failed(slot, self.now, slot.cost_s)
            else:
                self.now += self.turn_s[slot.name]
                self.schedule.answered(slot, self.now)
                self.turns[slot.name] += 1
        return self.turns


@pytest.mark.parametrize(
    ("period_s", "turn_s"),
    [
        (1.0, 0.005),  # a bus with much time to spare
        (1.0, 0.04),  # 32 x 40 ms is more than there is: everyone as often as possible
        (0.1, 0.03),  # 9600 baud, asked for far too much
    ],
)
def test_a_third_dead_leaves_the_others_their_rate(period_s: float, turn_s: float) -> None:
    alive = [f"d{i}" for i in range(32) if i % 3]
    rates = []
    for dead in (set(), {f"d{i}" for i in range(32) if not i % 3}):
        bus = VirtualBus(32, period_s=period_s, cost_s=0.35, turn_s=turn_s)
        bus.dead = dead
        bus.run(60)  # with the first minute, in which they are found dead, the rate is another story
        rates.append(min(bus.run(600)[name] for name in alive) / 600)
    assert rates[1] >= 0.9 * rates[0]


def test_a_device_that_dies_costs_one_turn_at_once_and_little_after() -> None:
    bus = VirtualBus(4, period_s=0.1, cost_s=1.0, turn_s=0.05)  # no time to spare
    before = bus.run(100)["d0"]
    bus.dead = {"d3"}
    after = bus.run(100)["d0"]
    assert after >= before * (1 - PROBE_SHARE) - 20  # its first turn took the time of 20 others
    assert bus.tried["d3"] - 500 <= 100 * PROBE_SHARE + 1


def test_a_slow_device_costs_its_own_turn_only() -> None:
    bus = VirtualBus(10, period_s=0.1, cost_s=1.0, turn_s=0.02)
    bus.turn_s["d0"] = 0.8
    turns = bus.run(980)
    assert max(turns.values()) - min(turns.values()) <= 1  # round and round: each once in 0.98 s
    assert turns["d1"] == pytest.approx(1000, abs=2)


def test_in_pauses_a_dead_device_is_asked_at_no_cost() -> None:
    bus = VirtualBus(2, period_s=1.0, cost_s=0.3, turn_s=0.01)
    bus.dead = {"d1"}
    assert bus.run(100)["d0"] == pytest.approx(100, abs=1)
    assert bus.tried["d1"] >= 100 / BACKOFF_MAX_S


def test_who_comes_back_is_found() -> None:
    for period_s, turn_s in ((1.0, 0.01), (0.1, 0.05)):
        bus = VirtualBus(8, period_s=period_s, cost_s=0.3, turn_s=turn_s)
        bus.dead = {"d1", "d2"}
        bus.run(600)
        bus.dead = set()
        bus.run(BACKOFF_MAX_S + 10)
        turns = bus.run(60)
        assert min(turns.values()) >= 0.9 * max(turns.values())


def test_one_lost_answer_is_asked_for_again_after_a_period() -> None:
    bus = VirtualBus(1, period_s=1.0, cost_s=0.3, turn_s=0.01)
    bus.dead = {"d0"}
    bus.run(0.2)
    bus.dead = set()
    assert bus.run(2.0)["d0"] >= 1


def test_a_written_device_is_read_at_once_but_a_dead_one_is_not() -> None:
    bus = VirtualBus(2, period_s=100.0, cost_s=0.3, turn_s=0.01)
    bus.dead = {"d1"}
    bus.run(1.0)
    for slot in bus.slots:
        bus.schedule.soon(slot, bus.now)
    assert bus.schedule.next(bus.now)[0] is bus.slots[0]
    bus.schedule.answered(bus.slots[0], bus.now)
    assert bus.schedule.next(bus.now)[0] is None


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0.01, 1), st.booleans()), min_size=1, max_size=12),
    st.floats(0.001, 0.2),
)
@settings(max_examples=50)
def test_nobody_who_answers_starves(devices: list[tuple[float, float, bool]], turn_s: float) -> None:
    bus = VirtualBus(len(devices), period_s=1.0, cost_s=1.0, turn_s=turn_s)
    for slot, (period_s, cost_s, dead) in zip(bus.slots, devices, strict=True):
        slot.period_s, slot.cost_s = period_s, cost_s
        if dead:
            bus.dead.add(slot.name)
    bus.run(60)
    turns = bus.run(60)
    alive = [slot for slot in bus.slots if slot.name not in bus.dead]
    for slot in alive:
        fair = min(60 / slot.period_s, 60 / (turn_s * len(alive)))
        assert turns[slot.name] >= 0.85 * fair - 2
