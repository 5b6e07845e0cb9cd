"""Is a command signed by a key that may command? Asked of a short-lived child, so that the daemon needs no cryptography.

The child (`python -m gateway.sync.signed FD`) reads one JSON object from the descriptor and says it by its exit status.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.child import Child, python_env, python_module
from gateway.errors import ControlError

GOOD, BAD, UNREADABLE = 0, 3, 4
VERIFY_S = 20.0
MAX_KEY = 10_000
MAX_QUESTION = 1 << 20


class Question(msgspec.Struct, frozen=True):
    """Whether one of `keys` (PEM files with Ed25519 public keys) has signed `text`."""

    keys: tuple[str, ...]
    text: bytes
    signature: str


async def check(keys: Sequence[Path], text: bytes, signature: str) -> None:
    """Return when one of `keys` signed `text`.

    Raises:
        ControlError: none did, a key cannot be read, or the child cannot be run.
    """
    if not signature:
        raise ControlError("the command is not signed", hint="sign it with a key of uplink.command_keys")
    question = msgspec.json.encode(Question(tuple(map(str, keys)), text, signature))
    fd = os.memfd_create("octogate-command", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, question, 0)
        status = await _ask(fd)
    except OSError as error:
        raise ControlError(f"cannot verify the signature: {error.strerror}", hint="is memory exhausted?") from error
    finally:
        os.close(fd)
    if status == UNREADABLE:
        raise ControlError("a key of uplink.command_keys cannot be used", hint="Ed25519 public keys in PEM")
    if status != GOOD:
        raise ControlError(
            "the signature does not fit", hint="sign gateway, id, op, deadline and args as they are sent"
        )


async def _ask(fd: int) -> int:
    argv = python_module("gateway.sync.signed", str(fd))
    try:
        async with asyncio.timeout(VERIFY_S), Child(argv, env=python_env(), pass_fds=(fd,)) as child:
            return await child.wait()
    except TimeoutError as error:
        raise ControlError(f"the signature was not verified in {VERIFY_S:.0f} s", hint="try again") from error


def main(argv: Sequence[str]) -> int:
    """The child: an exit status as above."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    question = msgspec.json.decode(os.pread(int(argv[0]), MAX_QUESTION, 0), type=Question)
    try:
        signature = base64.b64decode(question.signature, validate=True)
    except ValueError:
        return BAD
    status = BAD
    for file in question.keys:
        try:
            with open(file, "rb") as pem:
                key = load_pem_public_key(pem.read(MAX_KEY))
            if not isinstance(key, Ed25519PublicKey):
                status = UNREADABLE
                continue
            key.verify(signature, question.text)
        except InvalidSignature:
            continue
        except (OSError, ValueError, UnsupportedAlgorithm):
            status = UNREADABLE
        else:
            return GOOD
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
