"""Undoing ACSF1's normalisation, the offline labels and the splits, on recordings made here."""

import numpy as np
import pytest

from models.machine_state import data, faults, package, strange
from sdk import demo_data, recordings
from sdk.recordings import Floats, Recording


def acsf1_row(power: Floats, reactive: Floats, volts: float) -> str:
    """As the archive has it: interleaved, z-normalised, eight digits."""
    current = np.hypot(power, reactive) / volts
    table = np.stack([reactive, power, np.full(len(power), volts), current], axis=1)
    raw = table.ravel()
    return ",".join(f"{value:.8f}" for value in (raw - raw.mean()) / raw.std())


@pytest.mark.parametrize("volts", [212.0, 233.5])
def test_acsf1_gives_its_watts_volts_and_amps_back(volts: float) -> None:
    random = np.random.default_rng(3)
    power = np.repeat([2.3, 140.0, 61.0, 2.3, 155.5], 73) + random.integers(0, 12, 365) / 10
    reactive = np.round(0.3 * power, 1)
    found = recordings._acsf1(acsf1_row(power, reactive, volts), 0)
    assert found.power is not None
    np.testing.assert_allclose(found.power, power, atol=0.02)
    np.testing.assert_allclose(found.current, np.hypot(power, reactive) / volts, atol=1e-3)
    assert found.volts == pytest.approx(volts, rel=1e-3)
    assert found.kind == "fridge"


def plaid(values: Floats, kind: str = "fan", name: str = "plaid/0") -> Recording:
    return Recording(name, "plaid", kind, 1 / 300, values, None, 0.0)


def test_segmentation_sees_the_states_and_forgets_what_is_short() -> None:
    relative = np.concatenate([np.zeros(100), np.full(100, 0.2), np.full(8, 3.0), np.full(100, 0.2), np.full(200, 1.0)])
    state = data.segment(relative, 20)
    assert [int(state[i]) for i in (10, 150, 204, 260, 400)] == [
        data.OFF,
        data.IDLE,
        data.IDLE,
        data.IDLE,
        data.RUNNING,
    ]
    assert len(state) == len(relative)


def test_splits_are_fixed_and_held_out_kinds_are_test_only() -> None:
    kinds = set(recordings.PLAID_KINDS) | set(recordings.ACSF1_KINDS)
    assert kinds > data.TEST_KINDS | data.VALIDATION_KINDS
    assert not data.TEST_KINDS & data.VALIDATION_KINDS
    # the four of 1.0.0's test may not be tested on again
    assert not data.TEST_KINDS & {"fan", "hi-fi", "microwave", "vacuum cleaner"}
    made = [plaid(np.ones(9), kind, f"plaid/{kind}/{i}") for kind in sorted(kinds) for i in range(200)]
    sizes = {split: len(data.select(made, split)) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == len(made)
    assert sizes["train"] / (11 * 200) == pytest.approx(0.7, abs=0.03)
    assert not {r.kind for r in data.select(made, "train")} & (data.TEST_KINDS | data.VALIDATION_KINDS)
    # what the demo replays was not learned
    assert set(demo_data.PARTS) == data.SHOWN
    assert {data.split_of(plaid(np.ones(9), "fridge", name)) for name in demo_data.PARTS} == {"validation"}


def test_varied_traces_keep_full_load_and_have_their_own_labels() -> None:
    start = plaid(np.concatenate([np.zeros(60), np.full(120, 0.1), np.ones(240)]))
    made = [data.play(start, np.random.default_rng(seed), varied=True) for seed in range(30)]
    for trace in made:
        assert {data.OFF, data.RUNNING} <= set(trace.state)
        running = float(np.median(trace.current[trace.state == data.RUNNING]))
        assert 0.7 * data.RATED_A < running < 1.3 * data.RATED_A
        off = trace.current[trace.state == data.OFF]
        assert np.median(off) < 2 * data.OFF_BELOW * data.RATED_A
    assert len({len(trace.state) for trace in made}) > 10


def test_windows_of_two_archives_are_joined_by_the_names_of_their_kinds() -> None:
    one = data.windows([plaid(np.ones(300), "fan", "plaid/1")], seed=1)
    other = data.windows([plaid(np.ones(300), "computer", "plaid/2")], seed=1)
    both = data.joined([one, other])
    assert both.kinds == ("computer", "fan")
    assert list(both.of({"fan"})) == [True] * len(one) + [False] * len(other)
    np.testing.assert_array_equal(both.states[: len(one)], one.states)


def test_windows_do_not_depend_on_the_other_recordings() -> None:
    start = np.concatenate([np.zeros(60), np.ones(240)])
    one, other = plaid(start, name="plaid/1"), plaid(2 * start, name="plaid/2")
    alone, both = data.windows([other], seed=4), data.windows([one, other], seed=4)
    np.testing.assert_array_equal(alone.x, both.x[-len(alone) :])
    assert alone.x.shape[1:] == (2, data.LENGTH)
    assert (alone.x >= 0).all()


def test_f1_from_a_confusion_table() -> None:
    truth, said = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 2])
    np.testing.assert_allclose(data.f1(data.confusion(truth, said)), [1.0, 2 / 3, 0.8])


def test_golden_windows_scale_with_the_rating() -> None:
    small, large = package.golden_windows(1.0, 230.0), package.golden_windows(10.0, 2300.0)
    for name, records in small.items():
        np.testing.assert_allclose(np.frombuffer(large[name], "<f4"), 10 * np.frombuffer(records, "<f4"), rtol=1e-5)


def test_auroc_counts_pairs() -> None:
    assert data.auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert data.auroc(np.array([0.0, 1.0]), np.array([1.0, 0.5])) == pytest.approx(0.625)


@pytest.mark.parametrize("name", sorted(faults.KINDS))
def test_a_worse_fault_disturbs_more_and_none_makes_current_negative(name: str) -> None:
    x = np.ones((20, 2, data.LENGTH), np.float32)
    kind = faults.KINDS[name]
    uneven = [kind.inject(x, np.random.default_rng(1), severity)[:, 0].std() for severity in (0.0, *kind.curve)]
    assert uneven[0] == pytest.approx(0.0, abs=1e-6)
    assert uneven == sorted(uneven)
    assert kind.put(x, np.random.default_rng(2)).min() >= 0


def test_a_lost_half_cycle_reaches_three_readings_beyond_itself() -> None:
    x = np.ones((200, 2, data.LENGTH), np.float32)
    low = faults.arcing(x, np.random.default_rng(3), 0.3)[:, 1] < 1
    assert set(low.sum(axis=1)) >= {0, 5}


def test_damage_is_no_step_and_leaves_the_original() -> None:
    x = np.ones((50, 2, data.LENGTH), np.float32)
    damaged = strange.damage(x, np.random.default_rng(4))
    assert np.isfinite(damaged).all()
    assert (x == 1).all()
    assert (damaged != x).any(axis=(1, 2)).mean() > 0.7
