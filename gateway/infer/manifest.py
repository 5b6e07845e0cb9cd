"""What a bundle says about its model: `manifest.json`, schema 1.

Light to import (msgspec only): the daemon's own process reads it. `docs/bundle.md` explains it to people.
Arrays: a window is float32 [channels, length]; a picture is uint8 [height, width, 3].
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.errors import ModelError

SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"

Precision = Literal["fp32", "fp16", "int8"]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")]
Member = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$")]
Text = Annotated[str, Meta(max_length=1000)]
Label = Annotated[str, Meta(min_length=1, max_length=100)]
Labels = Annotated[tuple[Label, ...], Meta(max_length=100_000)]
Floats = Annotated[tuple[float, ...], Meta(max_length=4096)]
Positive = Annotated[int, Meta(gt=0, le=1 << 31)]
Side = Annotated[int, Meta(gt=0, le=16384)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One JSON object of the manifest; a key that is not declared is an error. Defaults are written out too, so
    that a later default does not change what an old bundle means.
    """


class Variant(Part, frozen=True, kw_only=True):
    """One file that computes the model, for one runtime at one precision. The order is the author's preference."""

    file: Member
    format: Literal["onnx", "tflite", "openvino"]
    precision: Precision
    weights: Member | None = None  # the second file of an OpenVINO IR
    inputs: Annotated[tuple[str, ...], Meta(max_length=64)] = ()  # tensor names; empty takes the file's order
    outputs: Annotated[tuple[str, ...], Meta(max_length=64)] = ()  # the order the post steps expect
    batch: Annotated[int, Meta(ge=1, le=256)] = 1  # inputs at once, if the first axis is dynamic; see recipe.batch_of

    def __post_init__(self) -> None:
        if (self.format == "openvino") != (self.weights is not None):
            raise ValueError("weights go with format openvino: an IR is two files, the others are one")


class Window(Part, frozen=True, kw_only=True, tag_field="kind", tag="window"):
    """Consecutive readings of one stream: float32 [channels, length], channels chosen by name."""

    channels: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=256)]
    length: Annotated[int, Meta(ge=1, le=65536)]
    rate_hz: Annotated[float, Meta(gt=0)]


class Picture(Part, frozen=True, kw_only=True, tag_field="kind", tag="picture"):
    """One JPEG or PNG, brought to width x height by a `fit` step."""

    width: Side
    height: Side
    colour: Literal["rgb", "bgr"] = "rgb"
    max_pixels: Annotated[int, Meta(gt=0, le=1 << 28)] = 1 << 25  # larger pictures are refused unread


Input = Window | Picture


# --- pre steps: what is done to the input before the runtime sees it ----------------------------------------------

Taper = Literal["boxcar", "hann", "hamming", "blackman"]  # window functions: steps are `taper`, inputs are `window`


class Tiles(Part, frozen=True, kw_only=True, tag_field="step", tag="tiles"):
    """Before `fit`: a picture wider or higher than a tile is looked at tile by tile; detections are merged.

    Attributes:
        size: pixels of the picture that a tile is wide; its height has the aspect ratio of the model's input.
        overlap: of neighbours, as a share of a tile; objects up to this size are whole on at least one tile.
        max_tiles: of a picture that needs more, the tiles grow until so many do.
        whole: look at the whole picture too, for what is larger than a tile.
    """

    size: Side
    overlap: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.2
    max_tiles: Annotated[int, Meta(ge=1, le=64)] = 16
    whole: bool = True


class Fit(Part, frozen=True, kw_only=True, tag_field="step", tag="fit"):
    """Picture to the input's width x height: `stretch` ignores the aspect ratio, `letterbox` pads with `fill`.

    `again`, for detectors: what is looked at is looked at once more at each of these shares of the input, in its middle
    and padded with `fill`. A network knows things at some sizes; what it misses at one it may find at another.
    """

    mode: Literal["stretch", "letterbox"] = "stretch"
    align: Literal["centre", "start"] = "centre"  # of a letterboxed picture: `start` pads on the right and below only
    fill: Annotated[int, Meta(ge=0, le=255)] = 114
    interpolation: Literal["linear", "area"] = "linear"
    again: Annotated[tuple[Annotated[float, Meta(ge=0.1, lt=1.0)], ...], Meta(max_length=4)] = ()


