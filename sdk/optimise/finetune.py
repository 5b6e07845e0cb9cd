"""A classifier from a handful of example pictures: a trained network that stays as it is, and a new last layer.

    tuned = fine_tune(backbone, Path("examples"), prepare)      # examples/running/1.jpg, examples/stopped/1.jpg ...
    print(tuned.labels, tuned.validation)
    model = to_onnx(tuned.module, example)

Twenty pictures cannot train a million weights, but they can place planes between the features that a network has learned
from a million pictures (transfer by linear probing). So each picture is looked at in several random variations, the network
says its features of each once, and a logistic regression with weight decay is fitted to them. The same examples, seed and
versions give the same weights. Needs PyTorch (extra `train`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array

if TYPE_CHECKING:
    from torch import nn

PICTURES = (".jpg", ".jpeg", ".png")
MAX_EXAMPLES = 10_000
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
        validation: the share of examples that a head named rightly which had not seen them, by `folds`-fold validation.
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
    variations: int = 16,
    folds: int = 4,
    decay: float = 1e-2,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Tuned:
    """A new head on a frozen network.

    Args:
        backbone: [n, 3, height, width] to features [n, f].
        examples: a folder with a folder of pictures for each class, or (picture or its file, label).
        prepare: must do what the bundle's pre steps will.
        variations: of each example: shifted, zoomed, turned, mirrored, darker, blurred; the example itself comes on top.
        folds: of the validation; at most as many as the rarest class has examples.
        decay: of the head's weights; more for fewer or noisier examples.
        seed: of the variations and the folds.

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
    say(f"{len(pictures)} examples of {', '.join(labels)}; {variations} variations of each")
    random = np.random.default_rng(seed)
    inputs = tuple(np.asarray(prepare(picture), np.float32) for picture in pictures)
    seen = [
        [own, *(prepare(vary(picture, random)) for _ in range(variations))]
        for picture, own in zip(pictures, inputs, strict=True)
    ]
    backbone = backbone.eval()
    # [examples, variations + 1, f]
    features = np.stack([_features(backbone, np.stack(each)) for each in seen])
    truth = np.array([labels.index(name) for name in names])
    said = _validated(features, truth, len(labels), min(folds, rarest), decay, random)
    wrong = Counter((labels[t], labels[s]) for t, s in zip(truth, said, strict=True) if t != s)
    head = _head(features.reshape(-1, features.shape[-1]), truth.repeat(features.shape[1]), len(labels), decay)
    share = float((said == truth).mean())
    say(f"validation: {share:.3f} of the examples named rightly by heads that had not seen them")
    return Tuned(torch.nn.Sequential(backbone, head).eval(), labels, share, dict(wrong), inputs)


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
    """The same thing as another picture of it might show it; colours keep their hue, since lamps speak by it."""
    import cv2

    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-8, 8), random.uniform(0.9, 1.2))
    turn[:, 2] += random.uniform(-0.06, 0.06, 2) * (width, height)
    x = cv2.warpAffine(picture, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if random.random() < 0.5:
        x = x[:, ::-1]
    if random.random() < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), random.uniform(0.3, 0.004 * width + 0.31))
    y = (x.astype(np.float32) / 255) ** random.uniform(0.7, 1.4) * random.uniform(0.75, 1.15)
    y += random.normal(0, random.uniform(0, 0.03), y.shape)
    return np.asarray(np.clip(y * 255, 0, 255).astype(np.uint8))


# --- the head -----------------------------------------------------------------------------------------------------


def _features(backbone: nn.Module, batch: Array) -> Array:
    import torch

    with torch.no_grad():
        return np.asarray(backbone(torch.from_numpy(np.ascontiguousarray(batch, np.float32))).numpy(), np.float64)


def _validated(
    features: Array, truth: Array, classes: int, folds: int, decay: float, random: np.random.Generator
) -> Array:
    """What each example is called by a head that was fitted without it and its variations."""
    fold = np.zeros(len(truth), int)
    for label in range(classes):
        rows = np.flatnonzero(truth == label)
        fold[random.permutation(rows)] = np.arange(len(rows)) % folds
    said = np.zeros(len(truth), int)
    for number in range(folds):
        out = fold == number
        inside = features[~out]
        weights, bias = _fit(
            inside.reshape(-1, features.shape[-1]), truth[~out].repeat(features.shape[1]), classes, decay
        )
        said[out] = (features[out, 0] @ weights.T + bias).argmax(axis=1)
    return said


def _fit(x: Array, truth: Array, classes: int, decay: float) -> tuple[Array, Array]:
    """Multinomial logistic regression by L-BFGS, in float64: weights [classes, f] and bias [classes] for the plain features."""
    import torch
    from torch.nn import functional

    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    given = torch.from_numpy((x - mean) / spread)
    wanted = torch.from_numpy(truth)
    # each class counts the same, however many examples it has
    counts = np.bincount(truth, minlength=classes)
    share = torch.from_numpy(len(truth) / (classes * counts))
    weights = torch.zeros((classes, x.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def loss() -> Any:
        solver.zero_grad()
        logits = given @ weights.T / np.sqrt(x.shape[1]) + bias
        total = functional.cross_entropy(logits, wanted, weight=share) + decay * weights.square().sum() / x.shape[1]
        total.backward()
        return total

    solver.step(loss)
    found = weights.detach().numpy() / np.sqrt(x.shape[1]) / spread
    return found, bias.detach().numpy() - found @ mean


def _head(x: Array, truth: Array, classes: int, decay: float) -> nn.Module:
    import torch

    weights, bias = _fit(x, truth, classes, decay)
    head = torch.nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        head.bias.copy_(torch.from_numpy(bias))
    return head
