"""The post steps of a manifest, made runnable: outputs of a model -> `Result`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gateway.contract import Detection, Region, Result
from gateway.errors import ModelError
from gateway.infer import anomaly, boxes, ctc, masks, ssd, steps
from gateway.infer.boxes import Found
from gateway.infer.manifest import (
    Anomaly,
    Ctc,
    Features,
    Gfl,
    Manifest,
    Picture,
    PostStep,
    Segment,
    Softmax,
    Spectrum,
    Ssd,
    TopK,
    Values,
    Window,
    Yolo,
)
from gateway.infer.media import WHOLE
from gateway.infer.steps import Array

MAX_TEXT = 256  # characters of one answer

Outputs = Sequence[Array]


class Place(NamedTuple):
    """How an input was made: where the region lies on it, as fractions; the region of the picture; the input itself."""

    x: float = 0.0
    y: float = 0.0
    width: float = 1.0
    height: float = 1.0
    region: Region = WHOLE
    inputs: tuple[Array, ...] = ()


Answer = Callable[[Outputs, Place], Result]
Finder = Callable[[Outputs], Found]


class Answers:
    """What the post steps of one model make of its outputs.

    Attributes:
        finder: of a detector, what gives boxes in fractions of the model's input; several looks at a picture need it.

    Raises:
        ModelError: the declared steps do not fit the input, the labels or each other.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.finder: Finder | None = None
        self._limits = (0.5, 100)  # of merging: iou, detections
        self._one_name = 1.0
        self.answer = self._compile()

    def found(self, outputs: Outputs, place: Place) -> Found:
        """What a detector finds, in fractions of the whole picture."""
        assert self.finder is not None  # the caller has looked
        found = self.finder(outputs)
        x0, y0, x1, y1 = place.region
        at = (found.boxes - np.array([place.x, place.y] * 2)) / np.array([place.width, place.height] * 2)
        at = at * np.array([x1 - x0, y1 - y0] * 2) + np.array([x0, y0] * 2)
        # what lies on the padding is not on the picture; NaN stays, to be told
        inside = ~((at[:, 2:] <= 0) | (at[:, :2] >= 1)).any(axis=1)
        return boxes.take(Found(np.clip(at, 0, 1), found.scores, found.classes), inside)

    def merged(self, looks: Mapping[Region, Sequence[Found]], within: Region) -> Result:
        """What was found on the tiles of what lies `within`, each looked at once or at several sizes, as one result."""
        iou, limit = self._limits
        tiles = [(tile, boxes.join(found, iou, limit)) for tile, found in looks.items()]
        if len(tiles) == 1:
            return self._named(tiles[0][1])
        cut = np.concatenate([boxes.cut_off(found.boxes, tile, within) for tile, found in tiles])
        return self._named(boxes.merge(boxes.together([found for _, found in tiles]), cut, iou, limit))

    def _bad(self, what: str) -> ModelError:
        return ModelError(f"model '{self._manifest.name}': {what}", hint="mend the manifest and pack it again")

    def _compile(self) -> Answer:
        chain = list(self._manifest.post)
        softmax = 0
        while isinstance(chain[0], Softmax) and len(chain) > 1:
            del chain[0]
            softmax += 1
        main, *after = chain
        alone = isinstance(main, Anomaly)
        if isinstance(main, Softmax) or len(after) > (not alone) or any(not isinstance(x, Anomaly) for x in after):
            raise self._bad("post steps are any 'softmax', then one other, then perhaps 'anomaly'")
        answer = self._main(main)
        if after and isinstance(after[0], Anomaly):
            answer = self._with_anomaly(answer, after[0])
        if not softmax:
            return answer
        return lambda outputs, place: answer([steps.softmax(outputs[0]), *outputs[1:]], place)

    def _main(self, step: PostStep) -> Answer:
        match step:
            case TopK():
                return self._classes(step)
            case Values():
                return self._numbers(step)
            case Ctc():
                return self._text(step)
            case Segment():
                return self._areas(step)
            case Anomaly():
                return self._anomaly(step)
            case Ssd() | Gfl() | Yolo():
                self.finder, self._limits = self._finder(step), (step.iou, step.max_detections)
                self._one_name = step.one_name
                return lambda outputs, place: self._named(self.found(outputs, place))
            case Softmax():
                raise self._bad("'softmax' is no answer")

    def _classes(self, step: TopK) -> Answer:
        labels = self._manifest.labels
        if not labels:
            raise self._bad("'top_k' needs labels")

        def answer(outputs: Outputs, place: Place) -> Result:
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

    def _numbers(self, step: Values) -> Answer:
        def answer(outputs: Outputs, place: Place) -> Result:
            numbers = outputs[0].reshape(-1)
            if len(numbers) != len(step.names):
                raise self._bad(f"{len(numbers)} values for {len(step.names)} names")
            scaled = (numbers.astype(np.float64) * step.scale + step.offset).tolist()
            values = dict(zip(step.names, scaled, strict=True))
            self._check_finite(values)
            return Result(values=values)

        return answer

    def _text(self, step: Ctc) -> Answer:
        labels = self._manifest.labels
        if len(labels) < 2:
            raise self._bad("'ctc' needs labels: the blank first, then the characters")
        index = {label: i for i, label in enumerate(labels)}
        if unknown := sorted({c for word in step.lexicon for c in word if not index.get(c)}):
            raise self._bad(f"the lexicon of 'ctc' has characters that are no labels: {''.join(unknown)[:60]}")
        lexicon = ctc.Lexicon([[index[c] for c in word] for word in step.lexicon]) if step.lexicon else None

        def answer(outputs: Outputs, place: Place) -> Result:
            table = outputs[0].reshape(-1, outputs[0].shape[-1])
            if table.shape[1] != len(labels):
                raise self._bad(f"{table.shape[1]} scores a step for {len(labels)} labels")
            self._check_finite({"a step": float(table.sum())})
            if lexicon is not None:
                read = ctc.beam(table, max(step.beam, 2), lexicon)
            else:
                read = ctc.greedy(table) if step.beam == 1 else ctc.beam(table, step.beam, ctc.FREE)
            text = "".join(labels[i] for i in read.labels[:MAX_TEXT])
            sure = tuple(round(p, 4) for p in read.characters[:MAX_TEXT])
            score = sum(sure) / len(sure) if sure else 0.0
            # only words of a lexicon are classes
            return Result(text if lexicon else "", score, text=text, characters=sure)

        return answer

    def _areas(self, step: Segment) -> Answer:
        labels = list(self._manifest.labels)
        if not isinstance(self._manifest.input, Picture) or not labels:
            raise self._bad("'segment' needs a picture and labels")
        if step.background and len(labels) > 1:
            labels[0] = ""

        def answer(outputs: Outputs, place: Place) -> Result:
            x = masks.planes(outputs[0], step)
            if len(x) != len(labels):
                raise self._bad(f"{len(x)} planes for {len(labels)} labels")
            x = masks.inner(x, place[:4])
            self._check_finite({"a plane": float(x.sum())})
            shares = {
                label: share for label, share in zip(labels, masks.shares(x, step.threshold), strict=True) if label
            }
            return Result(values=shares, masks=masks.masks(x, labels, step.threshold, step.side))

        return answer

    def _anomaly(self, step: Anomaly) -> Answer:
        ratio = self._ratio(step)

        def answer(outputs: Outputs, place: Place) -> Result:
            score = ratio(outputs, place)
            sure = anomaly.probability(score)
            scores = {"anomaly": sure, "normal": 1 - sure}
            label = "anomaly" if score >= 1 else "normal"
            return Result(label, scores[label], scores, values={"anomaly": score})

        return answer

    def _with_anomaly(self, answer: Answer, step: Anomaly) -> Answer:
        ratio = self._ratio(step)

        def both(outputs: Outputs, place: Place) -> Result:
            first, score = answer(outputs, place), ratio(outputs, place)
            named = (first.label, first.score)
            if step.label and score >= 1:
                named = step.label, anomaly.probability(score)
            return Result(*named, first.scores, first.detections, {**first.values, "anomaly": score}, first.text,
                          first.characters, first.masks)  # fmt: skip

        return both

    def _ratio(self, step: Anomaly) -> Callable[[Outputs, Place], float]:
        """Of the outputs and the input: the score in units of the threshold."""
        measure = self._distance(step) if step.method == "distance" else self._reconstruction(step)

        def ratio(outputs: Outputs, place: Place) -> float:
            if len(outputs) <= step.output:
                raise self._bad(f"'anomaly' wants output {step.output}, there are {len(outputs)}")
            score = measure(outputs[step.output], place) / step.threshold
            self._check_finite({"anomaly": score})
            return score

        return ratio

    def _distance(self, step: Anomaly) -> Callable[[Array, Place], float]:
        mean, whiten = np.asarray(step.mean, np.float64), np.asarray(step.whiten, np.float64)
        n = len(mean)
        if not n or len(whiten) not in (0, n, n * n):
            raise self._bad(f"'anomaly' with 'distance' needs mean, and none, {n} or {n * n} values in whiten")
        matrix = None if not len(whiten) else whiten if len(whiten) == n else whiten.reshape(n, n)
        return lambda output, _: anomaly.distance(output, mean, matrix)

    def _reconstruction(self, step: Anomaly) -> Callable[[Array, Place], float]:
        spec, layout = self._manifest.input, self._manifest.pre[-1]
        if not isinstance(spec, Window) or step.mean or step.whiten:
            raise self._bad("'anomaly' with 'reconstruction' is for windows, and has no mean and whiten")
        changed = any(isinstance(x, Features | Spectrum) for x in self._manifest.pre)
        if changed and step.smooth:
            raise self._bad("'anomaly' smooths over readings; after 'features' or 'spectrum' there are none")
        channels = 1 if changed else len(spec.channels)
        by_reading = getattr(layout, "layout", "") == "nlc"

        def measure(output: Array, place: Place) -> float:
            x = place.inputs[0]
            x = x[0] if by_reading else x.reshape(channels, -1)
            return anomaly.reconstruction(x, output, 0 if by_reading else 1, step.smooth)

        return measure

    def _finder(self, step: Ssd | Gfl | Yolo) -> Finder:
        spec, labels = self._manifest.input, self._manifest.labels
        name = step.__struct_config__.tag
        if not isinstance(spec, Picture) or not labels:
            raise self._bad(f"'{name}' needs a picture and labels")
        width, height, n = spec.width, spec.height, len(labels)
        if isinstance(step, Gfl):
            points = boxes.cells(step.strides, width, height, step.offset)
            return lambda outputs: boxes.gfl(outputs, points, step, n, width, height)
        if isinstance(step, Yolo):
            grid = boxes.cells(step.strides, width, height, 0.0) if step.strides else None
            return lambda outputs: boxes.yolo(outputs[0], grid, step, n, width, height)
        anchors = ssd.anchors(step, width, height)

        def find(outputs: Outputs) -> Found:
            if len(outputs) < 2 or outputs[1].shape[-1] != n:
                raise self._bad(f"'ssd' needs boxes, then scores for {n} labels")
            return ssd.detect(outputs[0], outputs[1], anchors, step)

        return find

    def _named(self, found: Found) -> Result:
        labels = self._manifest.labels
        if self._one_name < 1:
            found = boxes.best_names(found, self._one_name)
        corners = found.boxes.tolist()
        self._check_finite({str(i): sum(corner) for i, corner in enumerate(corners)})
        seen = tuple(
            Detection(labels[index], score, *corner)
            for index, score, corner in zip(found.classes.tolist(), found.scores.tolist(), corners, strict=True)
        )
        return Result(seen[0].label, seen[0].score, detections=seen) if seen else Result()

    def _check_finite(self, named: dict[str, float]) -> None:
        for name, value in named.items():
            if not math.isfinite(value):
                raise ModelError(
                    f"model '{self._manifest.name}' answered {value} for {name}",
                    hint="does the input hold readings that are not finite?",
                )
