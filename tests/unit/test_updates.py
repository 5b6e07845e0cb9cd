"""Updates that come in blocks: by the host's client into the gateway's folder, and handed over whole or not at all."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import msgspec
import pytest

from gateway import command
from gateway.command import Answer, BundlePutArgs, Reported, Request, UpdateInstallArgs, UpdateState
from gateway.errors import ControlError
from gateway.sync.updates import Updates
from sdk.client import Gateway


@pytest.fixture
def updates(tmp_path: Path) -> Updates:
    (tmp_path / "installer").touch()
    return Updates(tmp_path / "updates", tmp_path / "installer", tmp_path / "update.json")


class Direct:
    """A transport that asks `Updates` itself."""

    block, window = 1000, 1

    def __init__(self, updates: Updates, cut_after: int = 10**9) -> None:
        self._updates = updates
        self.left = cut_after

    async def exchange(self, request: Request, deadline_s: float) -> Answer:
        self.left -= 1
        if self.left < 0:
            raise ControlError("the line is cut")
        if request.op == "update.put":
            return command.answered(request.id, self._updates.put(command.parse_args(request, BundlePutArgs)))
        if request.op == "update.install":
            args = command.parse_args(request, UpdateInstallArgs)
            return command.answered(request.id, self._updates.install(args.sha256))
        return command.answered(request.id, self._updates.state())

    async def reported(self, wanted: object) -> Reported:
        raise NotImplementedError


def test_an_update_goes_on_where_it_was_cut(tmp_path: Path, updates: Updates) -> None:
    bundle = tmp_path / "update.raucb"
    bundle.write_bytes(os.urandom(10_500))
    shown: list[int] = []

    async def scenario() -> None:
        with pytest.raises(ControlError, match="cut"):
            await Gateway("line-1", Direct(updates, cut_after=5)).update(bundle)
        gateway = Gateway("line-1", Direct(updates))
        assert await gateway.update(bundle, lambda have, _: shown.append(have)) == UpdateState("installing")
        assert await gateway.update_state() == UpdateState("installing")

    asyncio.run(scenario())
    assert shown[0] == 5000, "four blocks were there"
    assert (tmp_path / "updates/install.raucb").read_bytes() == bundle.read_bytes()


def test_one_at_a_time(tmp_path: Path, updates: Updates) -> None:
    for data in (b"one", b"two"):
        updates.put(BundlePutArgs(hashlib.sha256(data).hexdigest(), 3, 0, data))
    updates.install(hashlib.sha256(b"one").hexdigest())
    with pytest.raises(ControlError, match="being installed already"):
        updates.install(hashlib.sha256(b"two").hexdigest())
    with pytest.raises(ControlError, match="no update"):
        (tmp_path / "updates/install.raucb").unlink()
        updates.install(hashlib.sha256(b"three").hexdigest())


def test_what_became_of_it_is_read(tmp_path: Path, updates: Updates) -> None:
    assert updates.state() == UpdateState("none")
    outcome = tmp_path / "update.json"
    outcome.write_text(json.dumps({"state": "refused", "message": "rauc: signature"}))
    assert updates.state() == UpdateState("refused", "rauc: signature")
    for text in ("[]", "{", '{"state": 5}', "\x00" * 9000):
        outcome.write_text(text)
        assert updates.state() == UpdateState("none")


def test_where_nobody_installs_nothing_is_taken(tmp_path: Path) -> None:
    updates = Updates(tmp_path / "updates", tmp_path / "none")
    with pytest.raises(ControlError, match="does not run Octogate's image"):
        updates.put(BundlePutArgs("0" * 64, 3, 0, b"abc"))
    assert not (tmp_path / "updates").exists()


def test_a_damaged_update_is_not_handed_over(tmp_path: Path, updates: Updates) -> None:
    sha256 = hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(ControlError, match="send it again"):
        updates.put(BundlePutArgs(sha256, 3, 0, b"abd"))
    with pytest.raises(ControlError, match="no update"):
        updates.install(sha256)
    assert msgspec.json.encode(updates.state()) == b'{"state":"none"}'
