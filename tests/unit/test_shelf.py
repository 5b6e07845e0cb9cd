"""The state of a swap on disk: bounded, whole or refused, and never in the way of a start."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Severity
from gateway.errors import ModelError, StoreError
from gateway.infer import shelf
from gateway.infer.shelf import CONFIGURED, MAX_STARTS, Copy, Shelf, State, Step, Wish, active_bundle, parse, sha256_of
from gateway.infer.swap import opened

HASH = st.text("0123456789abcdef", min_size=64, max_size=64)
COPY = st.builds(Copy, HASH, HASH, st.text(max_size=60)) | st.just(CONFIGURED)
WISH = st.builds(
    Wish,
    st.floats(0, 604_800),
    st.integers(1, 1_000_000),
    st.floats(0, 604_800),
    st.floats(1, 1e6),
)


@st.composite
def states(draw: st.DrawFn) -> State:
    step = draw(st.sampled_from(Step))
    candidate = None if step is Step.SETTLED else draw(COPY)
    trial = step is Step.TRIAL
    active = candidate if trial and candidate is not None else draw(COPY)
    return State(
        1, draw(HASH), active, draw(COPY if trial else COPY | st.none()), draw(COPY | st.none()), candidate, step,
        draw(WISH), draw(st.integers(0, 1000)), draw(st.floats(0, 1e9)), draw(st.integers(0, 1 << 40)),
        draw(st.sampled_from(["", "settled", "given up", "rolled back"])), draw(st.text(max_size=1000)),
    )  # fmt: skip


@given(states())
def test_a_state_survives_its_file(state: State) -> None:
    assert parse(msgspec.json.encode(state)) == state


@given(states())
def test_a_state_that_ended_can_be_read(state: State) -> None:
    for outcome in ("settled", "given up", "rolled back"):
        over = state.over(outcome, "why\n" * 1000)
        assert parse(msgspec.json.encode(over)) == over and over.step is Step.SETTLED
    assert state.over("rolled back").active == (state.previous or CONFIGURED)


@given(st.binary(max_size=300) | states().map(msgspec.json.encode), st.data())
def test_no_bytes_do_more_than_be_refused(data: bytes, more: st.DataObject) -> None:
    at = more.draw(st.integers(0, len(data)))
    for changed in (data, data[:at] + more.draw(st.binary(max_size=3)) + data[at + 1 :]):
        try:
            state = parse(changed)
        except ModelError:
            continue
        assert parse(msgspec.json.encode(state)) == state


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": "trial"}, "trial without a candidate"),
        ({"candidate": {"file": "a" * 64}}, "settled with a candidate"),
        ({"step": "trial", "candidate": {"file": "a" * 64}}, "on trial, but not active"),
        ({"colour": 1}, "colour"),
        ({"schema": 2}, "schema"),
        ({"starts": -1}, "starts"),
        ({"active": {"file": "../../etc/passwd"}}, "file"),
        ({"reason": "x" * shelf.MAX_STATE}, "larger than"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], why: str) -> None:
    plain = {"schema": 1, "base": "b" * 64}
    assert parse(msgspec.json.encode(plain)).active == CONFIGURED
    with pytest.raises(ModelError, match=why):
        parse(msgspec.json.encode(plain | changes))


class Told:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.reasons: list[str] = []

    def __call__(self, name: str, state: str, severity: Severity, message: str, /, **detail: Any) -> None:
        self.names.append(name)
        self.reasons.append(str(detail["reason"]))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.octo"
    path.write_bytes(b"base")
    return path


def swapped(folder: Path, base: Path, **changes: Any) -> tuple[Shelf, State]:
    """A shelf whose model runs another bundle than the config's."""
    made = Shelf(folder, base)
    (folder.parent / "new.octo").write_bytes(b"new")
    state = State(1, sha256_of(base), Copy(made.take(folder.parent / "new.octo")), CONFIGURED)
    made.keep(state := msgspec.structs.replace(state, **changes))
    return made, state


def test_what_is_kept_holds_after_a_start(tmp_path: Path, base: Path) -> None:
    kept, state = swapped(tmp_path / "s", base)
    told = Told()
    assert opened(Shelf(tmp_path / "s", base), told, "m") == state and told.names == []
    assert active_bundle(tmp_path / "s", base) == kept.path(state.active)
    assert kept.path(state.active).read_bytes() == b"new" and kept.path(CONFIGURED) == base
    assert active_bundle(tmp_path / "none", base) == base and opened(Shelf(tmp_path / "none", base), told, "m") is None
    assert not (tmp_path / "none").exists() and told.names == []


