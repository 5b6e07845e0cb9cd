"""Another bundle for a working model, with real workers: nothing is lost, and what is no good is rolled back."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.contract import Result
from gateway.errors import ControlError, ModelError
from gateway.infer.budget import Budget
from gateway.infer.crew import Crew
from gateway.infer.engine import Answer, Engine
from gateway.infer.order import Order
from gateway.infer.shelf import Shelf, Step, Wish
from gateway.infer.swap import Swapper
from sdk.bundle import generate_key, pack
from tests.integration.swap_parts import WORKER
from tests.unit import bundles
from tests.unit.engines import Events, Killer

QUICK = Wish(trial_s=0.5)
WATCHED = Wish(trial_s=60.0)


def make(path: Path, version: str, key: Any = None, **members: bytes) -> Path:
    pack(path, bundles.manifest(version=version), bundles.files(**members), key)
    return path


def doubled(path: Path) -> Path:
    """Another model: all it says is twice as much, and its golden samples say so."""
    model = bundles.onnx_model().replace(bundles.weights(8).tobytes(), (2 * bundles.weights(8)).tobytes())
    golden = msgspec.json.encode(Result(values={"sum": 12.0, "first": 2.0}))
    return make(path, "2.0", **{"model.onnx": model, "golden/0.json": golden})


def slow(path: Path, turns: float) -> Path:
    """Counts to `turns` at every input, golden samples too."""
    hang, new = struct.pack("<f", bundles.HANG), struct.pack("<f", -turns)
    return make(path, "2.0-slow", **{"model.onnx": bundles.onnx_model().replace(hang, new)})


class Bench:
    """A model under load, and what may swap it."""

    def __init__(
        self,
        folder: Path,
        base: Path,
        *,
        keys: Sequence[Path] = (),
        budget: Budget | None = None,
        crew: Crew | None = None,
        neighbour: bool = False,
    ) -> None:
        self.events = Events()
        self.placed: list[str] = []
        self.answers: list[Answer] = []
        options: dict[str, Any] = {"allow_unsigned": not keys, "deadline_s": 5.0}
        self.beside: list[Answer] = []  # of another model in the same workers
        made = {"notify": self.events, "keys": keys, "backend": "onnx", **options}
        crew = crew or Crew(command=WORKER)
        self.neighbour = Engine("beside", base, crew=crew, **made) if neighbour else None
        self.engine = Engine("tiny", base, crew=crew, **made)
        cache = str(folder / "placement.json")
        order = Order(name="tiny", bundle=str(base), cache=cache, keys=tuple(map(str, keys)), backend="onnx", **options)
        self.shelf = Shelf(folder / "models" / "tiny", base)
        self.swapper = Swapper(
            order, self.shelf, self.engine, budget=budget or Budget(0, 512), fit=lambda old, new: None,
            placed=lambda order: self.placed.append(order.bundle), notify=self.events, command=WORKER,
        )  # fmt: skip

    async def load(self) -> None:
        """Windows as a pipeline gives them, one after the other, without an end."""
        number = 0
        while True:
            data = bundles.window(number % 1000, 1)
            self.answers.append(await self.engine.run(data, bundles.MEDIA, ("press/count", number)))
            number += 1

    async def load_beside(self, engine: Engine) -> None:
        while True:
            self.beside.append(await engine.run(bundles.window(len(self.beside)), bundles.MEDIA))

    def assert_whole(self, *factors: float) -> None:
        """Every window has its own answer, of one of the bundles, in order."""
        for number, answer in enumerate(self.answers):
            values = answer.result.values
            factor = values["sum"] / (number % 1000 + 1)
            assert factor in factors and values["first"] == number % 1000 * factor

    async def until(self, name: str) -> str:
        async with asyncio.timeout(150):
            return await self.events.seen(name, "point")

    async def more(self, n: int = 20) -> Answer:
        """So many more answers."""
        wanted = len(self.answers) + n
        while len(self.answers) < wanted:
            await asyncio.sleep(0.005)
        return self.answers[-1]


@asynccontextmanager
async def bench(folder: Path, base: Path, *, loaded: bool = True, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(folder, base, **options)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work, name="bench") for work in (made.engine.supervise(), made.swapper.run())]
        if loaded:
            tasks.insert(0, group.create_task(made.load(), name="load"))
            if made.neighbour is not None:
                tasks.insert(0, group.create_task(made.load_beside(made.neighbour), name="load"))
            await made.more()
        yield made
        for task in tasks:
            task.cancel()


@pytest.mark.timeout(200)
def test_a_swap_under_load_loses_and_doubles_nothing_and_can_be_undone(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0")) as it:
            first = it.answers[0].bundle
            status = await it.swapper.swap(doubled(tmp_path / "b.octo"), QUICK)
            assert (status.step, status.number) == ("received", 1)
            with pytest.raises(ControlError, match="under way"):
                await it.swapper.swap(tmp_path / "b.octo", QUICK)
            await it.until("model.swapped")
            last = await it.more()
            assert last.bundle != first and it.swapper.status().bundle == last.bundle
            assert {answer.bundle for answer in it.answers} == {first, last.bundle}
            it.assert_whole(1.0, 2.0)
            bundles_in_order = [answer.bundle for answer in it.answers]
            assert bundles_in_order == sorted(bundles_in_order, key=[first, last.bundle].index), "one switch"
            assert [e[3].rpartition(" ")[2] for e in it.events.all if e[0] == "model.swap"] == [
                "verified", "self-tested", "trial",
            ]  # fmt: skip
            assert it.engine.status().restarts == 0
            status = it.swapper.status()
            assert (status.source, status.outcome, status.previous, status.step) == (
                "swap",
                "settled",
                "config",
                "settled",
            )
            assert len(it.placed) == 1 and Path(it.placed[0]).parent == it.shelf.folder

            await it.swapper.rollback()
            while (await it.more(1)).bundle != first:
                pass
            it.assert_whole(1.0, 2.0)
            status = it.swapper.status()
            assert (status.source, status.outcome) == ("config", "rolled back") and status.previous == last.bundle
            state, why = it.shelf.read()
            assert state is not None and not state.active.file and why == ""

    asyncio.run(main())


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("version", "why"),
    [("2.0-crash", "3 workers ended: worker"), ("2.0-wrong", "golden sample golden/0 is off by 7")],
)
def test_what_fails_in_service_is_rolled_back_without_loss(tmp_path: Path, version: str, why: str) -> None:
    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0")) as it:
            first = it.answers[0].bundle
            await it.swapper.swap(make(tmp_path / "b.octo", version), WATCHED)
            assert why in await it.until("model.rolled_back")
            assert (await it.more(50)).bundle == first
            assert {answer.bundle for answer in it.answers} == {first}
            it.assert_whole(1.0)
            status = it.swapper.status()
            assert (status.source, status.outcome, status.previous) == ("config", "rolled back", "")
            assert ("model.failed", "raised") not in it.events.names()
            assert [*it.shelf.folder.glob("*.octo")] == []

    asyncio.run(main())


@pytest.mark.timeout(200)
def test_what_is_too_slow_is_rolled_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0")) as it:
            await it.more(100)
            await it.swapper.swap(slow(tmp_path / "b.octo", 500_000), Wish(trial_s=120.0, slower=1.0))
            message = await it.until("model.rolled_back")
            assert "too slow: median" in message and "the limit is" in message
            while (await it.more(1)).bundle != it.answers[0].bundle:
                pass
            it.assert_whole(1.0)

    asyncio.run(main())


@pytest.mark.timeout(200)
def test_what_is_not_to_be_believed_or_wrong_is_not_taken(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "key.pem", tmp_path / "key.pub")
    other = generate_key(tmp_path / "other.pem", tmp_path / "other.pub")
    tampered = tmp_path / "tampered.octo"
    tampered.write_bytes(make(tmp_path / "b.octo", "2.0", key).read_bytes().replace(b"# tiny", b"# tidy"))
    wrong = msgspec.json.encode(Result(values={"sum": 6.1, "first": 1.0}))

    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0", key), keys=(tmp_path / "key.pub",)) as it:
            with pytest.raises(ModelError, match="cut short"):
                (tmp_path / "cut.octo").write_bytes(tampered.read_bytes()[:-50])
                await it.swapper.swap(tmp_path / "cut.octo", QUICK)
            for number, (bundle, why) in enumerate(
                [
                    (make(tmp_path / "unsigned.octo", "2.0"), "not signed"),
                    (make(tmp_path / "other.octo", "2.0", other), "unknown key"),
                    (tampered, "changed since it was signed"),
                    (make(tmp_path / "wrong.octo", "2.0", key, **{"golden/0.json": wrong}), r"off by 0.1"),
                    (make(tmp_path / "same.octo", "1.0", key), "runs already"),
                ],
                1,
            ):
                it.events.all.clear()
                await it.swapper.swap(bundle, QUICK)
                assert why in await it.until("model.swap_failed")
                while (status := it.swapper.status()).step != "settled":
                    await asyncio.sleep(0.005)
                assert (status.outcome, status.number, status.source) == ("given up", number, "config")
                assert why in status.reason
            await it.more()
            it.assert_whole(1.0)
            assert {answer.bundle for answer in it.answers} == {it.answers[0].bundle}
            assert it.engine.status().restarts == 0 and it.placed == []

    asyncio.run(main())


@pytest.mark.timeout(200)
def test_a_shadow_counts_where_it_differs_and_names_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0")) as it:
            await it.swapper.swap(doubled(tmp_path / "b.octo"), Wish(shadow_s=1.5, trial_s=0.2, every=3))
            await it.until("model.shadowed")
            count = it.swapper.status().shadow
            # all but 0 differ by more than the tolerance; none has other names
            assert count.compared > 10 and count.disagreed == count.compared and count.otherwise == 0
            told = [d for e, d in zip(it.events.all, it.events.details, strict=True) if e[0] == "model.disagreed"]
            assert len(told) == 5 and all(d["stream"] == "press/count" for d in told)
            assert len({d["seq"] % 3 for d in told}) == 1, "every third input"
            assert all(d["why"] == f"off by {d['seq'] % 1000 + 1:.3g}" for d in told)
            await it.until("model.swapped")

            it.events.all.clear()
            await it.swapper.swap(make(tmp_path / "c.octo", "3.0-crash"), Wish(shadow_s=60.0))
            assert "in the shadow: 3 workers ended" in await it.until("model.swap_failed")
            it.assert_whole(1.0, 2.0)

    asyncio.run(main())


@pytest.mark.timeout(200)
def test_a_swap_can_be_called_off_at_any_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with bench(tmp_path, make(tmp_path / "a.octo", "1.0")) as it:
            with pytest.raises(ControlError, match="no bundle to go back to"):
                await it.swapper.rollback()
            new = doubled(tmp_path / "b.octo")
            for step, wish in (("received", QUICK), ("shadow", Wish(shadow_s=60)), ("trial", WATCHED)):
                await it.swapper.swap(new, wish)
                while it.swapper.status().step != step:
                    await asyncio.sleep(0.002)
                await it.swapper.rollback()
                while it.swapper.status().step != Step.SETTLED:
                    await asyncio.sleep(0.002)
                assert "called off" in it.swapper.status().reason
                assert it.swapper.status().source == "config"
            while (await it.more(1)).bundle != it.answers[0].bundle:
                pass
            it.assert_whole(1.0, 2.0)

    asyncio.run(main())


def test_without_memory_for_a_second_worker_nothing_is_begun(tmp_path: Path) -> None:
    async def main() -> None:
        base = make(tmp_path / "a.octo", "1.0")
        async with bench(tmp_path, base, budget=Budget(0, 8)) as it:
            await it.swapper.swap(doubled(tmp_path / "b.octo"), QUICK)
            assert "no memory for a second worker" in await it.until("model.swap_failed")

    asyncio.run(main())


@pytest.mark.timeout(200)
def test_models_that_share_workers_are_swapped_one_by_one_and_so_are_standbys(tmp_path: Path) -> None:
    """Two models in each of two workers, and one that stands by; only one of the models gets another bundle."""

    async def main() -> None:
        base, budget = make(tmp_path / "a.octo", "1.0"), Budget(0, 2048)
        crew = Crew(workers=2, standby=True, budget=budget, command=WORKER)
        async with bench(tmp_path, base, budget=budget, crew=crew, neighbour=True) as it:
            await it.swapper.swap(doubled(tmp_path / "b.octo"), QUICK)
            await it.until("model.swapped")
            while it.engine.status().workers < 2 or not it.engine.status().standby:
                await asyncio.sleep(0.01)
            while (await it.more(1)).bundle == it.answers[0].bundle:
                pass
            have = len(it.answers)
            kill = Killer(it.engine)
            for _ in range(3):  # whoever takes over has the new one, too
                await kill()
                await it.more(30)
            assert {answer.bundle for answer in it.answers[have:]} == {it.answers[have].bundle}
            it.assert_whole(1.0, 2.0)
            assert len(it.beside) > 20 and {a.bundle for a in it.beside} == {it.answers[0].bundle}
            assert [a.result.values["first"] for a in it.beside] == [float(n) for n in range(len(it.beside))]

    asyncio.run(main())
