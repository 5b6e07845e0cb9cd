"""Commands from afar: the messages that a host and a gateway exchange, without input or output. docs/commands.md explains.

A request comes at `octo/v1/<gateway>/cmd/<id>`, its answer goes to `octo/v1/<gateway>/ans/<id>`, and what the gateway
runs is retained at `octo/v1/<gateway>/reported`. All three are JSON; bytes in it are base64.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from gateway.contract import TOPIC_ROOT
from gateway.errors import ControlError, OctogateError

MAX_REQUEST = 128 << 10  # bytes of one request: a block of 64 KiB in base64, and room
BLOCK = 64 << 10
MAX_RELATIVE_S = 86_400
ABSOLUTE_FROM = 1e9  # a deadline below is seconds from receipt, above it is UTC in ms since 1970
MAX_AHEAD_MS = 86_400_000  # of an absolute deadline: bounds how long an id must be remembered
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One JSON object; a key that is not declared is refused."""


class Request(Part, frozen=True, omit_defaults=True):
    """What a host asks.

    Attributes:
        op: one of the operations of docs/commands.md.
        deadline: seconds from receipt, or (from 1e9 on) UTC in milliseconds since 1970.
        id: the same as in the topic; may be left out.
        args: a JSON object, kept as the bytes that were sent: those are what is signed.
        signature: Ed25519 over `signed_text`, base64; empty where the gateway asks for none.
    """

    op: Annotated[str, Meta(pattern=r"^[a-z]{1,24}(\.[a-z]{1,24})?\Z")]
    deadline: Annotated[float, Meta(gt=0, le=1e14)]
    id: str = ""
    args: msgspec.Raw = msgspec.Raw(b"{}")
    signature: Annotated[str, Meta(max_length=100)] = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of it: `result` when `ok`, else `error` and the next thing to do in `hint`.

    `busy`: nothing became of it, for there was too much else; the same may be sent again a little later.
    """

    id: str
    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    hint: str = ""
    busy: bool = False


class Reported(msgspec.Struct, frozen=True, omit_defaults=True):
    """The retained word of a gateway about its config.

    Attributes:
        digest: sha256 of the text of the config that runs.
        state: `good`, `pending` (accepted, not yet started), `trial`, or `reverted` (it runs the one before).
        desired: sha256 of the config that was last set, empty when none ever was.
        id: of the command that set it.
        reason: why it was reverted.
    """

    gateway: str
    version: str
    digest: str
    state: str
    desired: str = ""
    id: str = ""
    reason: str = ""


# --- what the operations take and give ------------------------------------------------------------------------------


class NoArgs(Part, frozen=True):
    pass


class SnapshotArgs(Part, frozen=True):
    source: Annotated[str, Meta(max_length=48)]


class ConfigSetArgs(Part, frozen=True):
    """`base`: the digest of the config that the change was made from; refused when another one runs by now."""

    text: Annotated[str, Meta(max_length=MAX_REQUEST)]
    health_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    base: str = ""


class BundlePutArgs(Part, frozen=True):
    """One block of a file of `size` bytes whose sha256 is known. Without data it asks how much is there."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=1 << 30)]
    offset: Count = 0
    data: Annotated[bytes, Meta(max_length=BLOCK)] = b""


Name = Annotated[str, Meta(max_length=48)]


class ModelSwapArgs(Part, frozen=True):
    """`bundle`: a file on the gateway, for example what `bundle.put` called `path`. The rest: docs/models-on-the-gateway.md."""

    model: Name
    bundle: Annotated[str, Meta(min_length=1, max_length=4096)]
    shadow_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0
    every: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    trial_s: Annotated[float, Meta(ge=0, le=604_800)] = 600.0
    slower: Annotated[float, Meta(ge=1, le=1e6)] = 10.0


class ModelRollbackArgs(Part, frozen=True):
    model: Name


class BundleDropArgs(Part, frozen=True):
    sha256: Sha256


class UpdateInstallArgs(Part, frozen=True):
    sha256: Sha256


class SourceWriteArgs(Part, frozen=True):
    source: Annotated[str, Meta(max_length=48)]
    metric: Annotated[str, Meta(max_length=128)]
    value: bool | int | float | str


class BlocksGetArgs(Part, frozen=True):
    blob: Sha256
    offset: Count = 0
    size: Annotated[int, Meta(ge=1, le=BLOCK)] = BLOCK


class Blob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something too large for an answer: fetched with `blocks.get`, while it is one of the newest."""

    blob: str  # sha256
    size: int
    media: str
    name: str = ""
    seq: int = -1  # of a picture


class Block(msgspec.Struct, frozen=True):
    offset: int
    size: int  # of the whole
    data: bytes


class Have(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of a bundle is on disk; `path`, once it is whole, is what `model.bundle` may name."""

    have: int
    path: str = ""


