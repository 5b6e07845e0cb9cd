"""A camera's pipeline that reads forms: what it asks, what it records; and an uncompressed picture of a form."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.config import Config, GatewayTable, PicturesSource, PipelineTable
from gateway.contract import Field, Frame, Inference, Result, Stamp
from gateway.errors import ConfigError
from gateway.form_pipeline import FormPipeline
from gateway.forms import FieldTable, Template, as_media, dumps
from gateway.infer.worker import _pictured
from gateway.model_tables import ModelTable
from gateway.pipelines import Pipelines
from tests.unit.bundles import make_colours
from tests.unit.test_pipeline import Engine

BOX = (0.0, 0.0, 10.0, 10.0)
TEMPLATE = Template(name="t", field=(FieldTable(name="day", kind="date", box=BOX),))
TABLE = PipelineTable(name="orders", model="reader", source="desk", form="t.toml")


def frame(seq: int) -> Frame:
    return Frame("desk", seq, Stamp("boot", seq, None, 0), b"jpeg", "image/jpeg")


def recorded(texts: Sequence[str | None]) -> tuple[list[Inference], list[str]]:
    """What is recorded of pictures on which this is read (None: no form), and what the engine was asked."""

    async def scenario() -> tuple[list[Inference], list[str]]:
        answers = [Result("no form") if t is None else Result(fields=(Field("day", t, 1.0),)) for t in texts]
        at = iter(answers)
        engine, made, read = Engine(lambda data, media: next(at)), list[Inference](), asyncio.Event()

        class Once(FormPipeline):
            async def _work_off(self) -> None:
                await super()._work_off()
                read.set()

        pipeline = Once(TABLE, TEMPLATE, engine, Clock(), lambda i, _: made.append(i), lambda *_: None)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(pipeline.run(), name="pipeline")
            for seq in range(len(texts)):
                read.clear()
                pipeline.frame(frame(seq))
                await read.wait()
            running.cancel()
        assert pipeline.status().inferences == len(made)
        return made, engine.media

    return asyncio.run(scenario())


def test_each_sheet_is_recorded_once_and_judged() -> None:
    made, asked = recorded([None, "01.02.2026", "01.02.2026", "30.02.2026", None, "30.02.2026"])
    assert [(i.input_seq, i.result.label) for i in made] == [(1, "accepted"), (3, "review"), (5, "review")]
    assert made[0].result.fields[0].value == "2026-02-01"
    assert set(asked) == {"image/jpeg" + as_media(TEMPLATE)}


def test_an_uncompressed_picture_of_a_form_is_read_as_the_same_form() -> None:
    asked: list[str] = []

    def answer(data: memoryview, media: str) -> Result:
        assert bytes(data[:2]) == b"\xff\xd8"
        asked.append(media)
        return Result("no form")

    _pictured(answer, memoryview(bytes(64)), "image/x-yuyv;8;4;16" + as_media(TEMPLATE))
    assert asked == ["image/jpeg" + as_media(TEMPLATE)]


def test_a_form_needs_a_model_that_reads(tmp_path: Any) -> None:
    make_colours(tmp_path / "colours.octo")
    (tmp_path / "t.toml").write_text(dumps(TEMPLATE))
    config = Config(
        gateway=GatewayTable(id="g", data_dir="data"),
        source=(PicturesSource(name="desk", folder="."),),
        model=(ModelTable(name="reader", bundle="colours.octo"),),
        pipeline=(TABLE,),
        base=str(tmp_path),
    )
    with pytest.raises(ConfigError, match="reads no text"):
        Pipelines(
            config, {"reader": Engine()}, Clock(), lambda *_: None, lambda *_: None, lambda _: lambda *__: None
        )  # fmt: skip
