"""What a manifest declares, made runnable: bytes from a source -> tensors, and outputs -> `Result`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from gateway.contract import Detection, Result, Schema
from gateway.errors import ModelError
from gateway.infer import ssd, steps
from gateway.infer.manifest import (
    Features,
    Fit,
    Manifest,
    Normalise,
    Picture,
    PreStep,
    Softmax,
    Ssd,
    Standardise,
    Tensor,
    TopK,
    Values,
    Window,
)
from gateway.infer.steps import Array, Buffer

PICTURE_MEDIA = ("image/jpeg", "image/png")
RECORDS_MEDIA = "records;"

_MAX_MEDIA = 16  # distinct schemas remembered; a stream has one, a malicious peer must not grow us

# x, y, width, height of the picture on the model's input, as fractions: pictures.Placement without loading OpenCV
_Place = tuple[float, float, float, float]
_WHOLE: _Place = (0.0, 0.0, 1.0, 1.0)
_Reader = Callable[[Buffer], tuple[Array, _Place]]
_Answer = Callable[[Sequence[Array], _Place], Result]


class Prepared(NamedTuple):
    """The runtime's inputs, and what the post steps must know about how they were made."""

    inputs: tuple[Array, ...]
    place: _Place


class Recipe:
    """The pre and post steps of one model.

    Args:
        threads: how many OpenCV may use for a picture.

    Raises:
        ModelError: the declared steps do not fit the input, the labels or each other.
    """

    def __init__(self, manifest: Manifest, threads: int = 1) -> None:
        self._manifest = manifest
        self._check_order()
        self._pre = [self._transform(step) for step in manifest.pre if not isinstance(step, Fit)]
        self._post = self._compile_post()
        self._readers: dict[str, _Reader] = {}
        self._picture = self._picture_reader(manifest.input, threads)

    def prepare(self, data: Buffer, media: str) -> Prepared:
        """Bytes of a source to the runtime's inputs.

        Args:
            media: `image/jpeg`, `image/png` or `records;<Schema.spec()>`.

        Raises:
            ModelError: the bytes are not what `media` says, or not what the model takes.
        """
        reader = self._readers.get(media)
        if reader is None:
            reader = self._reader(media)
            if len(self._readers) >= _MAX_MEDIA:
                self._readers.clear()
            self._readers[media] = reader
        x, place = reader(data)
        for step in self._pre:
            x = step(x)
        return Prepared((x,), place)

    def finish(self, outputs: Sequence[Array], place: _Place = _WHOLE) -> Result:
        """The runtime's outputs to a result.

        Raises:
            ModelError: their shapes do not fit the steps or the labels, or a number is not finite.
        """
        return self._post(outputs, place)

    def _bad(self, what: str) -> ModelError:
        return ModelError(f"model '{self._manifest.name}': {what}", hint="mend the manifest and pack it again")

    def _check_order(self) -> None:
        pre = self._manifest.pre
        picture = isinstance(self._manifest.input, Picture)
        if not isinstance(pre[-1], Tensor) or any(isinstance(step, Tensor) for step in pre[:-1]):
            raise self._bad("the last pre step, and only that, must be 'tensor'")
        if picture != isinstance(pre[0], Fit) or any(isinstance(step, Fit) for step in pre[1:]):
            raise self._bad("'fit' must be the first pre step of a picture, and of nothing else")
        layouts = ("nchw", "nhwc") if picture else ("ncl", "nlc", "flat")
        if pre[-1].layout not in layouts:
            raise self._bad(f"the layout '{pre[-1].layout}' does not fit the input; {', '.join(layouts)} do")
        for i, step in enumerate(pre):
            if isinstance(step, Standardise | Features) and picture:
                raise self._bad("'standardise' and 'features' are for windows")
            flat = i + 2 == len(pre) and pre[-1].layout == "flat"
            if isinstance(step, Features) and not flat:
                raise self._bad("'features' must be followed by 'tensor' with layout 'flat'")

    def _transform(self, step: PreStep) -> Callable[[Array], Array]:
        match step:
            case Normalise():
                picture = isinstance(self._manifest.input, Picture)
                width = 3 if isinstance(self._manifest.input, Picture) else len(self._manifest.input.channels)
                if len(step.mean) not in (1, width) or len(step.std) not in (1, width):
                    raise self._bad(f"'normalise' wants 1 or {width} values for mean and std")
                return steps.normalise(step.scale, step.mean, step.std, axis_last=picture)
            case Standardise():
                return partial(steps.standardise, floor=step.floor)
            case Features():
                return partial(steps.features, names=step.names)
            case Tensor():
                return partial(steps.tensor, layout=step.layout, dtype=step.dtype)
            case Fit():
                raise self._bad("'fit' is part of reading a picture")

    def _reader(self, media: str) -> _Reader:
        if self._picture is not None:
            if media not in PICTURE_MEDIA:
                raise ModelError(f"model '{self._manifest.name}' takes pictures, not {media[:60]}")
            return self._picture
        window = self._manifest.input
        if not media.startswith(RECORDS_MEDIA) or not isinstance(window, Window):
            raise ModelError(f"model '{self._manifest.name}' takes records, not {media[:60]}")
        try:
            schema = Schema.parse(media.removeprefix(RECORDS_MEDIA))
        except ValueError as error:
            raise ModelError(f"not a schema of records: {media[:60]}") from error
        read, length = steps.records(schema, window.channels), window.length

        def read_window(data: Buffer) -> tuple[Array, _Place]:
            if len(data) != length * schema.record_size:
                raise ModelError(
                    f"model '{self._manifest.name}' takes {length} records of {schema.record_size} bytes, "
                    f"got {len(data)} bytes",
                    hint="leave out the pipeline's window, or set it to the model's length",
                )
            return read(data), _WHOLE

        return read_window

    def _picture_reader(self, spec: Window | Picture, threads: int) -> _Reader | None:
        if not isinstance(spec, Picture):
            return None
        # only models of pictures pay for OpenCV
        from gateway.infer import pictures

        pictures.set_threads(threads)
        fit = self._manifest.pre[0]
        assert isinstance(fit, Fit)  # _check_order

        def read_picture(data: Buffer) -> tuple[Array, _Place]:
            x, place = pictures.decode(data, spec.max_pixels), pictures.WHOLE
            if fit.mode == "letterbox":
                x, place = pictures.letterbox(x, spec.width, spec.height, fit.fill, fit.interpolation)
            else:
                x = pictures.stretch(x, spec.width, spec.height, fit.interpolation)
            # colours last: on the small picture, not on the camera's
            return (pictures.swap_colours(x) if spec.colour == "rgb" else x), place

        return read_picture

    def _compile_post(self) -> _Answer:
        *before, last = self._manifest.post
        if any(not isinstance(step, Softmax) for step in before) or isinstance(last, Softmax):
            raise self._bad("post steps are any 'softmax', then one of 'top_k', 'values' and 'ssd'")
        match last:
            case TopK():
                answer = self._classes(last)
            case Values():
                answer = self._numbers(last)
            case Ssd():
                answer = self._objects(last)
        if not before:
            return answer
        return lambda outputs, place: answer([steps.softmax(outputs[0]), *outputs[1:]], place)

    def _classes(self, step: TopK) -> _Answer:
        labels = self._manifest.labels
        if not labels:
            raise self._bad("'top_k' needs labels")

        def answer(outputs: Sequence[Array], place: _Place) -> Result:
            scores = outputs[0].reshape(-1)
            if len(scores) != len(labels):
                raise self._bad(f"{len(scores)} scores for {len(labels)} labels")
            best = steps.top_k(scores, step.k).tolist()
            named = {labels[i]: float(scores[i]) for i in best}
            self._check_finite(named)
            label, score = next(iter(named.items()))
            kept = {name: value for name, value in named.items() if value >= step.min_score}
            return Result(label, score, kept) if kept else Result()

        return answer

    def _numbers(self, step: Values) -> _Answer:
        def answer(outputs: Sequence[Array], place: _Place) -> Result:
            numbers = outputs[0].reshape(-1)
            if len(numbers) != len(step.names):
                raise self._bad(f"{len(numbers)} values for {len(step.names)} names")
            scaled = (numbers.astype(np.float64) * step.scale + step.offset).tolist()
            values = dict(zip(step.names, scaled, strict=True))
            self._check_finite(values)
            return Result(values=values)

        return answer

    def _objects(self, step: Ssd) -> _Answer:
        spec, labels = self._manifest.input, self._manifest.labels
        if not isinstance(spec, Picture) or not labels:
            raise self._bad("'ssd' needs a picture and labels")
        grid = ssd.anchors(step, spec.width, spec.height)

        def answer(outputs: Sequence[Array], place: _Place) -> Result:
            if len(outputs) < 2 or outputs[1].shape[-1] != len(labels):
                raise self._bad(f"'ssd' needs boxes, then scores for {len(labels)} labels")
            boxes, scores, classes = ssd.detect(outputs[0], outputs[1], grid, step)
            # from the model's input back to the camera's picture
            boxes = (boxes - np.array([place[0], place[1]] * 2)) / np.array([place[2], place[3]] * 2)
            corners = np.clip(boxes, 0, 1).tolist()
            found = tuple(
                Detection(labels[index], score, *corner)
                for index, score, corner in zip(classes.tolist(), scores.tolist(), corners, strict=True)
            )
            if not found:
                return Result()
            self._check_finite({str(i): sum(corner) for i, corner in enumerate(corners)})
            return Result(found[0].label, found[0].score, detections=found)

        return answer

    def _check_finite(self, named: dict[str, float]) -> None:
        for name, value in named.items():
            if not math.isfinite(value):
                raise ModelError(
                    f"model '{self._manifest.name}' answered {value} for {name}",
                    hint="does the input hold readings that are not finite?",
                )