class UpdateState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of an update since the machine started: `none`, `installing`, `installed`, `nothing`, `refused`."""

    state: str
    message: str = ""


class ShadowCount(msgspec.Struct, frozen=True):
    """What a shadow run has seen: inputs compared, those that differ, and of these with another label, text or count."""

    compared: int = 0
    disagreed: int = 0
    otherwise: int = 0


class ModelSwap(msgspec.Struct, frozen=True):
    """Which bundle a model runs, and how far a swap is.

    Attributes:
        bundle: what serves: the first 12 digits of its digest, as inferences have it; empty while nothing does.
        source: `config` or `swap`: where what is active comes from.
        previous: digest of what `model.rollback` would go back to; `config` for the config's, empty for nothing.
        candidate: digest of what is under way.
        step: `received`, `verified`, `tested`, `shadow`, `trial`, or `settled` when nothing is under way.
        number: of the last swap.
        outcome: of the last that ended: `settled`, `given up`, `rolled back`; `reason` is why.
    """

    model: str
    bundle: str
    source: str
    previous: str
    candidate: str
    step: str
    number: int
    outcome: str
    reason: str
    shadow: ShadowCount


class ConfigText(msgspec.Struct, frozen=True):
    digest: str
    text: str
    reported: Reported


class Change(msgspec.Struct, frozen=True):
    """One difference between two configs.

    Attributes:
        what: `added`, `removed` or `changed`.
        table: `source`, `model`, `pipeline`, `rule`, `uplink` and so on, as in the file.
        name: of the table, empty when there is only one.
        detail: the keys and their values, for a person.
    """

    what: str
    table: str
    name: str
    detail: str


class Accepted(msgspec.Struct, frozen=True):
    """`state` is `pending` (it restarts on trial now) or `good` (this very config runs already)."""

    state: str
    digest: str
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


# --- reading and writing --------------------------------------------------------------------------------------------

T = TypeVar("T")
encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def topic_commands(gateway: str, root: str = TOPIC_ROOT) -> str:
    """Below it come the commands of one gateway."""
    return f"{root}/{gateway}/cmd"


def topic_answers(gateway: str, root: str = TOPIC_ROOT) -> str:
    return f"{root}/{gateway}/ans"


def topic_reported(gateway: str, root: str = TOPIC_ROOT) -> str:
    return f"{root}/{gateway}/reported"


def valid_id(text: str) -> bool:
    """Whether this may name a command: 1 to 64 letters, digits, `-` and `_`."""
    return bool(_ID.fullmatch(text))


def parse(id: str, payload: bytes) -> Request:
    """A request that came under `id` (of its topic).

    Raises:
        ControlError: too long, not JSON of the right shape, or it names another id.
    """
    if len(payload) > MAX_REQUEST:
        raise ControlError(f"{len(payload)} bytes are no request", hint=f"at most {MAX_REQUEST}")
    try:
        request = _decode_request(payload)
    except _BAD as error:
        raise ControlError(f"not a request: {error}", hint='send {"op": "status", "deadline": 30}') from error
    if request.id not in ("", id):
        raise ControlError("the id in the message is not that of its topic", hint="leave it out")
    if not bytes(request.args).lstrip().startswith(b"{"):
        raise ControlError("args: not an object", hint='{"name": value}')
    return msgspec.structs.replace(request, id=id)


def parse_args(request: Request, kind: type[T]) -> T:
    """The arguments as `kind`; ControlError when they are others."""
    try:
        return msgspec.json.decode(request.args, type=kind)
    except _BAD as error:
        raise ControlError(f"{request.op}: {error}", hint="see docs/commands.md") from error


def parse_answer(payload: bytes) -> Answer:
    """The inverse of `encode` for an answer; ControlError for anything else."""
    try:
        return _decode_answer(payload)
    except _BAD as error:
        raise ControlError(f"not an answer: {error}") from error


def result(answer: Answer, kind: type[T]) -> T:
    """What the gateway says, as `kind`; ControlError when it refused, or says something else."""
    if not answer.ok:
        raise ControlError(answer.error, hint=answer.hint)
    try:
        return msgspec.json.decode(answer.result, type=kind)
    except _BAD as error:
        raise ControlError(f"an answer of another kind: {error}", hint="is the gateway of another version?") from error


def answered(id: str, value: Any) -> Answer:
    return Answer(id, True, msgspec.Raw(encode(value)))


def refused(id: str, error: OctogateError, *, busy: bool = False) -> Answer:
    return Answer(id, False, error=error.what, hint=error.hint, busy=busy)


def signed_text(gateway: str, request: Request) -> bytes:
    """What a signature is over. The gateway's name keeps a command for one from being played to another."""
    head = f"octogate-command-v1\n{gateway}\n{request.id}\n{request.op}\n{request.deadline:.0f}\n"
    return head.encode() + bytes(request.args)
