"""The child that verifies a bundle: `python -m gateway.infer.verify '<Question as JSON>'`; its last line is the answer.

So that the daemon needs no cryptography, and a large file is not hashed in its process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from gateway.child import Child, die_with_parent, ended, python_env, python_module
from gateway.errors import ModelError
from gateway.infer.bundle import Bundle, Verified
from gateway.infer.shelf import sha256_of

PATIENCE_S = 120.0  # for a gigabyte from a slow card
NICE = 19


class Question(msgspec.Struct, frozen=True):
    """Whether the file at `path` has this sha256 and may be believed; see `Bundle.verify`."""

    path: str
    sha256: str
    keys: tuple[str, ...]
    allow_unsigned: bool
    parent: int


class _Refused(msgspec.Struct, frozen=True, tag=True):
    what: str
    hint: str


class _Good(msgspec.Struct, frozen=True, tag=True):
    verified: Verified


async def ask(question: Question) -> Verified:
    """Verify in a process of its own.

    Raises:
        ModelError: the bundle is not to be believed, or the process gave no answer.
    """
    command = python_module("gateway.infer.verify", msgspec.json.encode(question).decode())
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            Child(command, env=python_env(), nice=NICE, capture_stderr=True) as child,
        ):
            status = await child.wait()
            answer = msgspec.json.decode(child.tail().splitlines()[-1], type=_Good | _Refused)
    except TimeoutError as error:
        raise ModelError(f"{question.path}: not verified within {PATIENCE_S:g} s") from error
    except OSError as error:
        raise ModelError(f"{question.path}: could not be verified: {error.strerror}") from error
    except (msgspec.DecodeError, IndexError) as error:
        raise ModelError(f"{question.path}: could not be verified: {ended(status)}") from error
    if isinstance(answer, _Refused):
        raise ModelError(answer.what, hint=answer.hint)
    return answer.verified


def main(argument: str) -> int:
    question = msgspec.json.decode(argument, type=Question)
    die_with_parent(question.parent)
    answer: _Good | _Refused
    try:
        answer = _Good(_verified(question))
    except (ModelError, OSError) as error:
        answer = _Refused(str(getattr(error, "what", error))[:2000], str(getattr(error, "hint", ""))[:500])
    os.write(2, msgspec.json.encode(answer) + b"\n")
    return 0


def _verified(question: Question) -> Verified:
    path = Path(question.path)
    if sha256_of(path) != question.sha256:
        raise ModelError(f"{path}: damaged since it was received", hint="send it again")
    with Bundle(path) as bundle:
        return bundle.verify(map(Path, question.keys), allow_unsigned=question.allow_unsigned)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
