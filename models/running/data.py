"""SIMULATED machines before real photographs: what `fine_tune` is measured by, since no registry has pictures of machines' states.

A `Camera` looks at one machine at one place for ever, as a camera on a bracket does: the background is a photograph (of
`models/detect/data.py`), the machine is drawn into it. Each of its pictures has another light, a small tremor, noise, JPEG, and
in a quarter of them something passes by: a piece of another photograph.

    running   green lamp lit, spindle turning (its jaws blurred)
    stopped   yellow lamp lit, or none; spindle standing at any angle

A `sign` of "lamp" or "spindle" leaves the other one out. Cameras of the split "choice" are what settings of `fine_tune` were
chosen by; those of "test" have other photographs, machines and seeds, and only evaluate.py looks through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from gateway.infer.steps import Array
from models.detect import data as photographs

LABELS = ("running", "stopped")
WIDTH, HEIGHT = 384, 288
Sign = Literal["both", "lamp", "spindle"]
Split = Literal["choice", "test"]
SIGNS: tuple[Sign, ...] = ("both", "lamp", "spindle")

# the photographs behind the machines, by split; people, cars and shelves are as welcome as sky
BEHIND: dict[Split, tuple[str, ...]] = {
    "choice": ("home", "stuff", "basketball1", "coffee"),
    "test": ("building", "leuvena", "fruits", "bus"),
}
SEEDS: dict[Split, int] = {"choice": 1000, "test": 2000}
# lamps from the top: colour when lit, RGB
LAMPS = ((235, 40, 30), (250, 190, 30), (40, 220, 90))
_YELLOW, _GREEN = 1, 2


@dataclass(frozen=True)
class Camera:
    """One camera before one machine.

    Attributes:
        behind: uint8 [HEIGHT, WIDTH, 3] RGB.
        passing: photographs of which pieces pass by.
        x, y, scale: where the machine stands, and how large it is drawn; 1 is 120 pixels wide.
        paint: of the machine, RGB.
        seed: of the pictures.
    """

    behind: Array
    passing: tuple[Array, ...]
    x: int
    y: int
    scale: float
    paint: tuple[int, int, int]
    sign: Sign
    seed: int

    def pictures(self, each: int, day: int) -> list[tuple[Array, str]]:
        """`each` pictures of every state, RGB; the same at every call, and others on another `day`."""
        random = np.random.default_rng([self.seed, day])
        return [(self.picture(label, random), label) for label in LABELS for _ in range(each)]

    def picture(self, label: str, random: np.random.Generator) -> Array:
        canvas = self.behind.copy()
        running = label == "running"
        _machine(canvas, self.x, self.y, self.scale, self.paint)
        if self.sign != "spindle":
            lit = _GREEN if running else int(random.choice((_YELLOW, -1)))
            _lamps(canvas, self.x + int(95 * self.scale), self.y - int(20 * self.scale), self.scale, lit)
        if self.sign != "lamp":
            at = self.x + int(40 * self.scale), self.y + int(70 * self.scale)
            _spindle(canvas, at, self.scale, running, random)
        if random.random() < 0.25:
            self._pass_by(canvas, random)
        return _photographed(canvas, random)

    def _pass_by(self, canvas: Array, random: np.random.Generator) -> None:
        """A piece of another photograph anywhere but before what tells the states apart."""
        other = self.passing[int(random.integers(len(self.passing)))]
        wide, high = int(random.uniform(0.1, 0.25) * WIDTH), int(random.uniform(0.3, 0.6) * HEIGHT)
        x, y = int(random.integers(WIDTH - wide)), int(random.integers(HEIGHT - high))
        tells = self.x + int((40 if self.sign == "spindle" else 95) * self.scale)
        if x - 35 < tells < x + wide + 35:
            return
        canvas[y : y + high, x : x + wide] = other[y : y + high, x : x + wide]


def cameras(split: Split, sign: Sign = "both") -> list[Camera]:
    """One before each photograph of the split; the same at every call."""
    wanted = [picture for picture in photographs.pictures() if picture.name in {*BEHIND["choice"], *BEHIND["test"]}]
    loaded = {name: _cut(encoded) for name, (encoded, _) in photographs.load(wanted).items()}
    others = tuple(loaded[name] for name in BEHIND[split])
    made = []
    for number, name in enumerate(BEHIND[split]):
        random = np.random.default_rng(SEEDS[split] + number)
        scale = float(random.uniform(0.75, 1.25))
        x = int(random.uniform(10, WIDTH - 130 * scale))
        y = int(random.uniform(75 * scale, HEIGHT - 135 * scale))
        paint = tuple(int(v) for v in random.uniform(70, 190) + random.uniform(-25, 25, 3))
        passing = tuple(other for other in others if other is not loaded[name])
        made.append(
            Camera(loaded[name], passing, x, y, scale, (paint[0], paint[1], paint[2]), sign, SEEDS[split] + number)
        )
    return made


def _cut(encoded: bytes) -> Array:
    """The middle of a photograph in the aspect ratio of the camera, RGB."""
    read = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert read is not None  # fetched and pinned
    scale = max(WIDTH / read.shape[1], HEIGHT / read.shape[0])
    large = cv2.resize(read, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    y, x = max(0, large.shape[0] - HEIGHT) // 2, max(0, large.shape[1] - WIDTH) // 2
    cut = cv2.resize(large[y : y + HEIGHT, x : x + WIDTH], (WIDTH, HEIGHT))
    return np.asarray(cv2.cvtColor(cut, cv2.COLOR_BGR2RGB))


# --- what is drawn ------------------------------------------------------------------------------------------------


def _machine(canvas: Array, x: int, y: int, scale: float, paint: tuple[int, int, int]) -> None:
    dark = tuple(c // 3 for c in paint)
    wide, high = int(120 * scale), int(130 * scale)
    cv2.rectangle(canvas, (x, y), (x + wide, y + high), paint, -1)
    cv2.rectangle(canvas, (x, y), (x + wide, y + high), dark, 2)
    window = (x + int(8 * scale), y + int(25 * scale)), (x + int(72 * scale), y + int(115 * scale))
    cv2.rectangle(canvas, *window, dark, -1)
    for button in range(3):
        cv2.circle(canvas, (x + int(90 * scale), y + int((70 + 16 * button) * scale)), int(4 * scale), dark, -1)


def _lamps(canvas: Array, x: int, y: int, scale: float, lit: int) -> None:
    """A stack light on the machine's top: red, yellow, green; `lit` is one of them, or -1."""
    wide, high = int(14 * scale), int(15 * scale)
    top = y - 2 * high
    for number, colour in enumerate(LAMPS):
        at = (x - wide // 2, top + number * high), (x + wide // 2, top + (number + 1) * high - 2)
        cv2.rectangle(canvas, *at, tuple(int(0.25 * c + 30) for c in colour), -1)
        if number == lit:
            glow = np.zeros_like(canvas)
            cv2.circle(glow, (x, top + number * high + high // 2), int(1.8 * wide), colour, -1)
            glow = np.asarray(cv2.GaussianBlur(glow, (0, 0), max(1.0, wide)))
            np.copyto(canvas, cv2.add(canvas, (glow * 0.3).astype(np.uint8)))
            cv2.rectangle(canvas, *at, colour, -1)
    cv2.rectangle(canvas, (x - 2, y + high), (x + 2, y + int(22 * scale)), (40, 40, 40), -1)


def _spindle(canvas: Array, at: tuple[int, int], scale: float, turning: bool, random: np.random.Generator) -> None:
    """A chuck with three jaws; while it turns, its jaws are a grey ring."""
    radius = int(26 * scale)
    cv2.circle(canvas, at, radius, (150, 150, 155), -1)
    start = random.uniform(0, 120)
    angles = np.arange(0, 360, 4) if turning else start + np.array([0, 120, 240])
    layer = canvas.copy()
    for angle in np.deg2rad(angles):
        end = int(at[0] + radius * np.cos(angle)), int(at[1] + radius * np.sin(angle))
        cv2.line(layer, at, end, (40, 40, 45), max(2, int(6 * scale)))
    np.copyto(canvas, cv2.addWeighted(layer, 0.35 if turning else 1.0, canvas, 0.65 if turning else 0.0, 0))
    cv2.circle(canvas, at, int(7 * scale), (200, 200, 205), -1)


def _photographed(canvas: Array, random: np.random.Generator) -> Array:
    """As a cheap camera takes it through the day: a tremor, another light from one side, warmer or colder, noise, JPEG."""
    move = np.array([[1, 0, random.normal(0, 1.5)], [0, 1, random.normal(0, 1.5)]], np.float32)
    x = cv2.warpAffine(canvas, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
    x = np.asarray(cv2.GaussianBlur(x, (0, 0), random.uniform(0.4, 1.0))).astype(np.float32)
    side = np.linspace(random.uniform(0.7, 1.0), 1.0, WIDTH)[:: int(random.choice((-1, 1)))]
    x *= random.uniform(0.55, 1.2) * side[None, :, None] * random.uniform(0.92, 1.08, 3)
    x += random.normal(0, random.uniform(2, 7), x.shape)
    plain = np.clip(x, 0, 255).astype(np.uint8)
    coded = cv2.imencode(".jpg", cv2.cvtColor(plain, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB))