class Normalise(Part, frozen=True, kw_only=True, tag_field="step", tag="normalise"):
    """(x * scale - mean) / std, for each colour or channel (one value stands for all)."""

    scale: float = 1.0
    mean: Floats = (0.0,)
    std: Floats = (1.0,)


class Standardise(Part, frozen=True, kw_only=True, tag_field="step", tag="standardise"):
    """Each channel of a window to mean 0 and standard deviation 1; `floor` bounds the divisor from below."""

    floor: Annotated[float, Meta(gt=0)] = 1e-6


FeatureName = Literal[
    "mean", "rms", "std", "min", "max", "peak_to_peak", "crest", "kurtosis",
    "centroid", "bandwidth", "rolloff", "spectral_kurtosis", "spectral_crest",
]  # fmt: skip


class Features(Part, frozen=True, kw_only=True, tag_field="step", tag="features"):
    """A window [channels, length] to [channels * (names + bands)]: for each channel each figure, in that order.

    docs/bundle.md has the formulas. `bands_hz` adds the mean square of what lies in [low, high) Hz.
    """

    names: Annotated[tuple[FeatureName, ...], Meta(min_length=1, max_length=64)]
    bands_hz: Annotated[tuple[tuple[float, float], ...], Meta(max_length=256)] = ()
    taper: Taper = "hann"  # for everything spectral
    rolloff: Share = 0.85  # the frequency below which this share of the magnitude lies


class Spectrum(Part, frozen=True, kw_only=True, tag_field="step", tag="spectrum"):
    """A window [channels, length] to its one-sided amplitude spectrum [channels, length // 2 + 1].

    `amplitude`: a sine of amplitude A on a bin gives A there; `db`: 20 log10 of it, at least `floor_db`.
    """

    taper: Taper = "hann"
    scale: Literal["amplitude", "db"] = "amplitude"
    floor_db: Annotated[float, Meta(ge=-300, le=0)] = -120.0


class Tensor(Part, frozen=True, kw_only=True, tag_field="step", tag="tensor"):
    """The last step: memory order, type, and a leading batch axis of 1.

    `nchw` and `nhwc` are for pictures; `ncl` (channels, length), `nlc` and `flat` for windows.
    """

    layout: Literal["nchw", "nhwc", "ncl", "nlc", "flat"]
    dtype: Literal["float32", "uint8"] = "float32"


PreStep = Tiles | Fit | Normalise | Standardise | Features | Spectrum | Tensor


# --- post steps: from the runtime's outputs to a Result -----------------------------------------------------------


class Softmax(Part, frozen=True, kw_only=True, tag_field="step", tag="softmax"):
    """The first output, logits, to probabilities."""


class TopK(Part, frozen=True, kw_only=True, tag_field="step", tag="top_k"):
    """The first output, one score a label, to the best `k` of at least `min_score`."""

    k: Annotated[int, Meta(ge=1, le=1000)] = 5
    min_score: Share = 0.0


class Values(Part, frozen=True, kw_only=True, tag_field="step", tag="values"):
    """The first output, one number for each of `names`, times `scale` plus `offset`."""

    names: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=1000)]
    scale: float = 1.0
    offset: float = 0.0