def test_a_state_torn_at_any_byte_leaves_the_configs_bundle_and_an_event(tmp_path: Path, base: Path) -> None:
    swapped(tmp_path / "s", base)
    file = tmp_path / "s" / "state.json"
    whole = file.read_bytes()
    for length in range(len(whole)):
        kept, _ = swapped(tmp_path / "s", base)
        file.write_bytes(whole[:length])
        assert active_bundle(tmp_path / "s", base) == base
        told = Told()
        assert opened(kept, told, "m") is None
        assert told.names == ["model.swap_dropped"] and "not a state of a model" in told.reasons[0]
        assert [*(tmp_path / "s").iterdir()] == [], "what nothing names is gone"
        assert opened(kept, told, "m") is None and len(told.names) == 1, "told once"


def test_a_torn_bundle_and_another_config_leave_the_configs_bundle(tmp_path: Path, base: Path) -> None:
    for tear, why in (
        (lambda path: path.write_bytes(b"ne"), "is damaged"),
        (lambda path: path.unlink(), "is missing"),
        (lambda _: base.write_bytes(b"another"), "the config names another bundle"),
    ):
        kept, state = swapped(tmp_path / "s", base)
        tear(kept.path(state.active))
        told = Told()
        assert opened(kept, told, "m") is None and why in told.reasons[0], why
        assert active_bundle(tmp_path / "s", base) == base


def test_parts_of_an_interrupted_copy_are_swept(tmp_path: Path, base: Path) -> None:
    kept, state = swapped(tmp_path / "s", base)
    for name in ("incoming.part", "state.part", f"{'c' * 64}.octo"):
        (tmp_path / "s" / name).write_bytes(b"half")
    assert opened(kept, Told(), "m") == state
    left = {path.name for path in (tmp_path / "s").iterdir()}
    assert left == {"state.json", f"{state.active.file}.octo"}


@pytest.mark.parametrize(("step", "outcome"), [(Step.SHADOW, "given up"), (Step.TRIAL, "rolled back")])
def test_too_many_starts_end_a_swap(tmp_path: Path, base: Path, step: Step, outcome: str) -> None:
    made = Shelf(tmp_path / "s", base)
    _, settled = swapped(tmp_path / "s", base)
    under_way = {
        "step": step,
        "candidate": settled.active,
        "active": settled.active if step is Step.TRIAL else CONFIGURED,
    }
    swapped(tmp_path / "s", base, **under_way)
    told = Told()
    for start in range(MAX_STARTS):
        state = opened(made, told, "m")
        assert state is not None and state.starts == start + 1 and told.names == []
    state = opened(made, told, "m")
    assert state is not None and state.outcome == outcome and not state.told
    assert state.reason == f"the gateway was started {MAX_STARTS} times meanwhile"
    assert (state.step, state.active, state.candidate) == (Step.SETTLED, CONFIGURED, None)
    assert opened(made, told, "m") == state, "told by whoever swaps, not here"
    assert told.names == []


def test_a_bundle_is_taken_whole_or_not(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Shelf(tmp_path / "s", base)
    with pytest.raises(ModelError, match="No such file"):
        made.take(tmp_path / "none.octo")
    with pytest.raises(ModelError, match="no file"):
        made.take(tmp_path)
    monkeypatch.setattr(shelf, "MAX_BYTES", 3)
    with pytest.raises(ModelError, match="no file, or more"):
        made.take(base)
    monkeypatch.setattr(shelf, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(shelf, "MIN_FREE", 1 << 60)
    with pytest.raises(StoreError, match="no room"):
        made.take(base)
    assert [*(tmp_path / "s").glob("*.octo")] == []


def test_a_folder_that_cannot_be_written_does_not_keep_the_gateway_from_starting(tmp_path: Path, base: Path) -> None:
    kept, state = swapped(tmp_path / "s", base)
    (tmp_path / "s" / "state.part").mkdir()  # so that no state can be written, by root either
    state = msgspec.structs.replace(state, step=Step.SHADOW, candidate=state.active, active=CONFIGURED)
    (tmp_path / "s" / "state.json").write_bytes(msgspec.json.encode(state))
    with pytest.raises(StoreError):
        kept.keep(state)
    found = opened(kept, Told(), "m")
    assert found is not None and found.starts == 1
