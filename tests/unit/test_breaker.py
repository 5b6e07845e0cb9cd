"""The ranking and its breakers, with a clock of the test's own; and the budget."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infer import budget as budget_module
from gateway.infer.breaker import NEVER, Ranking, Recovery
from gateway.infer.budget import Budget, Claim
from gateway.infer.candidate import Candidate

A, B, C = (Candidate(backend="fake", file=name, precision="fp32", device=name) for name in ("NPU", "GPU", "CPU"))
RECOVERY = Recovery(first_s=5, most_s=60, calm_s=100)


def ranking(*candidates: Candidate) -> Ranking:
    return Ranking(candidates, RECOVERY)


def test_who_fails_is_behind_until_it_is_closed() -> None:
    r = ranking(A, B, C)
    assert r.order() == (A, B, C) and not r.better_than(A) and r.preferred() == A
    assert r.fail(A, 0, "lost") and not r.fail(A, 1, "again")
    assert r.order() == (B, C, A) and not r.better_than(B) and r.preferred() == A and r.why(A) == "again"
    assert r.better_than(C), "B is in order"
    r.fail(B, 2, "hang")
    r.fail(C, 3, "hang")
    assert r.order() == (A, B, C) and not r.better_than(C), "all have failed: the longest ago first"
    r.close(B, 4)
    assert r.order() == (B, A, C) and r.better_than(C)


def test_waits_double_and_start_anew_after_calm() -> None:
    r, now, waits = ranking(A, B), 1000.0, []
    for _ in range(6):
        r.fail(A, now, "lost")
        due, who = r.due()
        assert who == A
        waits.append(due - now)
        now = due
        r.close(A, now)
        assert r.due() == (NEVER, None)
    assert waits == [5, 10, 20, 40, 60, 60]
    now += 101
    r.fail(A, now, "lost")
    assert r.due() == (now + 5, A)


def test_forgiven_is_as_if_nothing_had_been() -> None:
    r = ranking(A, B)
    r.fail(A, 0, "poison")
    r.forgive([A])
    assert r.order() == (A, B) and r.due() == (NEVER, None)
    r.fail(A, 1, "lost")
    assert r.due() == (6, A)


def test_spares_are_others_in_order_and_the_same_only_on_the_cpu() -> None:
    r = ranking(A, B, C)
    assert r.spares(A) == (B, C) and r.spares(C) == (A, B, C)
    r.fail(B, 0, "lost")
    assert r.spares(A) == (C,)
    assert ranking(A).spares(A) == () and ranking(C).spares(C) == (C,)


def test_of_the_bundles_own_order_what_does_not_load_is_absent_and_not_probed() -> None:
    r = ranking()
    assert r.order() == () and r.preferred() is None
    r.learn((A, C))
    r.learn((C, A))  # the order of a later start, which a fault had turned round
    r.reject(A, 0, "no such device")
    assert r.order() == (C,) and r.preferred() == C and r.due() == (NEVER, None)
    measured = ranking(A, C)
    measured.reject(A, 0, "no such device")
    assert measured.due() == (5, A) and measured.preferred() == A


def test_a_new_ranking_keeps_the_breakers_of_who_is_in_both() -> None:
    r = ranking(A, C)
    r.fail(A, 0, "lost")
    r.replace((B, A, C))
    assert r.order() == (B, C, A)
    assert [state for _, state, _ in r.states()] == ["closed", "open", "closed"]


@given(st.lists(st.tuples(st.sampled_from(["fail", "close", "reject", "forgive"]), st.sampled_from([A, B, C]))))
def test_somebody_can_always_serve_and_every_fault_is_probed(steps: list[tuple[str, Candidate]]) -> None:
    r = ranking(A, B, C)
    for now, (what, who) in enumerate(steps):
        match what:
            case "fail":
                r.fail(who, now, "x")
            case "close":
                r.close(who, now)
            case "reject":
                r.reject(who, now, "x")
            case _:
                r.forgive([who])
        assert sorted(map(str, r.order())) == sorted(map(str, (A, B, C)))
        states = dict(zip((A, B, C), (state for _, state, _ in r.states()), strict=True))
        due, first = r.due()
        assert (first is None) == ("open" not in states.values())
        assert first is None or (states[first] == "open" and due <= now + RECOVERY.most_s)
        if "closed" in states.values():
            assert not r.better_than(r.order()[0])


# --- the budget ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Model:
    """Wants `tokens` for each job; a job is the number of the moment in which it came."""

    budget: Budget
    tokens: int = 1
    priority: int = 0
    jobs: list[int] = field(default_factory=list)
    running: int = 0

    def claim(self) -> Claim | None:
        return (-self.priority, self.jobs[0]) if self.jobs else None

    def dispatch(self) -> None:
        if not self.jobs:
            self.budget.withdraw(self)
        elif not self.running and self.budget.take(self, self.tokens):
            self.jobs.pop(0)
            self.running = 1

    def end(self) -> None:
        self.running = 0
        self.budget.give(self.tokens, self)


def test_priority_then_age_and_never_more_threads_than_there_are() -> None:
    b = Budget(cpus=2)
    busy, late, urgent, old, wide = Model(b, 2), Model(b), Model(b, priority=5), Model(b), Model(b, tokens=9)
    for moment, model in enumerate((busy, old, late, urgent)):
        model.jobs.append(moment)
        model.dispatch()
    assert [m.running for m in (busy, old, late, urgent)] == [1, 0, 0, 0]
    busy.end()
    assert [m.running for m in (busy, old, late, urgent)] == [0, 1, 0, 1]
    wide.jobs.append(4)
    wide.dispatch()
    urgent.end()
    assert late.running == 1, "older than the wide one"
    late.end()
    old.end()
    assert wide.running == 1, "more threads than there are take all there are"


def test_who_gave_up_waiting_holds_nobody_up() -> None:
    b = Budget(cpus=1)
    first, gone, last = Model(b), Model(b, priority=9), Model(b)
    for moment, model in enumerate((first, gone, last)):
        model.jobs.append(moment)
        model.dispatch()
    gone.jobs.clear()
    first.end()
    assert last.running == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_tokens_are_never_lost(steps: list[tuple[int, bool]]) -> None:
    b = Budget(cpus=3)
    models = [Model(b, tokens, priority) for tokens, priority in ((1, 0), (2, 1), (3, 0), (5, -1))]
    for moment, (which, arrives) in enumerate(steps):
        model = models[which]
        if arrives:
            model.jobs.append(moment)
            model.dispatch()
        elif model.running:
            model.end()
        assert sum(min(m.tokens, 3) for m in models if m.running) <= 3
        assert any(m.running for m in models) or not any(m.jobs for m in models), "work waits and nobody works"
    for _ in steps:
        for model in models:
            if model.running:
                model.end()
    assert not any(m.jobs or m.running for m in models)


def test_standby_memory_is_bounded_by_the_budget_and_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "_available_mib", lambda: 1000)
    b = Budget(standby_mib=300)
    assert b.admit(200) and not b.admit(200) and b.admit(100)
    b.dismiss(200)
    assert b.admit(200)
    assert not Budget(standby_mib=5000).admit(900), "it would leave the machine too little"
    assert not Budget(standby_mib=0).admit(1)