class Ssd(Part, frozen=True, kw_only=True, tag_field="step", tag="ssd"):
    """Raw boxes [anchors, 4] and scores [anchors, classes] to detections: anchors, box decode, NMS.

    The names and defaults are MediaPipe's (SsdAnchorsCalculator, TensorsToDetectionsCalculator).
    """

    strides: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=16)] = (16, 32, 64, 128, 256, 512)
    min_scale: Share = 0.2
    max_scale: Share = 0.95
    aspect_ratios: Floats = (1.0, 2.0, 0.5, 3.0, 0.3333)
    interpolated_scale_aspect_ratio: float = 1.0
    reduce_boxes_in_lowest_layer: bool = True
    anchor_offset: float = 0.5
    x_scale: Annotated[float, Meta(gt=0)] = 10.0
    y_scale: Annotated[float, Meta(gt=0)] = 10.0
    w_scale: Annotated[float, Meta(gt=0)] = 5.0
    h_scale: Annotated[float, Meta(gt=0)] = 5.0
    sigmoid: bool = True
    background: bool = True  # class 0 is "nothing"
    min_score: Share = 0.5
    iou: Share = 0.3  # of two boxes of one class that overlap by more, the weaker goes
    one_name: Share = 1.0  # of two boxes of different classes that overlap by more, the weaker goes; 1 keeps both
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100


class Gfl(Part, frozen=True, kw_only=True, tag_field="step", tag="gfl"):
    """Class scores and box distributions (Generalized Focal Loss; NanoDet) to detections.

    The outputs are one pair for all strides, one pair a stride, or one tensor of both, scores first.
    """

    strides: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=16)] = (8, 16, 32)
    reg_max: Annotated[int, Meta(ge=1, le=64)] = 7  # a side's distance is a distribution over 0 .. reg_max strides
    offset: Share = 0.5  # of a cell's centre, in strides; NanoDet-Plus has 0
    sigmoid: bool = False  # the scores are logits
    min_score: Share = 0.4
    iou: Share = 0.6
    one_name: Share = 1.0  # as in Ssd
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100


class Yolo(Part, frozen=True, kw_only=True, tag_field="step", tag="yolo"):
    """The first output, one row a place: x, y, w, h, [objectness,] score a class; pixels of the model's input.

    `columns` is its transpose, as YOLOv8 and later export it (without objectness); with `strides` the boxes are
    relative to a grid's cells as YOLOX leaves them: (x + cell) * stride, exp(w) * stride.
    """

    layout: Literal["rows", "columns"] = "columns"
    objectness: bool = False
    strides: Annotated[tuple[Positive, ...], Meta(max_length=16)] = ()
    min_score: Share = 0.4
    iou: Share = 0.5
    one_name: Share = 1.0  # as in Ssd
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100


class Ctc(Part, frozen=True, kw_only=True, tag_field="step", tag="ctc"):
    """The first output [steps, labels], probabilities, to text; label 0 is the blank (Graves et al. 2006).

    `beam` 1 takes the best label of each step; more searches over prefixes. With a `lexicon` only its words are read.
    """

    beam: Annotated[int, Meta(ge=1, le=100)] = 1
    lexicon: Labels = ()
    accept: Share = 0.9  # a form's field that is read with less confidence is for a person to look at


class Segment(Part, frozen=True, kw_only=True, tag_field="step", tag="segment"):
    """The first output, one plane a class, to masks and to the share of the picture that each covers.

    One plane is a foreground, inside where it is above `threshold`; of several each place belongs to the largest.
    """

    layout: Literal["nchw", "nhwc"]
    sigmoid: bool = False
    threshold: Share = 0.5
    background: bool = False  # class 0 of several is "nothing": not reported
    side: Annotated[int, Meta(ge=1, le=256)] = 64  # cells of a mask's longer side


