"""The words for devices: in the config's `[inference]`, in `Candidate.device`, in what the backends answer.

    provider of ONNX Runtime    NAME[:KIND][=LIBRARY]      CUDAExecutionProvider, OpenVINOExecutionProvider:NPU
    device of OpenVINO          PART or HETERO:PART,PART   NPU, GPU.0, HETERO:NPU,CPU; PART is NAME[=LIBRARY]
    delegate of LiteRT          LIBRARY                    libedgetpu.so.1

LIBRARY is a plug-in: an absolute path, or a file name that the dynamic loader finds. Light to import, like the config
that is checked with these.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.errors import ModelError

MAX_WORD = 400  # characters
_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
_LIBRARY = r"/?[A-Za-z0-9_][A-Za-z0-9_.+@~/-]{0,250}"
_PROVIDER = re.compile(rf"({_NAME})(?::(CPU|GPU|NPU))?(?:=({_LIBRARY}))?")
_PART = re.compile(rf"({_NAME})(?:=({_LIBRARY}))?")
_DELEGATE = re.compile(_LIBRARY)
HETERO = "HETERO:"


class Provider(NamedTuple):
    """An execution provider of ONNX Runtime; `kind` chooses among the devices of a plug-in, empty when it has one."""

    name: str
    kind: str = ""
    library: str = ""

    def __str__(self) -> str:
        return self.name + (f":{self.kind}" if self.kind else "") + (f"={self.library}" if self.library else "")


class Part(NamedTuple):
    """One device of OpenVINO, and the plug-in it comes from when OpenVINO does not bring it along."""

    name: str
    library: str = ""


class Target(NamedTuple):
    """Where OpenVINO shall compute: one device, or several among which HETERO splits the graph, the first preferred."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """OpenVINO's own word."""
        names = ",".join(part.name for part in self.parts)
        return names if len(self.parts) == 1 else HETERO + names


def provider(word: str) -> Provider:
    """Raises `ModelError`: not such a word."""
    found = _PROVIDER.fullmatch(word) if len(word) <= MAX_WORD else None
    if found is None or not _is_library(found[3]):
        raise _not(word, "an execution provider: NAME, NAME:NPU or NAME=/path/of/its/library.so")
    return Provider(found[1], found[2] or "", found[3] or "")


def target(word: str) -> Target:
    """Raises `ModelError`: not such a word, or a device twice."""
    split = word.startswith(HETERO)
    texts = word.removeprefix(HETERO).split(",") if len(word) <= MAX_WORD else []
    found = [_PART.fullmatch(text) for text in texts]
    parts = tuple(Part(one[1], one[2] or "") for one in found if one is not None and _is_library(one[2]))
    names = {part.name for part in parts}
    if not parts or not len(names) == len(parts) == len(texts) or split != (len(parts) > 1):
        raise _not(word, "a device of OpenVINO: NPU, GPU.0, HETERO:NPU,CPU or NAME=/path/of/its/plugin.so")
    return Target(parts)


def delegate(word: str) -> str:
    """Raises `ModelError`: neither an absolute path nor a file name."""
    if not _DELEGATE.fullmatch(word) or not _is_library(word):
        raise _not(word, "a delegate's library: an absolute path, or a file name such as libedgetpu.so.1")
    return word


def _is_library(text: str | None) -> bool:
    """A path relative to nobody knows what is none."""
    return not text or text.startswith("/") or "/" not in text


def _not(word: str, what: str) -> ModelError:
    return ModelError(f"'{word[:100]}' is not {what}", hint="docs/runtimes.md says how devices are named")
