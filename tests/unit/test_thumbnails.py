"""Thumbnails: small, whole, of everything that can be decoded; and nothing that is damaged holds up the rest."""

from __future__ import annotations

import asyncio
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.child import python_module
from gateway.contract import Severity
from gateway.errors import ModelError
from gateway.infer import thumbnails
from gateway.infer.pictures import size, thumbnail
from gateway.infer.thumbnails import LONGEST, Thumbnails, thumbnail_name

BUNDLE = Path(__file__).parents[2] / "models" / "detect" / "detect.octo"


def real_pictures() -> dict[str, bytes]:
    """Photographs: the golden samples of the detector's bundle."""
    with zipfile.ZipFile(BUNDLE) as bundle:
        return {Path(name).name: bundle.read(name) for name in bundle.namelist() if name.endswith(".jpg")}


REAL = real_pictures()


def plain(width: int, height: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1])


@pytest.mark.parametrize("name", REAL)
def test_a_photograph_becomes_small_and_looks_the_same(name: str) -> None:
    width, height = size(REAL[name])
    small = thumbnail(REAL[name], LONGEST, 80, 10**7)
    assert max(size(small)) == LONGEST < max(width, height)
    assert len(small) < len(REAL[name]) / 2
    picture = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
    whole = cv2.imdecode(np.frombuffer(REAL[name], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and whole is not None
    ours = cv2.resize(whole, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - ours.astype(int)).mean() < 6


@given(st.integers(1, 900), st.integers(1, 900))
def test_no_side_is_longer_and_none_is_made_larger(width: int, height: int) -> None:
    got = size(thumbnail(plain(width, height), LONGEST, 80, 10**6))
    assert max(got) == min(LONGEST, max(width, height))
    scale = max(got) / max(width, height)
    assert abs(got[0] - max(1, width * scale)) <= 1 and abs(got[1] - max(1, height * scale)) <= 1


@given(st.binary(max_size=400), st.integers(0, 70_000))
def test_what_is_no_whole_picture_is_refused(noise: bytes, cut: int) -> None:
    for data in (noise, REAL["1-astronaut.jpg"][:cut]):
        with pytest.raises(ModelError):
            thumbnail(data, LONGEST, 80, 10**7)
    try:  # with its end in place a decoder makes something of it; that is bounded, too
        made = thumbnail(REAL["1-astronaut.jpg"][:cut] + noise + b"\xff\xd9", LONGEST, 80, 10**7)
    except ModelError:
        return
    assert max(size(made)) <= LONGEST


class Bench:
    def __init__(self, folder: Path) -> None:
        self.pictures, self.folder = folder / "pictures", folder / "thumbnails"
        self.pictures.mkdir(exist_ok=True)
        self.made = 0
        self.told: list[tuple[str, str]] = []
        self.thumbnails = Thumbnails(self.pictures, self.folder, self.count, self.notify)

    def count(self) -> None:
        self.made += 1

    def notify(self, name: str, state: str, severity: Severity, message: str) -> None:
        self.told.append((state, message))

    def add(self, name: str, data: bytes) -> None:
        (self.pictures / name).write_bytes(data)

    @property
    def there(self) -> set[str]:
        return {path.name for path in self.folder.glob("*")} if self.folder.exists() else set()


@asynccontextmanager
async def bench(folder: Path, *pictures: str) -> AsyncIterator[Bench]:
    made = Bench(folder)
    for name in pictures:
        made.add(name, next(iter(REAL.values())))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.thumbnails.run(), name="thumbnails")
        yield made
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def test_each_picture_has_one_and_it_goes_with_the_picture(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, "a.jpg", "b.jpg") as b:
            b.add("broken.jpg", b"\xff\xd8 cut short")
            (b.pictures / "half.part").write_bytes(b"")
            await until(lambda: b.there == {"a-thumb.jpg", "b-thumb.jpg"} and bool(b.told))
            assert [(state, message.split(":")[0]) for state, message in b.told] == [("point", "broken.jpg")]
            (b.pictures / "a.jpg").unlink()
            b.add("c.png", plain(700, 20))
            b.thumbnails.kept()
            await until(lambda: b.there == {"b-thumb.jpg", "c-thumb.jpg"})
            assert size((b.folder / "c-thumb.jpg").read_bytes()) == (320, 9)
        async with bench(tmp_path) as again:  # a restart: what is there is not made once more
            again.add("d.jpg", next(iter(REAL.values())))
            again.thumbnails.kept()
            await until(lambda: again.there == {"b-thumb.jpg", "c-thumb.jpg", "d-thumb.jpg"})
            await until(lambda: again.made >= 1)
            assert again.made == 1

    asyncio.run(scenario())


def test_a_picture_that_breaks_the_child_is_found_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks = "import os, sys; os.abort() if 'bad.jpg' in sys.argv else sys.exit(main(sys.argv[1:]))"

    def module(name: str, *args: str) -> list[str]:
        return [*python_module(name)[:-2], "-c", f"from {name} import main\n{breaks}", *args]

    monkeypatch.setattr(thumbnails, "python_module", module)

    async def scenario() -> None:
        async with bench(tmp_path, "a.jpg", "bad.jpg", "c.jpg") as b:
            await until(lambda: b.there == {"a-thumb.jpg", "c-thumb.jpg"})
            await until(lambda: len(b.told) == 1)
            assert b.told[0][1].startswith("bad.jpg")

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "advice"), [(thumbnails.NO_DECODER, "'camera'"), (thumbnails.NO_ROOM, "the disk")])
def test_where_none_can_be_made_it_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, advice: str
) -> None:
    monkeypatch.setattr(thumbnails, "python_module", lambda *_: [sys.executable, "-c", f"raise SystemExit({status})"])

    async def scenario() -> None:
        async with bench(tmp_path, "a.jpg") as b:
            await until(lambda: len(b.told) == 1)
            assert b.told[0][0] == "raised" and advice in b.told[0][1]
            monkeypatch.setattr(thumbnails, "python_module", python_module)
            b.thumbnails.kept()
            await until(lambda: b.there == {thumbnail_name("a.jpg")})
            assert len(b.told) == 1

    asyncio.run(scenario())