class Anomaly(Part, frozen=True, kw_only=True, tag_field="step", tag="anomaly"):
    """How far a window is from what the model was trained on, in units of `threshold`, as the value `anomaly`.

    Alone it also gives the label `anomaly` or `normal`; after another answer it adds the value, and from 1 on `label`.

    Attributes:
        method: `reconstruction` compares an autoencoder's output with the model's input, `distance` measures an
            embedding's distance from `mean` after the linear map `whiten` (rows of a square matrix; one value for
            each dimension is a diagonal; without it the distance is Euclidean).
        output: which of the outputs.
        smooth: readings over which the squared reconstruction error is averaged before its largest value is taken;
            0 averages over the whole window.
        label: after another answer: what an anomaly is called instead of that answer's label; without it that stays.
    """

    method: Literal["reconstruction", "distance"]
    threshold: Annotated[float, Meta(gt=0)]
    output: Annotated[int, Meta(ge=0, lt=64)] = 0
    smooth: Annotated[int, Meta(ge=0, le=65536)] = 0
    label: Annotated[str, Meta(max_length=64)] = ""
    mean: Floats = ()
    whiten: Floats = ()


PostStep = Softmax | TopK | Values | Ssd | Gfl | Yolo | Ctc | Segment | Anomaly


# --- the whole ----------------------------------------------------------------------------------------------------


class Golden(Part, frozen=True, kw_only=True):
    """One input with the answer that is right: every worker must reproduce it before it may serve.

    Attributes:
        input: the member with the bytes as they come from a source.
        media: `image/jpeg`, `image/png` or `records;<Schema.spec()>`.
        expected: a member; `.json` is a `Result`, `.f32` the raw outputs (float32 little-endian, one after another).
        tolerance: by precision. For a Result the largest difference of any score, coordinate or value; for raw
            outputs the largest difference relative to the largest magnitude. A precision not named is not checked
            beyond being finite and of the right shape.
    """

    input: Member
    media: Text
    expected: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,190}\.(json|f32)$")]
    tolerance: dict[Precision, Annotated[float, Meta(ge=0)]]


class Limits(Part, frozen=True, kw_only=True):
    """What the author says a run needs at most on a gateway."""

    deadline_ms: Annotated[int, Meta(ge=1, le=600_000)] = 1000
    memory_mib: Annotated[int, Meta(ge=1, le=65536)] = 512


class Manifest(Part, frozen=True, kw_only=True):
    schema: Literal[1] = 1
    name: Name
    version: Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,39}$")]
    task: Literal["classify", "detect", "regress", "segment", "anomaly", "read"]
    licence: Text  # SPDX
    source: Text  # where weights and data come from, as their licences ask to be told
    input: Input
    pre: Annotated[tuple[PreStep, ...], Meta(min_length=1, max_length=32)]
    post: Annotated[tuple[PostStep, ...], Meta(min_length=1, max_length=32)]
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=32)]
    golden: Annotated[tuple[Golden, ...], Meta(min_length=1, max_length=32)]
    labels: Labels = ()
    units: dict[str, str] = {}  # UCUM unit of each channel and value that has one
    limits: Limits = Limits()
    card: Member = "card.md"
    notices: Annotated[tuple[Member, ...], Meta(max_length=32)] = ()  # licence texts that must travel along

    def members(self) -> list[str]:
        """Every member that this manifest speaks of, without itself and the signature."""
        names = [v.file for v in self.variants] + [v.weights for v in self.variants if v.weights]
        names += [self.card, *self.notices]
        for golden in self.golden:
            names += [golden.input, golden.expected]
        return list(dict.fromkeys(names))


_decoder = msgspec.json.Decoder(Manifest)


def decode(data: bytes, where: str) -> Manifest:
    """Parse `manifest.json`.

    Raises:
        ModelError: not JSON, another schema version, a key unknown, missing or out of range.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{where}: manifest.json: {error}", hint=f"pack it again for schema {SCHEMA}; see docs/bundle.md"
        ) from error


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON of a manifest: the same manifest gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def json_schema() -> bytes:
    """The JSON Schema of `manifest.json`: what `octogate bundle schema` prints and docs/manifest.schema.json is."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an Octogate model bundle, schema {SCHEMA}",
        **msgspec.json.schema(Manifest),
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n"
