"""What a manifest declares, made runnable: bytes from a source -> tensors -> the model -> `Result`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from gateway.contract import Region, Result, Schema
from gateway.errors import ModelError, OutputError
from gateway.forms import MARK
from gateway.infer import boxes, spectra, steps
from gateway.infer.answers import Answers, Place
from gateway.infer.boxes import Found, Pixels
from gateway.infer.candidate import Candidate, variant_of
from gateway.infer.formreader import FormReader
from gateway.infer.manifest import (
    Ctc,
    Features,
    Fit,
    Manifest,
    Normalise,
    Picture,
    PreStep,
    Spectrum,
    Standardise,
    Tensor,
    Tiles,
    Window,
)
from gateway.infer.media import split
from gateway.infer.steps import Array, Buffer

PICTURE_MEDIA = ("image/jpeg", "image/png")
RECORDS_MEDIA = "records;"

_MAX_MEDIA = 16  # distinct schemas remembered; a stream has one, a malicious peer must not grow us
_PICTURE_STEPS = (Tiles, Fit)
_T = TypeVar("_T")

_Reader = Callable[[Buffer], Array]
Compute = Callable[[Sequence[Array]], Sequence[Array]]


class _View(NamedTuple):
    """One input made of a picture: of which region it is (by number), what it shows, in pixels, at which share."""

    part: int
    shows: Pixels
    share: float = 1.0  # of the input that it may fill


def batch_of(manifest: Manifest, candidate: Candidate) -> int:
    """How many inputs one call of its runner takes: what its variant says, on the runtime that takes any number."""
    return variant_of(manifest, candidate).batch if candidate.backend == "onnx" else 1


class Prepared(NamedTuple):
    """The runtime's inputs, and what the post steps must know about how they were made."""

    inputs: tuple[Array, ...]
    place: Place


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
        self._pre = [self._transform(step) for step in manifest.pre if not isinstance(step, _PICTURE_STEPS)]
        self._tiles = next((step for step in manifest.pre if isinstance(step, Tiles)), None)
        self._answers = Answers(manifest)
        fit = next((step for step in manifest.pre if isinstance(step, Fit)), None)
        self._shares = (1.0, *fit.again) if fit is not None else (1.0,)
        several = "tiles" if self._tiles is not None else "again" if len(self._shares) > 1 else ""
        self._several = bool(several)
        if several and self._answers.finder is None:
            raise self._bad(f"'{several}' is for detectors: only their answers can be merged")
        self._readers: dict[str, _Reader] = {}
        last = manifest.post[-1]
        self._forms = FormReader(manifest.labels, last.accept) if isinstance(last, Ctc) else None
        self._load_opencv(threads)

    def run(self, compute: Compute, data: Buffer, media: str, batch: int = 1) -> Result:
        """Everything: bytes of a source to a result, by as many calls of the runner as it needs.

        Args:
            compute: the runner.
            media: as in `prepare`; of a picture with regions the result has `parts`, one for each.
            batch: how many inputs a call may take along the first axis, see `batch_of`.

        Raises:
            ModelError: see `prepare`.
            OutputError: see `finish`.
        """
        if not isinstance(self._manifest.input, Picture):
            inputs, place = self.prepare(data, media)
            return self.finish(compute(inputs), place)
        if MARK in media:
            return self._form(compute, data, media, batch)
        picture, parts, named = self._open(data, media)
        views = list(self._views(picture, parts))
        results: list[Result] = []
        looks: list[dict[Region, list[Found]]] = [{} for _ in parts]
        for start in range(0, len(views), batch):
            chunk = views[start : start + batch]
            made = [self._look(picture, view) for view in chunk]
            for view, prepared, outputs in zip(chunk, made, self._together(compute, made), strict=True):
                if not self._several:
                    results.append(self.finish(outputs, prepared.place))
                    continue
                found = self._sound(partial(self._answers.found, outputs, prepared.place))
                looks[view.part].setdefault(prepared.place.region, []).append(found)
        if self._several:
            within = [_fractions(picture, part) for part in parts]
            results = [self._sound(partial(self._answers.merged, *each)) for each in zip(looks, within, strict=True)]
        return Result(parts=tuple(results)) if named else results[0]

    def prepare(self, data: Buffer, media: str) -> Prepared:
        """Bytes of a source to the runtime's inputs, where one call is enough for them; of `again` the first look.

        Args:
            media: `image/jpeg` or `image/png`, perhaps with a region (gateway.infer.media), or
                `records;<Schema.spec()>`.

        Raises:
            ModelError: the bytes are not what `media` says, not what the model takes, or more than one input.
        """
        if isinstance(self._manifest.input, Picture):
            picture, parts, _ = self._open(data, media)
            views = [view for view in self._views(picture, parts) if view.share == 1]
            if len(views) != 1:
                raise ModelError(f"model '{self._manifest.name}': {len(views)} inputs of one picture", hint="use run")
            return self._look(picture, views[0])
        reader = self._readers.get(media)
        if reader is None:
            reader = self._reader(media)
            if len(self._readers) >= _MAX_MEDIA:
                self._readers.clear()
            self._readers[media] = reader
        inputs = (self._transformed(reader(data)),)
        return Prepared(inputs, Place(inputs=inputs))

    def finish(self, outputs: Sequence[Array], place: Place = Place()) -> Result:  # noqa: B008 - a constant
        """The runtime's outputs to a result.

        Raises:
            OutputError: their shapes do not fit the steps or the labels, or a number is not finite.
        """
        return self._sound(partial(self._answers.answer, outputs, place))

    @staticmethod
    def _sound(work: Callable[[], _T]) -> _T:
        try:
            return work()
        except ModelError as error:
            raise OutputError(error.what, hint=error.hint) from error

    def _bad(self, what: str) -> ModelError:
        return ModelError(f"model '{self._manifest.name}': {what}", hint="mend the manifest and pack it again")

    def _check_order(self) -> None:
        pre = self._manifest.pre
        picture = isinstance(self._manifest.input, Picture)
        if not isinstance(pre[-1], Tensor) or any(isinstance(step, Tensor) for step in pre[:-1]):
            raise self._bad("the last pre step, and only that, must be 'tensor'")
        rest = pre[1:] if isinstance(pre[0], Tiles) else pre
        if picture != isinstance(rest[0], Fit) or any(isinstance(step, _PICTURE_STEPS) for step in rest[1:]):
            raise self._bad("'fit' must be the first pre step of a picture, after 'tiles' if any, and of nothing else")
        layouts = ("nchw", "nhwc") if picture else ("ncl", "nlc", "flat")
        if pre[-1].layout not in layouts:
            raise self._bad(f"the layout '{pre[-1].layout}' does not fit the input; {', '.join(layouts)} do")
        for i, step in enumerate(pre):
            if isinstance(step, Standardise | Features | Spectrum) and picture:
                raise self._bad("'standardise', 'features' and 'spectrum' are for windows")
            flat = i + 2 == len(pre) and pre[-1].layout == "flat"
            if isinstance(step, Features) and not flat:
                raise self._bad("'features' must be followed by 'tensor' with layout 'flat'")
        if sum(isinstance(step, Features | Spectrum) for step in pre) > 1:
            raise self._bad("only one of 'features' and 'spectrum' can be made of a window")

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
                return partial(
                    spectra.features, names=step.names, rate_hz=self._rate(), bands_hz=step.bands_hz,
                    taper=step.taper, rolloff=step.rolloff,
                )  # fmt: skip
            case Spectrum():
                return partial(self._spectrum, step)
            case Tensor():
                return partial(steps.tensor, layout=step.layout, dtype=step.dtype)
            case Fit() | Tiles():
                raise self._bad("'fit' and 'tiles' are part of reading a picture")

    def _rate(self) -> float:
        return self._manifest.input.rate_hz if isinstance(self._manifest.input, Window) else 1.0

    @staticmethod
    def _spectrum(step: Spectrum, x: Array) -> Array:
        out = spectra.amplitudes(x, step.taper)
        return spectra.decibels(out, step.floor_db) if step.scale == "db" else out

    def _transformed(self, x: Array) -> Array:
        for step in self._pre:
            x = step(x)
        return x

    def _reader(self, media: str) -> _Reader:
        window = self._manifest.input
        if not media.startswith(RECORDS_MEDIA) or not isinstance(window, Window):
            raise ModelError(f"model '{self._manifest.name}' takes records, not {media[:60]}")
        try:
            schema = Schema.parse(media.removeprefix(RECORDS_MEDIA))
        except ValueError as error:
            raise ModelError(f"not a schema of records: {media[:60]}") from error
        read, length = steps.records(schema, window.channels), window.length

        def read_window(data: Buffer) -> Array:
            if len(data) != length * schema.record_size:
                raise ModelError(
                    f"model '{self._manifest.name}' takes {length} records of {schema.record_size} bytes, "
                    f"got {len(data)} bytes",
                    hint="leave out the pipeline's window, or set it to the model's length",
                )
            return read(data)

        return read_window

    # --- pictures ---------------------------------------------------------------------------------------------

    def _load_opencv(self, threads: int) -> None:
        if isinstance(self._manifest.input, Picture):
            # only models of pictures pay for OpenCV
            from gateway.infer import pictures

            pictures.set_threads(threads)

    def _open(self, data: Buffer, media: str) -> tuple[Array, list[Pixels], bool]:
        """The decoded picture, what is to be looked at in its pixels, and whether regions were named."""
        from gateway.infer import pictures

        spec = self._manifest.input
        assert isinstance(spec, Picture)  # the callers have looked
        kind, regions = split(media)
        if kind not in PICTURE_MEDIA:
            raise ModelError(f"model '{self._manifest.name}' takes pictures, not {kind[:60]}")
        # a tile's size is in pixels of the camera's own picture
        reduce = 1 if self._tiles else pictures.reduction(data, regions, spec.width, spec.height)
        picture = pictures.decode(data, spec.max_pixels, reduce)
        if not regions:
            return picture, [(0, 0, picture.shape[1], picture.shape[0])], False
        return picture, [pictures.pixels(picture, region) for region in regions], True

    def _views(self, picture: Array, parts: Sequence[Pixels]) -> Iterator[_View]:
        """What the model is shown of each part: the whole of it, its tiles, or both."""
        step, spec = self._tiles, self._manifest.input
        for number, part in enumerate(parts):
            x0, y0, x1, y1 = part
            grid: list[Pixels] = [(0, 0, x1 - x0, y1 - y0)]
            if step is not None and isinstance(spec, Picture):
                tile = (step.size, max(1, round(step.size * spec.height / spec.width)))
                grid = boxes.tiles(x1 - x0, y1 - y0, tile, step.overlap, step.max_tiles)
                if len(grid) > 1 and step.whole:
                    grid.insert(0, (0, 0, x1 - x0, y1 - y0))
            for left, top, right, bottom in grid:
                for share in self._shares:
                    yield _View(number, (x0 + left, y0 + top, x0 + right, y0 + bottom), share)

    def _look(self, picture: Array, view: _View) -> Prepared:
        from gateway.infer import pictures

        spec, x = self._manifest.input, pictures.crop(picture, view.shows)
        fit = next(step for step in self._manifest.pre if isinstance(step, Fit))
        assert isinstance(spec, Picture)  # the callers have looked
        at = pictures.WHOLE
        width, height = (max(1, round(side * view.share)) for side in (spec.width, spec.height))
        if fit.mode == "letterbox":
            x, at = pictures.letterbox(x, width, height, fit.fill, fit.interpolation, fit.align)
        else:
            x = pictures.stretch(x, width, height, fit.interpolation)
        if view.share < 1:
            x, at = pictures.middle(x, at, spec.width, spec.height, fit.fill)
        # colours last: on the small picture, not on the camera's
        x = self._transformed(pictures.swap_colours(x) if spec.colour == "rgb" else x)
        return Prepared((x,), Place(*at, _fractions(picture, view.shows), (x,)))

    def _form(self, compute: Compute, data: Buffer, media: str, batch: int) -> Result:
        """A picture of a paper form: its cells are the model's inputs."""
        from gateway.infer import pictures

        spec = self._manifest.input
        if self._forms is None or not isinstance(spec, Picture):
            raise ModelError(f"model '{self._manifest.name}' reads no text", hint="name one with the post step 'ctc'")
        kind, _ = self._forms.template(media)
        if kind not in PICTURE_MEDIA:
            raise ModelError(f"model '{self._manifest.name}' takes pictures, not {kind[:60]}")

        def recognise(cells: Sequence[Array]) -> list[Array]:
            views = [(cell, _View(0, (0, 0, cell.shape[1], cell.shape[0]))) for cell in cells]
            tables = []
            for start in range(0, len(views), batch):
                made = [self._look(cell, view) for cell, view in views[start : start + batch]]
                tables += [np.array(outputs[0][0]) for outputs in self._together(compute, made)]
            if any(table.shape[-1:] != (len(self._manifest.labels),) or table.ndim != 2 for table in tables):
                raise OutputError(f"model '{self._manifest.name}': its outputs are not [steps, labels]")
            return tables

        return self._forms.read(pictures.decode(data, spec.max_pixels), media, recognise)

    def _together(self, compute: Compute, made: Sequence[Prepared]) -> Iterator[Sequence[Array]]:
        """The outputs for each of these inputs, of one call. An output is valid until the next one is asked for."""
        if len(made) == 1:
            yield compute(made[0].inputs)
            return
        outputs = compute([np.concatenate([prepared.inputs[0] for prepared in made])])
        if any(len(output) != len(made) for output in outputs):
            raise OutputError(
                f"model '{self._manifest.name}': its outputs do not have one row for each of {len(made)} inputs",
                hint="set the variant's batch to 1 and pack it again",
            )
        for i in range(len(made)):
            yield [output[i : i + 1] for output in outputs]


def _fractions(picture: Array, pixels: Pixels) -> Region:
    height, width = picture.shape[:2]
    return pixels[0] / width, pixels[1] / height, pixels[2] / width, pixels[3] / height
