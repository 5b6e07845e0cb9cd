"""The words for devices: what is taken, and that anything else is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import device
from gateway.infer.device import Part, Provider, Target

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True)
LIBRARIES = st.one_of(st.just(""), st.from_regex(r"/[A-Za-z0-9_][A-Za-z0-9_.+@~/-]{0,40}", fullmatch=True))


@given(name=NAMES, kind=st.sampled_from(["", "CPU", "GPU", "NPU"]), library=LIBRARIES)
def test_a_provider_comes_back(name: str, kind: str, library: str) -> None:
    made = Provider(name, kind, library)
    assert device.provider(str(made)) == made


@given(parts=st.lists(st.builds(Part, NAMES, LIBRARIES), min_size=1, max_size=4, unique_by=lambda part: part.name))
def test_devices_of_openvino_come_back(parts: list[Part]) -> None:
    word = ",".join(part.name + (f"={part.library}" if part.library else "") for part in parts)
    found = device.target(word if len(parts) == 1 else f"HETERO:{word}")
    assert found == Target(tuple(parts))
    assert found.name == ("HETERO:" if len(parts) > 1 else "") + ",".join(part.name for part in parts)


@given(word=st.one_of(st.text(max_size=450), st.text("AaN:=,/. -", max_size=20)))
def test_anything_else_is_refused_by_name(word: str) -> None:
    for parse in (device.provider, device.target, device.delegate):
        try:
            parse(word)
        except ModelError as error:
            assert error.what.startswith(f"'{word[:100]}' is not ")
        else:
            assert len(word) <= device.MAX_WORD and word.isascii() and " " not in word


@pytest.mark.parametrize("word", ["", "NPU,CPU", "HETERO:NPU", "HETERO:NPU,NPU", "HETERO:NPU,", "NPU=", "NPU=lib/x.so"])
def test_no_device_of_openvino(word: str) -> None:
    with pytest.raises(ModelError, match="not a device of OpenVINO"):
        device.target(word)


@pytest.mark.parametrize("word", ["", "CUDA Execution", "X:TPU", "X=../x.so", "X=a,b", "X" * 500])
def test_no_provider(word: str) -> None:
    with pytest.raises(ModelError, match="not an execution provider"):
        device.provider(word)


def test_delegates_are_file_names_or_absolute() -> None:
    assert device.delegate("libedgetpu.so.1") == "libedgetpu.so.1"
    assert device.delegate("/opt/coral/libedgetpu.so.1") == "/opt/coral/libedgetpu.so.1"
    for word in ("lib/edgetpu.so", "../edgetpu.so", "", "a b.so"):
        with pytest.raises(ModelError, match="not a delegate's library"):
            device.delegate(word)
