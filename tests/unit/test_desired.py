"""The desired config: tried, kept or reverted; whole after a power cut between any two steps."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway import durable
from gateway.config import load
from gateway.contract import SourceState
from gateway.errors import ConfigError, ControlError, StoreError
from gateway.sync.desired import MAX_STARTS, Desired, Health, Need, Phase, digest_of, unhealthy
from tests.unit.status_samples import status

OLD = '[gateway]\nid = "line-1"\ndata_dir = "data"\n'
NEW = OLD + "[store]\ncommit_ms = 30\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(OLD)
    return path


def propose(path: Path, text: str = NEW, health_s: float = 5) -> Desired:
    desired = Desired(path)
    desired.load()
    desired.check(text.encode())
    desired.propose(digest_of(text.encode()), "c1", Need(), health_s)
    return desired


def started(path: Path) -> Desired:
    desired = Desired(path)
    desired.load()
    return desired


def files(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_without_a_command_nothing_is_written(path: Path) -> None:
    desired = started(path)
    assert desired.digest == digest_of(OLD.encode()) and not desired.on_trial
    assert files(path) == {"gateway.toml"}


def test_a_config_that_is_healthy_stays(path: Path) -> None:
    propose(path)
    trial = started(path)
    assert trial.on_trial and trial.digest == digest_of(NEW.encode())
    assert path.read_text() == OLD  # the good one, until the trial is over
    trial.promote()
    assert trial.running == path and path.read_text() == NEW
    assert (path.parent / "gateway.toml.old").read_text() == OLD
    assert trial.state.phase is Phase.GOOD and not trial.state.told
    trial.told()
    again = started(path)
    assert again.digest == digest_of(NEW.encode()) and again.state.told and not again.on_trial


def test_a_reverted_one_leaves_the_good_one_and_the_reason(path: Path) -> None:
    propose(path)
    started(path).revert("the uplink was up and is down")
    again = started(path)
    assert (again.state.phase, again.state.reason) == (Phase.REVERTED, "the uplink was up and is down")
    assert again.digest == digest_of(OLD.encode()) and path.read_text() == OLD
    assert files(path) == {"gateway.toml", "gateway.toml.state"}
    propose(path)  # and another may be tried


def test_a_crash_loop_on_trial_is_reverted(path: Path) -> None:
    propose(path)
    assert [started(path).on_trial for _ in range(MAX_STARTS + 2)] == [True] * MAX_STARTS + [False, False]
    assert "started 3 times" in started(path).state.reason


def test_an_error_on_trial_is_reverted_at_once(path: Path) -> None:
    propose(path)
    trial = started(path)
    with pytest.raises(StoreError), trial.guard():
        raise StoreError("no disk")
    assert trial.again and "StoreError: no disk" in started(path).state.reason
    good = started(path)
    with pytest.raises(StoreError), good.guard():
        raise StoreError("no disk")
    assert not good.again


@pytest.mark.parametrize("damage", ["gone", "changed", "unusable"])
def test_a_candidate_that_is_not_what_was_proposed_is_not_run(path: Path, damage: str) -> None:
    desired = propose(path)
    if damage == "gone":
        desired.candidate.unlink()
    elif damage == "changed":
        desired.candidate.write_text(OLD + "# other\n")
    else:
        text = b"[gateway]\n"
        desired.candidate.write_bytes(text)
        desired.propose(digest_of(text), "c1", Need(), 5)
    again = started(path)
    assert not again.on_trial and again.state.phase is Phase.REVERTED and again.state.reason
    assert again.digest == digest_of(OLD.encode())


def test_what_cannot_be_used_is_refused_and_leaves_nothing(path: Path) -> None:
    desired = started(path)
    with pytest.raises(ConfigError, match="colour"):
        desired.check(b"colour = 1\n")
    with pytest.raises(ConfigError, match="larger"):
        desired.check(b"#" * (1 << 20) + b"\n")
    assert files(path) == {"gateway.toml"}
    propose(path)
    with pytest.raises(ControlError, match="on trial"):
        started(path).check(NEW.encode())


@pytest.mark.parametrize("text", [b"", b"{", b'{"phase": "dance"}', b"\xff\xfe", b"[" * 100])
def test_a_damaged_state_runs_the_good_config(path: Path, text: bytes) -> None:
    propose(path)
    (path.parent / "gateway.toml.state").write_bytes(text)
    again = started(path)
    assert not again.on_trial and again.digest == digest_of(OLD.encode())


class PowerCut(BaseException):
    pass


def lives(path: Path, good: bool) -> None:
    """All that happens to one new config, each start a new process."""
    propose(path)
    trial = started(path)
    trial.promote() if good else trial.revert("unhealthy")
    trial.told()
    started(path)


def count_steps(path: Path, good: bool, at: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `lives`; the power is cut before the step of this number. How many steps there were."""
    steps = 0

    def before(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object) -> object:
            nonlocal steps
            steps += 1
            if steps == at:
                raise PowerCut
            return real(*args)

        return step

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "replace", "unlink"):
            patch.setattr(os, name, before(getattr(os, name)))
        try:
            lives(path, good)
        except PowerCut:
            return -1
    return steps


