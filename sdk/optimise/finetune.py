"""A classifier from a handful of example pictures: a trained network that stays as it is, and a new last layer.

    tuned = fine_tune(backbone, Path("examples"), prepare)      # examples/running/1.jpg, examples/stopped/1.jpg ...
    print(tuned.labels, tuned.validation)
    model = to_onnx(tuned.module, example)

Twenty pictures cannot train a million weights, but they can place planes between the features that a network has learned
from a million pictures (transfer by linear probing). So each picture is looked at in several random variations, the network
says its features of each once, and a ridge regression is fitted to them, whose decay is chosen by leaving out one example
at a time. The same examples, seed and versions give the same weights. Needs PyTorch (extra `train`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array

if TYPE_CHECKING:
    from torch import nn

PICTURES = (".jpg", ".jpeg", ".png")
MAX_EXAMPLES = 1000
MAX_LOOKS = 4000  # examples and variations: the head's cost grows with their square
# of the head's weights, relative to the size of the features; and the scales of its logits
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)
# a picture as uint8 [height, width, 3], RGB
Picture = Array
Example = tuple[Path | Picture, str]
# a picture to the network's input, float32 [3, height, width], as the bundle's pre steps make it
Prepare = Callable[[Picture], Array]


@dataclass(frozen=True)
class Tuned:
    """What `fine_tune` made.

    Attributes:
        module: backbone and head: input [n, 3, height, width], logits [n, labels]; in evaluation mode.
        labels: in the order of the logits.
        validation: the share of examples named rightly by heads that had seen neither them nor their variations.
        confused: of those it did not: (is, said) -> how many.
        inputs: each example as the network is given it, for calibration and golden samples.
    """

    module: nn.Module
    labels: tuple[str, ...]
    validation: float
    confused: dict[tuple[str, str], int] = field(repr=False)
    inputs: tuple[Array, ...] = field(repr=False)


def fine_tune(
    backbone: nn.Module,
    examples: Path | Sequence[Example],
    prepare: Prepare,
    *,
    variations: int = 4,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Tuned:
    """A new head on a frozen network.

    Args:
        backbone: [n, 3, height, width] to features, [n, f] or [n, f, rows, columns]. With rows and columns the head sees where
            things are: right for a camera and a machine that stay where they are, wrong for others.
        examples: a folder with a folder of pictures for each class, or (picture or its file, label).
        prepare: must do what the bundle's pre steps will.
        variations: of each example: a little shifted, zoomed and turned, darker, blurred; the example itself comes on top, and of
            many examples there are fewer.
        seed: of the variations.

    Raises:
        ModelError: fewer than two classes, or than two examples of one; a picture that cannot be read.
    """
    import torch

    pictures, names = read_examples(examples)
    labels = tuple(sorted(set(names)))
    rarest = min(Counter(names).values())
    if len(labels) < 2 or rarest < 2:
        raise ModelError(
            f"{len(pictures)} examples of {len(labels)} classes, the rarest with {rarest}",
            hint="two classes and two pictures of each are the least; ten of each do much better",
        )
    variations = min(variations, MAX_LOOKS // len(pictures) - 1)
    say(f"{len(pictures)} examples of {', '.join(labels)}; {variations} variations of each")
    features = look(backbone, pictures, prepare, variations, seed)
    truth = np.array([labels.index(name) for name in names])
    fitted = fit_ridge(features, truth, len(labels))
    wrong = Counter((labels[t], labels[s]) for t, s in zip(truth, fitted.said, strict=True) if t != s)
    share = float((fitted.said == truth).mean())
    say(f"validation: {share:.3f} of the examples named rightly by heads that had not seen them")
    module = torch.nn.Sequential(backbone, torch.nn.Flatten(), _head(fitted))
    inputs = tuple(np.asarray(prepare(picture), np.float32) for picture in pictures)
    return Tuned(module.eval(), labels, share, dict(wrong), inputs)


# --- pictures -----------------------------------------------------------------------------------------------------


def read_examples(examples: Path | Sequence[Example]) -> tuple[list[Picture], list[str]]:
    """The pictures, RGB, and the label of each.

    Raises:
        ModelError: too many, or one that cannot be read.
    """
    import cv2

    if isinstance(examples, Path):
        examples = [
            (file, folder.name)
            for folder in sorted(path for path in examples.glob("*") if path.is_dir())
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in PICTURES
        ]
    if len(examples) > MAX_EXAMPLES:
        raise ModelError(
            f"{len(examples)} examples, more than {MAX_EXAMPLES}", hint="train a model of your own with these"
        )
    pictures = []
    for source, _ in examples:
        if isinstance(source, Path):
            read = cv2.imread(str(source), cv2.IMREAD_COLOR)
            if read is None:
                raise ModelError(f"{source}: cannot be read as a picture", hint="JPEG and PNG are taken")
            pictures.append(np.asarray(cv2.cvtColor(read, cv2.COLOR_BGR2RGB)))
        else:
            pictures.append(source)
    return pictures, [label for _, label in examples]


def vary(picture: Picture, random: np.random.Generator) -> Picture:
    """The same thing as the same camera might show it at another time: a tremor, another light, a little blur and noise.

    It is not mirrored, and colours keep about their hue: on a machine's panel, left and right and red and green mean something.
    """
    import cv2

    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-2, 2), random.uniform(0.97, 1.04))
    turn[:, 2] += random.uniform(-0.02, 0.02, 2) * (width, height)
    x = cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if random.random() < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), random.uniform(0.3, 0.002 * width + 0.31))
    light = random.uniform(0.6, 1.25) * random.uniform(0.94, 1.06, 3)
    y = (x.astype(np.float32) / 255) ** random.uniform(0.75, 1.35) * light
    y += random.normal(0, random.uniform(0, 0.03), y.shape)
    return np.asarray(np.clip(y * 255, 0, 255).astype(np.uint8))


# --- the head -----------------------------------------------------------------------------------------------------


def look(backbone: nn.Module, pictures: Sequence[Picture], prepare: Prepare, variations: int, seed: int) -> Array:
    """[pictures, variations + 1, f]: what the network says of each picture, itself first, and of its variations."""
    backbone = backbone.eval()
    found = []
    for number, picture in enumerate(pictures):
        random = np.random.default_rng([seed, number])
        seen = [prepare(picture), *(prepare(vary(picture, random)) for _ in range(variations))]
        found.append(_features(backbone, np.stack(seen)))
    return np.stack(found)


def _features(backbone: nn.Module, batch: Array) -> Array:
    import torch

    with torch.no_grad():
        found = backbone(torch.from_numpy(np.ascontiguousarray(batch, np.float32))).flatten(1)
        return np.asarray(found.numpy(), np.float64)


@dataclass(frozen=True)
class Ridge:
    """A fitted head and how it does on examples that it has not seen.

    Attributes:
        weights: [labels, f], bias: [labels]: to logits, of plain features.
        said: [examples], what each is called by the head that was fitted without it and its variations.
        decay: that was chosen.
    """

    weights: Array
    bias: Array
    said: Array
    decay: float


def fit_ridge(features: Array, truth: Array, classes: int) -> Ridge:
    """Ridge regression to +1 for the own class and -1 for the others, with the decay and the scale of the logits chosen by
    leaving out one example at a time together with its variations.

    A handful of examples gives far fewer equations than features, so all is computed between examples (the dual form), and
    leaving one out needs no new fit: with H = K (K + d)^-1 the held out residuals of a group are (1 - H_gg)^-1 r_g
    (Allen 1974; for groups, Rifkin and Lippert 2007).

    Args:
        features: [examples, looks, f], the first look being the example itself.
        truth: [examples], numbers of classes.
    """
    examples, looks, width = features.shape
    x = features.reshape(-1, width)
    mean = x.mean(axis=0)
    # constant features stay out; a floor of the mean spread keeps what hardly moves from being blown up
    spread = x.std(axis=0)
    spread = spread + max(float(spread.mean()), 1e-9)
    x = (x - mean) / spread
    # each class counts the same, however many examples it has
    share = np.sqrt(examples / (classes * np.bincount(truth, minlength=classes)))[truth].repeat(looks)[:, None]
    size = float((x**2).sum(axis=1).mean()) or 1.0
    y = np.where(np.arange(classes) == truth.repeat(looks)[:, None], 1.0, -1.0) * share
    kernel = share * (x @ x.T / size + 1.0) * share.T  # the 1 is the bias
    values, vectors = np.linalg.eigh(kernel)
    held_out = {decay: _held_out(values, vectors, y, share, decay * examples * looks, looks) for decay in DECAYS}
    chosen = {decay: _scale(scores, truth) for decay, scores in held_out.items()}
    decay = min(DECAYS, key=lambda each: (round(chosen[each][1], 6), -each))
    dual = share * (vectors / (np.maximum(values, 0) + decay * examples * looks) @ (vectors.T @ y))
    scale = chosen[decay][0]
    weights = scale * (dual.T @ x) / size / spread
    return Ridge(weights, scale * dual.sum(axis=0) - weights @ mean, held_out[decay].argmax(axis=1), decay)


def _held_out(values: Array, vectors: Array, y: Array, share: Array, decay: float, looks: int) -> Array:
    """[examples, labels]: the scores of each example by a head that was fitted without it and its variations."""
    hat = vectors * (np.maximum(values, 0) / (np.maximum(values, 0) + decay)) @ vectors.T
    off = y - hat @ y
    scores = []
    for start in range(0, len(y), looks):
        group = slice(start, start + looks)
        residual = np.linalg.solve(np.eye(looks) - hat[group, group], off[group])
        scores.append(((y[group] - residual) / share[group])[0])
    return np.array(scores)


def _scale(scores: Array, truth: Array) -> tuple[float, float]:
    """By what the scores are to be multiplied to be logits, and the log loss then: of those in SCALES the best."""
    losses = {}
    for scale in SCALES:
        logits = scale * scores
        top = logits.max(axis=1)
        losses[scale] = float(
            (np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(truth)), truth]).mean()
        )
    best = min(SCALES, key=lambda scale: losses[scale])
    return best, losses[best]


def _head(fitted: Ridge) -> nn.Module:
    import torch

    head = torch.nn.Linear(fitted.weights.shape[1], len(fitted.weights))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.weights))
        head.bias.copy_(torch.from_numpy(fitted.bias))
    return head
