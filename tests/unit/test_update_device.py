"""The image's own updater: what it installs, what it leaves alone, and that it never starts a machine anew for ever.

RAUC, mount and systemctl are simulated by scripts that note how they were called; the real ones run in tests/image.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "firmware_tools/rootfs/all/usr/lib/octogate/update.py"
A, B = "a" * 64, "b" * 64


class Machine:
    """The updater on a machine whose slots have these checksums."""

    def __init__(self, folder: Path, module: ModuleType) -> None:
        self.folder, self.module = folder, module
        self.received = folder / "install.raucb"
        self.outcome = folder / "run/update.json"
        self.stick = folder / "stick"
        self.info: Any = {"version": "2", "images": [{"rootfs": {"checksum": B, "size": 5}}]}
        self.status: Any = {"slots": [{"rootfs.0": {"state": "booted"}}, {"rootfs.1": {"state": "inactive"}}]}
        self.fails = ""

    def run(self, *words: str) -> tuple[int, dict[str, str], list[str]]:
        """Exit status, outcome, and the programs that were started."""
        calls = self.folder / "calls"
        calls.write_text("")
        (self.folder / "info.json").write_text(json.dumps(self.info))
        (self.folder / "status.json").write_text(json.dumps(self.status))
        (self.folder / "fails").write_text(self.fails)
        code = self.module.main(list(words))
        told = json.loads(self.outcome.read_text()) if self.outcome.exists() else {}
        return code, told, calls.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    spec = importlib.util.spec_from_file_location("image_update", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bin").mkdir()
    say = f'echo "${{0##*/}} $1" >>{tmp_path}/calls\n[ "$(cat {tmp_path}/fails)" != "$1" ] || {{ echo "no: $1" >&2; exit 1; }}\n'
    answers = f'case "$1" in info|status) echo "a remark"; cat {tmp_path}/$1.json ;; esac\n'
    for name in ("rauc", "mount", "umount", "systemctl"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n" + say + (answers if name == "rauc" else ""))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for name, path in {
        "RECEIVED": "install.raucb", "MOUNT": "stick", "OUTCOME": "run/update.json", "LOCK": "lock"
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, tmp_path / path)
    return Machine(tmp_path, module)


def test_what_was_received_is_installed_and_started(machine: Machine) -> None:
    machine.received.write_bytes(b"bundle")
    code, told, calls = machine.run("received")
    assert (code, told["state"]) == (0, "installed")
    assert calls == ["rauc info", "rauc status", "rauc install", "systemctl --no-block"]
    assert not machine.received.exists()


@pytest.mark.parametrize("slot", [0, 1])
def test_what_a_slot_has_is_not_installed_again(machine: Machine, slot: int) -> None:
    """The stick is still in after the restart, or after the new one was rolled back."""
    slots = machine.status["slots"]
    slots[slot][f"rootfs.{slot}"]["slot_status"] = {"checksum": {"sha256": B, "size": 5}}
    (machine.stick / "octogate").mkdir(parents=True)
    (machine.stick / "octogate/update.raucb").write_bytes(b"bundle")
    code, told, calls = machine.run("usb", "/dev/sda1")
    assert (code, told["state"]) == (0, "nothing")
    assert "rauc install" not in calls
    assert [line for line in calls if line.startswith(("mount", "umount"))] == ["mount -o", "umount --lazy"]


def test_a_stick_without_an_update_is_left_alone(machine: Machine) -> None:
    code, told, calls = machine.run("usb", "/dev/sda1")
    assert (code, told["state"], calls) == (0, "nothing", ["mount -o", "umount --lazy"])


@pytest.mark.parametrize("what", ["info", "status", "install"])
def test_what_rauc_refuses_is_told_and_not_tried_again(machine: Machine, what: str) -> None:
    machine.received.write_bytes(b"bundle")
    machine.fails = what
    code, told, calls = machine.run("received")
    assert (code, told["state"]) == (1, "refused")
    assert f"no: {what}" in told["message"]
    assert "systemctl --no-block" not in calls
    assert not machine.received.exists(), "its path unit would start it again and again"


@pytest.mark.parametrize("info", [{}, {"images": []}, {"images": [{"rootfs": {"checksum": "abc"}}]}, {"version": 5}])
def test_a_bundle_that_names_no_image_is_refused(machine: Machine, info: Any) -> None:
    machine.received.write_bytes(b"bundle")
    machine.info = info
    assert machine.run("received")[1]["state"] == "refused"


def test_a_link_is_not_followed(machine: Machine) -> None:
    machine.received.symlink_to("/etc/hostname")
    code, told, calls = machine.run("received")
    assert (code, told["state"], calls) == (1, "refused", [])


@pytest.mark.parametrize("words", [[], ["usb"], ["usb", "sda1"], ["other"]])
def test_other_words_do_nothing(machine: Machine, words: list[str]) -> None:
    assert machine.run(*words) == (2, {}, [])


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=70),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["checksum", "sha256", "x"]), inner)
        ),
        max_leaves=20,
    )
)
def test_any_json_has_checksums_or_none(found: Any) -> None:
    spec = importlib.util.spec_from_file_location("image_update", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(len(text) == 64 for text in module.checksums(found))
    assert module.checksums([{"images": found}, {"checksum": A}]) >= {A}
