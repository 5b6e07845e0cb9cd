"""Simulated pictures of a machine: a stack light and a spindle, before backgrounds that no two sets share.

THESE ARE RENDERINGS, not photographs: they show that `fine_tune` and what follows it work, and how much a handful of examples
carries over to surroundings it has not seen. They say nothing about a real machine; for that, take pictures of it.

    running   green lamp, spindle turning (blurred)
    stopped   yellow lamp or none, spindle standing
    fault     red lamp, spindle standing

The splits have families of backgrounds of their own: examples before plain walls, test pictures before other ones.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from gateway.infer.steps import Array

LABELS = ("fault", "running", "stopped")
SIDE = 256
EXAMPLES_EACH = 12
TEST_EACH = 100

Split = Literal["examples", "validation", "test"]
# name of the split -> families of backgrounds, and the seed
SPLITS: dict[str, tuple[tuple[str, ...], int]] = {
    "examples": (("plain", "gradient", "shelves"), 11),
    "validation": (("plain", "gradient", "shelves"), 12),
    "test": (("bricks", "tiles", "clutter"), 13),
}
# lamps from the top: colour when lit, RGB
LAMPS = ((235, 40, 30), (250, 190, 30), (40, 220, 90))


def pictures(split: Split, each: int) -> list[tuple[Array, str]]:
    """`each` pictures of every class, uint8 [SIDE, SIDE, 3] RGB; the same at every call."""
    families, seed = SPLITS[split]
    random = np.random.default_rng(seed)
    return [(render(label, str(random.choice(families)), random), label) for label in LABELS for _ in range(each)]


def render(label: str, family: str, random: np.random.Generator) -> Array:
    """One picture."""
    canvas = background(family, random)
    x, y = (int(v) for v in random.uniform((60, 70), (110, 100)))
    scale = random.uniform(0.85, 1.15)
    machine(canvas, x, y, scale, random)
    lit = {"running": 2, "fault": 0, "stopped": int(random.choice((1, -1)))}[label]
    lamps(canvas, int(x + 95 * scale), y - 20, scale, lit)
    spindle(canvas, int(x + 40 * scale), int(y + 70 * scale), scale, label == "running", random)
    return photographed(canvas, random)


# --- what is drawn ------------------------------------------------------------------------------------------------


def _colour(random: np.random.Generator, low: int = 60, high: int = 200) -> tuple[int, int, int]:
    """A muted one: walls and machines are no lamps."""
    grey = random.uniform(low, high)
    r, g, b = (int(np.clip(grey + d, 0, 255)) for d in random.uniform(-25, 25, 3))
    return r, g, b


def background(family: str, random: np.random.Generator) -> Array:
    canvas: Array = np.full((SIDE, SIDE, 3), _colour(random), np.uint8)
    second = _colour(random)
    if family == "gradient":
        share = np.linspace(0, 1, SIDE)[:, None, None]
        canvas = (canvas * (1 - share) + np.array(second) * share).astype(np.uint8)
    elif family == "shelves":
        for y in range(int(random.integers(10, 40)), SIDE, int(random.integers(35, 60))):
            cv2.rectangle(canvas, (0, y), (SIDE, y + 5), second, -1)
            for x in range(0, SIDE, 40):
                cv2.rectangle(canvas, (x + 4, y - 22), (x + 30, y), _colour(random), -1)
    elif family in ("bricks", "tiles"):
        high = int(random.integers(14, 24)) if family == "bricks" else int(random.integers(30, 46))
        wide = 2 * high if family == "bricks" else high
        for row, y in enumerate(range(0, SIDE, high)):
            for x in range(-(row % 2) * wide // 2 if family == "bricks" else 0, SIDE, wide):
                shade = tuple(int(np.clip(c + random.normal(0, 10), 0, 255)) for c in second)
                cv2.rectangle(canvas, (x + 1, y + 1), (x + wide - 2, y + high - 2), shade, -1)
    elif family == "clutter":
        for _ in range(40):
            at = tuple(int(v) for v in random.uniform(0, SIDE, 2))
            size = tuple(int(v) for v in random.uniform(6, 45, 2))
            cv2.ellipse(canvas, at, size, float(random.uniform(0, 180)), 0, 360, _colour(random, 30, 230), -1)
    return canvas


def machine(canvas: Array, x: int, y: int, scale: float, random: np.random.Generator) -> None:
    body, dark = _colour(random, 90, 180), _colour(random, 30, 70)
    wide, high = int(120 * scale), int(130 * scale)
    cv2.rectangle(canvas, (x, y), (x + wide, y + high), body, -1)
    cv2.rectangle(canvas, (x, y), (x + wide, y + high), dark, 2)
    cv2.rectangle(
        canvas, (x + int(8 * scale), y + int(25 * scale)), (x + int(72 * scale), y + int(115 * scale)), dark, -1
    )
    for button in range(3):
        cv2.circle(canvas, (x + int(90 * scale), y + int((70 + 16 * button) * scale)), int(4 * scale), dark, -1)


def lamps(canvas: Array, x: int, y: int, scale: float, lit: int) -> None:
    """A stack light on the machine's top: red, yellow, green; `lit` is one of them, or -1."""
    wide, high = int(16 * scale), int(17 * scale)
    top = y - 2 * high
    for number, colour in enumerate(LAMPS):
        at = (x - wide // 2, top + number * high), (x + wide // 2, top + (number + 1) * high - 2)
        shade = colour if number == lit else tuple(int(0.25 * c + 30) for c in colour)
        cv2.rectangle(canvas, *at, shade, -1)
        if number == lit:
            glow = np.zeros_like(canvas)
            cv2.circle(glow, (x, top + number * high + high // 2), int(2.2 * wide), colour, -1)
            glow = cv2.GaussianBlur(glow, (0, 0), wide)
            np.copyto(canvas, cv2.add(canvas, (glow * 0.35).astype(np.uint8)))
            cv2.rectangle(canvas, *at, colour, -1)
    cv2.rectangle(canvas, (x - 2, y + high), (x + 2, y + int(22 * scale)), (40, 40, 40), -1)


def spindle(canvas: Array, x: int, y: int, scale: float, turning: bool, random: np.random.Generator) -> None:
    """A chuck with three jaws; while it turns, its jaws are a grey ring."""
    radius = int(26 * scale)
    cv2.circle(canvas, (x, y), radius, (150, 150, 155), -1)
    start = random.uniform(0, 120)
    angles = np.arange(0, 360, 4) if turning else start + np.array([0, 120, 240])
    layer = canvas.copy()
    for angle in np.deg2rad(angles):
        end = int(x + radius * np.cos(angle)), int(y + radius * np.sin(angle))
        cv2.line(layer, (x, y), end, (40, 40, 45), max(2, int(6 * scale)))
    np.copyto(canvas, cv2.addWeighted(layer, 0.35 if turning else 1.0, canvas, 0.65 if turning else 0.0, 0))
    cv2.circle(canvas, (x, y), int(7 * scale), (200, 200, 205), -1)


def photographed(canvas: Array, random: np.random.Generator) -> Array:
    """As a cheap camera takes it: other light, a little blur, noise, JPEG."""
    x = cv2.GaussianBlur(canvas, (0, 0), random.uniform(0.4, 1.0)).astype(np.float32)
    x = x * random.uniform(0.7, 1.1) + random.normal(0, random.uniform(2, 7), x.shape)
    plain = np.clip(x, 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", cv2.cvtColor(plain, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return np.asarray(cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
