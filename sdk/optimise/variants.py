"""One variant of a model on its way into a bundle: its files in memory, and what the manifest says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ModelError
from gateway.infer.backend import Source
from gateway.infer.manifest import Precision, Variant
from gateway.infer.steps import Array

# One call of a model: one array for each of its inputs. A model with one input may be given the bare array.
Inputs = Array | Sequence[Array]

_MAGIC_TFLITE = b"TFL3"  # file identifier of a FlatBuffer, at its fifth byte


@dataclass(frozen=True)
class Built:
    """A variant with its files.

    Attributes:
        variant: as the manifest will have it.
        members: file name -> bytes; two for an OpenVINO IR.
    """

    variant: Variant
    members: Mapping[str, bytes]

    @classmethod
    def onnx(
        cls,
        data: bytes,
        precision: Precision,
        *,
        file: str = "",
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        batch: int = 1,
    ) -> Built:
        """An ONNX file; by default `model.onnx`, or `model-<precision>.onnx`."""
        name = file or _name(precision, "onnx")
        variant = Variant(
            file=name, format="onnx", precision=precision, inputs=tuple(inputs), outputs=tuple(outputs), batch=batch
        )
        return cls(variant, {name: data})

    @classmethod
    def tflite(
        cls,
        data: bytes,
        precision: Precision,
        *,
        file: str = "",
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> Built:
        """A TFLite file; by default `model.tflite`, or `model-<precision>.tflite`."""
        name = file or _name(precision, "tflite")
        variant = Variant(file=name, format="tflite", precision=precision, inputs=tuple(inputs), outputs=tuple(outputs))
        return cls(variant, {name: data})

    @classmethod
    def openvino(
        cls, xml: bytes, weights: bytes, precision: Precision, *, file: str = "", outputs: Sequence[str] = ()
    ) -> Built:
        """An OpenVINO IR; by default `model.xml` and `model.bin`, or `model-<precision>.xml` and its `.bin`."""
        name = file or _name(precision, "xml")
        beside = name.removesuffix(".xml") + ".bin"
        variant = Variant(file=name, format="openvino", precision=precision, weights=beside, outputs=tuple(outputs))
        return cls(variant, {name: xml, beside: weights})

    @property
    def data(self) -> bytes:
        """The model's file; of an IR the XML."""
        return self.members[self.variant.file]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(map(len, self.members.values()))

    @property
    def digest(self) -> str:
        """sha256 of all its files, hex."""
        total = hashlib.sha256()
        for name in sorted(self.members):
            total.update(f"{name} {len(self.members[name])}\n".encode())
            total.update(self.members[name])
        return total.hexdigest()

    def source(self) -> Source:
        """For `gateway.infer.backend`."""
        return Source(self.variant, self.data, self.members[self.variant.weights] if self.variant.weights else b"")

    def __str__(self) -> str:
        return f"{self.variant.file} ({self.variant.precision})"


def _name(precision: Precision, suffix: str) -> str:
    return f"model.{suffix}" if precision == "fp32" else f"model-{precision}.{suffix}"


def calls(inputs: Sequence[Inputs]) -> list[tuple[Array, ...]]:
    """Each call as a tuple of arrays.

    Raises:
        ModelError: there is none.
    """
    found = [tuple(each) if isinstance(each, list | tuple) else (each,) for each in inputs]
    if not found:
        raise ModelError("no inputs were given", hint="calibration and parity need some of the real data")
    return found


def read_onnx(path: Path) -> bytes:
    """An ONNX file as it comes; external data files are not followed.

    Raises:
        ModelError: unreadable, or no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    data = _read(path)
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX model: {error}", hint="export it again") from error
    return data


def read_tflite(path: Path) -> bytes:
    """A TFLite file as it comes.

    Raises:
        ModelError: unreadable, or no TFLite model.
    """
    data = _read(path)
    if data[4:8] != _MAGIC_TFLITE:
        raise ModelError(f"{path}: not a TFLite model: no {_MAGIC_TFLITE.decode()} in it", hint="export it again")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot read it: {error.strerror or error}", hint="name a model's file") from error