@pytest.mark.parametrize("good", [True, False])
def test_a_power_cut_at_any_step_leaves_a_whole_config(
    tmp_path: Path, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "0"
    first.mkdir()
    (first / "gateway.toml").write_text(OLD)
    total = count_steps(first / "gateway.toml", good, 0, monkeypatch)
    assert total > 20
    seen = set()
    for at in range(1, total + 1):
        path = tmp_path / str(at) / "gateway.toml"
        path.parent.mkdir()
        path.write_text(OLD)
        assert count_steps(path, good, at, monkeypatch) == -1
        assert path.read_text() in (OLD, NEW)  # whole at every moment
        desired = started(path)
        texts = {digest_of(OLD.encode()): "old", digest_of(NEW.encode()): "new"}
        phase = desired.state.phase
        if desired.on_trial:
            desired.promote()
        assert load(path).gateway.id == "line-1"
        final = started(path)
        assert not final.on_trial and final.state.phase in (Phase.GOOD, Phase.REVERTED)
        seen.add((phase, texts[final.digest]))
    if good:
        assert seen == {(Phase.GOOD, "old"), (Phase.TRIAL, "new"), (Phase.GOOD, "new")}
    else:  # cut before it was decided, it is tried once more
        assert seen == {(Phase.GOOD, "old"), (Phase.TRIAL, "new"), (Phase.REVERTED, "old")}


def test_a_folder_that_cannot_be_written_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = propose(path)
    started(path)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    fresh = Desired(path)
    monkeypatch.setattr(durable, "write_whole", refuse)
    with pytest.raises(StoreError, match="cannot write beside the config: Read-only"):
        desired.promote()
    logging.disable(logging.ERROR)
    try:
        fresh.load()  # the trial cannot be counted: the good one runs
    finally:
        logging.disable(logging.NOTSET)
    assert not fresh.on_trial and fresh.digest == digest_of(OLD.encode())


def test_health() -> None:
    health = Health(10, 100)
    assert health.look("starting", 105) is None
    assert health.look("", 106) is None
    assert health.look("", 115) is None
    assert health.look("", 116) is True
    assert Health(10, 100).look("lost", 110) is False
    flapping = Health(10, 100)
    decided = [flapping.look("" if t % 8 else "lost", t) for t in range(101, 201)]
    assert decided[:-1] == [None] * 99 and decided[-1] is False


def test_what_is_unhealthy() -> None:
    well = status()
    need = Need(tuple(s.name for s in well.sources if s.state is SourceState.OK), (), well.uplink.state == "up")
    well = msgspec.structs.replace(well, spool=msgspec.structs.replace(well.spool, state="ok"))
    assert unhealthy(well, need) == ""
    assert "is gone" in unhealthy(well, Need(sources=("nobody",)))
    assert "is gone" in unhealthy(well, Need(models=("nobody",)))
    full = msgspec.structs.replace(well, spool=msgspec.structs.replace(well.spool, state="full"))
    assert "spool is full" in unhealthy(full, Need())
    down = msgspec.structs.replace(well, uplink=msgspec.structs.replace(well.uplink, state="down"))
    assert "uplink was up" in unhealthy(down, Need(uplink=True)) and unhealthy(down, Need()) == ""
    lost = msgspec.structs.replace(well.sources[0], state=SourceState.LOST)
    assert "was ok and is lost" in unhealthy(msgspec.structs.replace(well, sources=(lost,)), Need(sources=(lost.name,)))
