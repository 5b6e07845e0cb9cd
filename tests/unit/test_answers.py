"""Post steps from the manifest to a Result, and the worker's whole way with a real model."""

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import pytest

from gateway.contract import Result
from gateway.errors import ModelError, OutputError
from gateway.infer import golden, spectra, wire
from gateway.infer.answers import MAX_TEXT
from gateway.infer.manifest import (
    Anomaly,
    Ctc,
    Features,
    Fit,
    Gfl,
    Manifest,
    Picture,
    Segment,
    Softmax,
    Spectrum,
    Tensor,
    TopK,
    Window,
    decode,
    encode,
)
from gateway.infer.media import with_regions
from gateway.infer.recipe import Recipe
from gateway.infer.worker import Model, Worker
from tests.unit import bundles, engines

RNG = np.random.default_rng(6)
LABELS = ("<blank>", "o", "n", "f")


def recipe(**changes: Any) -> Recipe:
    made = bundles.manifest(**changes)
    assert decode(encode(made), "here") == made, "what is declared is what is packed"
    return Recipe(made)


def steps_of(text: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    table = np.full((1, len(text), len(LABELS)), 0.05, np.float32)
    for i, character in enumerate(text):
        table[0, i, LABELS.index(character) if character != "_" else 0] = 0.85
    return table


@pytest.mark.parametrize("beam", [1, 5])
def test_a_text_with_its_characters(beam: int) -> None:
    result = recipe(task="read", labels=LABELS, post=(Ctc(beam=beam),)).finish([steps_of("_oof_ff")])
    assert (result.text, result.label) == ("off", "")
    assert result.characters == (0.85, 0.85, 0.85) and result.score == pytest.approx(0.85)
    assert recipe(labels=LABELS, post=(Ctc(beam=beam),)).finish([steps_of("__")]) == Result()


def test_a_lexicon_reads_only_its_words_and_makes_them_classes() -> None:
    reader = recipe(task="read", labels=LABELS, post=(Ctc(beam=20, lexicon=("on", "off")),))
    result = reader.finish([steps_of("_o_f_n")])
    assert result.text == result.label and result.text in ("on", "off")
    with pytest.raises(ModelError, match="characters that are no labels: bx"):
        recipe(labels=LABELS, post=(Ctc(lexicon=("box",)),))
    with pytest.raises(ModelError, match="5 scores a step for 4 labels"):
        reader.finish([np.zeros((1, 3, 5))])


def test_a_text_is_bounded() -> None:
    result = recipe(labels=LABELS, post=(Ctc(),)).finish([steps_of("on" * MAX_TEXT)])
    assert len(result.text) == len(result.characters) == MAX_TEXT


def test_masks_and_shares() -> None:
    changes = {"task": "segment", "labels": ("person",), "input": Picture(width=8, height=8)}
    pre = (Fit(mode="letterbox"), Tensor(layout="nhwc"))
    model = recipe(**changes, pre=pre, post=(Segment(layout="nhwc", side=8),))
    wide = bytes(cv2.imencode(".png", np.zeros((4, 8, 3), np.uint8))[1].tobytes())
    _, place = model.prepare(wide, "image/png")
    plane = np.zeros((1, 8, 8, 1), np.float32)
    plane[0, 2:4] = 0.9  # the upper half of the picture, which lies in rows 2 to 5
    result = model.finish([plane], place)
    assert result.values == {"person": 0.5}
    (mask,) = result.masks
    assert (mask.width, mask.height) == (8, 4) and mask.cells() == b"\1" * 16 + b"\0" * 16
    with pytest.raises(ModelError, match="2 planes for 1 labels"):
        model.finish([np.zeros((1, 8, 8, 2))], place)
    with pytest.raises(ModelError, match="answered nan"):
        model.finish([plane * np.nan], place)


def test_a_reconstruction_is_compared_with_the_input() -> None:
    window = Window(channels=("a", "b"), length=4, rate_hz=10)
    data = np.arange(8, dtype="<f4").tobytes()
    for layout in ("ncl", "nlc", "flat"):
        model = recipe(
            input=window, pre=(Tensor(layout=layout),), post=(Anomaly(method="reconstruction", threshold=0.5),)
        )
        off = model.run(lambda inputs: [inputs[0] + 1.0], data, "records;a:f:,b:f:")
        assert off.values == pytest.approx({"anomaly": 2.0}) and off.label == "anomaly"
        assert off.score == pytest.approx(2 / 3)
        same = model.run(lambda inputs: [inputs[0]], data, "records;a:f:,b:f:")
        assert (same.label, same.score, same.values) == ("normal", 1.0, {"anomaly": 0.0})


def test_a_smoothed_reconstruction_sees_a_short_fault_in_each_layout() -> None:
    window = Window(channels=("a", "b"), length=4, rate_hz=10)
    for layout in ("ncl", "nlc", "flat"):
        step = Anomaly(method="reconstruction", threshold=1.0, smooth=1)
        model = recipe(input=window, pre=(Tensor(layout=layout),), post=(step,))
        data = np.array([[0, 0], [3, 3], [0, 0], [0, 0]], "<f4").tobytes()
        result = model.run(lambda inputs: [np.zeros_like(inputs[0])], data, "records;a:f:,b:f:")
        assert result.values == pytest.approx({"anomaly": 3.0}), layout


def test_a_class_and_an_anomaly_of_one_model() -> None:
    step = Anomaly(method="distance", output=1, threshold=2.0, mean=(1.0, 0.0), whiten=(1.0, 0.0, 0.0, 2.0))
    model = recipe(task="classify", labels=("off", "run"), post=(Softmax(), TopK(), step))
    result = model.finish([np.array([[0.0, 3.0]], np.float32), np.array([[4.0, 2.0]])])
    assert result.label == "run" and result.values == {"anomaly": 2.5}
    with pytest.raises(ModelError, match="wants output 1, there are 1"):
        model.finish([np.zeros((1, 2), np.float32)])


@pytest.mark.parametrize(("far", "label", "score"), [(0.99, "run", 0.9526), (3.0, "odd", 0.75)])
def test_an_anomaly_takes_the_labels_place_and_leaves_the_scores(far: float, label: str, score: float) -> None:
    step = Anomaly(method="distance", output=1, threshold=1.0, mean=(0.0,), label="odd")
    model = recipe(task="classify", labels=("off", "run"), post=(Softmax(), TopK(k=2), step))
    result = model.finish([np.array([[0.0, 3.0]], np.float32), np.array([[far]])])
    assert result.label == label and result.score == pytest.approx(score, abs=1e-4)
    assert result.scores == pytest.approx({"run": 0.9526, "off": 0.0474}, abs=1e-4)
    assert result.values == pytest.approx({"anomaly": far})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"post": (Anomaly(method="distance", threshold=1),)}, "needs mean"),
        ({"post": (Anomaly(method="distance", threshold=1, mean=(0, 0), whiten=(1, 1, 1)),)}, "none, 2 or 4"),
        ({"post": (Anomaly(method="reconstruction", threshold=1, mean=(1,)),)}, "has no mean"),
        (
            {
                "pre": (Features(names=("rms",)), Tensor(layout="flat")),
                "post": (Anomaly(method="reconstruction", threshold=1, smooth=2),),
            },
            "there are none",
        ),
        ({"pre": (Spectrum(), Features(names=("rms",)), Tensor(layout="flat"))}, "only one of 'features' and 'spectrum'"),
        ({"post": (Ctc(),)}, "'ctc' needs labels"),
        ({"post": (Gfl(),), "labels": ("a",)}, "'gfl' needs a picture"),
    ],
)  # fmt: skip
def test_steps_that_do_not_fit_are_refused_at_load(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        Recipe(bundles.manifest(**changes))


def test_spectral_pre_steps_run_as_declared() -> None:
    window = Window(channels=("p",), length=8, rate_hz=40)
    data = RNG.normal(0, 1, 8).astype("<f4")
    x = data[None]
    bands = ((0.0, 10.0), (10.0, 20.5))
    pre: tuple[Any, ...] = (Features(names=("rms", "centroid"), bands_hz=bands, taper="hamming"), Tensor(layout="flat"))
    (got,), _ = recipe(input=window, pre=pre).prepare(data.tobytes(), bundles.MEDIA)
    assert got[0].tolist() == spectra.features(x, ("rms", "centroid"), 40.0, bands, "hamming").tolist()
    pre = (Spectrum(scale="db", floor_db=-40), Tensor(layout="ncl"))
    (got,), _ = recipe(input=window, pre=pre).prepare(data.tobytes(), bundles.MEDIA)
    assert got.shape == (1, 1, 5) and got.min() >= -40
    assert got[0].tolist() == spectra.decibels(spectra.amplitudes(x, "hann"), -40).tolist()


def test_golden_samples_compare_texts_masks_and_parts() -> None:
    model = recipe(task="read", labels=LABELS, post=(Ctc(),))
    off, on = model.finish([steps_of("of_f")]), model.finish([steps_of("on")])
    assert golden.result_difference(off, off) == 0 and golden.result_difference(off, on) == float("inf")
    assert golden.result_difference(Result(parts=(off,)), Result(parts=(off,))) == 0
    assert golden.result_difference(Result(parts=(off,)), Result(parts=(off, off))) == float("inf")
    weaker = msgspec.structs.replace(off, characters=(0.85, 0.6, 0.85))
    assert golden.result_difference(off, weaker) == pytest.approx(0.25)
    from gateway.infer.masks import pack

    grid = np.zeros((4, 4), bool)
    one = Result(masks=(pack("a", grid),))
    grid[0, 0] = True
    assert golden.result_difference(one, Result(masks=(pack("a", grid),))) == 1 / 16


def picture() -> bytes:
    """Red on the left, blue on the right."""
    array = np.zeros((64, 64, 3), np.uint8)
    array[:, :32, 2], array[:, 32:, 0] = 255, 255
    return bytes(cv2.imencode(".jpg", array)[1].tobytes())


SIDES = [(0.0, 0.0, 0.45, 1.0), (0.55, 0.0, 1.0, 1.0), (0.0, 0.0, 0.4, 0.5)]


def test_an_engine_looks_at_several_regions_in_one_job(tmp_path: Path) -> None:
    async def main() -> None:
        async with engines.running(bundles.make_colours(tmp_path / "colours.octo")) as (engine, _):
            answer = await engine.run(picture(), with_regions("image/jpeg", SIDES))
            assert [part.label for part in answer.result.parts] == ["red", "blue", "red"]
            assert engine.status().runs == 1
            with pytest.raises(ModelError, match="not a region: 'x'"):
                await engine.run(picture(), "image/jpeg;region=x")
            assert (await engine.run(picture(), "image/jpeg")).result.label in ("red", "blue")

    asyncio.run(main())


def test_regions_share_one_call_where_the_batch_is_dynamic(tmp_path: Path) -> None:
    made: Manifest = bundles.manifest()
    assert made.variants[0].batch == 1
    dynamic = bundles.make_colours(tmp_path / "colours.octo")
    single = bundles.make_colours(tmp_path / "single.octo", batch=1)

    async def look(path: Path) -> Result:
        async with engines.running(path, backend="onnx") as (engine, _):
            return (await engine.run(picture(), with_regions("image/jpeg", SIDES))).result

    assert golden.result_difference(asyncio.run(look(dynamic)), asyncio.run(look(single))) < 1e-5


class Talkative:
    """A model whose answer to the first input does not fit a packet."""

    checked = time.monotonic()

    def answer(self, data: memoryview, media: str) -> Result:
        return Result(text="x" * (wire.PACKET_MAX if len(data) > 3 else 1))


def test_an_answer_too_large_for_a_packet_is_refused_and_the_worker_goes_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("slots")
    os.ftruncate(memory, 4096)
    setup = wire.Setup(
        tenants=(), nice=0, gentle=False, recheck_s=60, parent=0, socket=theirs.detach(), memory=memory, slot_bytes=0
    )
    with ours:
        for number, data in enumerate((b"long", b"few")):
            ours.send(wire.pack_job(number, 0, b"image/png", wire.NO_SLOT, len(data)) + b"image/png" + data)
        ours.shutdown(socket.SHUT_WR)
        worker = Worker(setup)
        worker._models.append(cast(Model, Talkative()))
        worker.serve()
        worker._channel.close()
        first, second = (wire.unpack_answers(memoryview(ours.recv(wire.PACKET_MAX)))[0] for _ in range(2))
    for descriptor in (memory, worker._statm):
        os.close(descriptor)
    assert first.kind is wire.Kind.REFUSED and b"an answer of" in bytes(first.payload)
    assert (second.number, second.kind) == (1, wire.Kind.RESULT)


def test_outputs_that_are_no_result_are_told_from_inputs_that_are_unusable() -> None:
    model = recipe(task="classify", labels=("off", "run"), post=(TopK(),))
    with pytest.raises(OutputError, match="answered nan"):
        model.run(lambda inputs: [np.array([[np.nan, 1.0]])], bundles.window(1), bundles.MEDIA)
    with pytest.raises(ModelError, match="takes records") as caught:
        model.run(lambda inputs: [], b"", "image/png")
    assert not isinstance(caught.value, OutputError)
