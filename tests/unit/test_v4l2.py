"""The structs of V4L2 against the kernel's own header, and drivers that say anything at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.acquire import v4l2
from gateway.acquire.capture import Capture
from gateway.acquire.v4l2 import Device, Linux
from gateway.clock import Clock
from gateway.errors import SourceError
from gateway.source_tables import CameraSource as CameraConfig
from tests.unit.simulated_camera import SimulatedCamera

# linux/videodev2.h of Linux 6.1, compiled on x86_64 and for armhf; aarch64 is as x86_64
SIZES = {
    "v4l2_capability": (v4l2.CAPABILITY.size, 104),
    "v4l2_fmtdesc": (v4l2.FORMAT_DESCRIPTION.size, 64),
    "v4l2_frmsizeenum": (v4l2.FRAME_SIZE.size, 44),
    "v4l2_frmivalenum": (v4l2.FRAME_INTERVAL.size, 52),
    "v4l2_requestbuffers": (v4l2.REQUEST_BUFFERS.size, 20),
    "v4l2_streamparm": (v4l2.STREAM_PARAMETERS.size, 204),
    "v4l2_control": (v4l2.CONTROL.size, 8),
    "v4l2_queryctrl": (v4l2.QUERY_CONTROL.size, 68),
}
BY_LONG = {4: {"v4l2_format": 204, "v4l2_buffer": 68}, 8: {"v4l2_format": 208, "v4l2_buffer": 88}}
OFFSETS = {  # struct, member -> offset where a long has 4 and 8 bytes
    ("v4l2_format", "fmt"): (4, 8),
    ("v4l2_buffer", "timestamp"): (20, 24),
    ("v4l2_buffer", "sequence"): (44, 56),
    ("v4l2_buffer", "m"): (52, 64),
    ("v4l2_buffer", "length"): (56, 72),
}
REQUESTS = ["QUERYCAP", "ENUM_FMT", "S_FMT", "REQBUFS", "QUERYBUF", "QBUF", "DQBUF", "STREAMON", "STREAMOFF"]
REQUESTS += ["G_PARM", "S_PARM", "G_CTRL", "S_CTRL", "QUERYCTRL", "ENUM_FRAMESIZES", "ENUM_FRAMEINTERVALS"]


@pytest.mark.parametrize(("compiler", "long"), [("cc", v4l2.LONG), ("arm-linux-gnueabihf-gcc", 4)])
def test_sizes_are_the_kernels(compiler: str, long: int, tmp_path: Path) -> None:
    for name, (ours, documented) in SIZES.items():
        assert ours == documented, name
    assert [packed.size for packed in v4l2.layout(long)] == list(BY_LONG[long].values())
    if shutil.which(compiler) is None or not Path("/usr/include/linux/videodev2.h").exists():
        return  # the documented numbers above were compiled once; here is nothing to compile with
    facts = [(f"sizeof(struct {name})", size) for name, (size, _) in SIZES.items()]
    facts += [(f"sizeof(struct {name})", size) for name, size in BY_LONG[long].items()]
    facts += [(f"offsetof(struct {of}, {member})", at[long == 8]) for (of, member), at in OFFSETS.items()]
    if long == v4l2.LONG:
        facts += [(f"VIDIOC_{name}", getattr(v4l2, name)) for name in REQUESTS]
    source = "#include <stddef.h>\n#include <linux/videodev2.h>\n"
    source += "".join(f'_Static_assert({what} == {value}u, "{what}");\n' for what, value in facts)
    (tmp_path / "facts.c").write_text(source)
    subprocess.run([compiler, "-c", "facts.c"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("long", [4, 8])
def test_the_fields_lie_where_the_offsets_say(long: int) -> None:
    format_, buffer = v4l2.layout(long)
    packed = buffer.pack(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    for member, value in (("timestamp", 6), ("sequence", 8), ("m", 10), ("length", 11)):
        at = OFFSETS["v4l2_buffer", member][long == 8]
        assert int.from_bytes(packed[at : at + 4], "little") == value
    at = OFFSETS["v4l2_format", "fmt"][long == 8]
    assert format_.pack(1, 640, 480, 0, 0, 0, 0)[at : at + 2] == (640).to_bytes(2, "little")


def test_the_real_kernel_says_that_this_is_no_camera() -> None:
    device = Device("/dev/null", Linux())
    with pytest.raises(SourceError, match="/dev/null cannot say what it is: Inappropriate ioctl"):
        device.identity()
    device.close()
    with pytest.raises(SourceError, match=r"cannot open /dev/no-such-camera.*octogate cameras"):
        Device("/dev/no-such-camera", Linux())


class Liar(SimulatedCamera):
    """A driver that answers with noise, or refuses; a simulation too."""

    def __init__(self, seed: int, honest: float) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._honest = honest
        self.calls = 0

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        self.calls += 1
        luck = self._random.random()
        if luck < self._honest:
            super().ioctl(fd, request, argument)
        elif luck < self._honest + (1 - self._honest) / 4:
            number = self._random.choice([errno.EINVAL, errno.ENODEV, errno.ENOTTY, errno.EIO])
            raise OSError(number, os.strerror(number))
        else:
            argument[:] = self._random.randbytes(len(argument))

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        if length > self.picture_bytes:  # what a kernel does with an absurd length
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().map(fd, length, offset)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), honest=st.sampled_from([0.0, 0.5, 0.9, 0.97]))
def test_whatever_a_driver_says_ends_in_an_answer_or_a_source_error(seed: int, honest: float) -> None:
    async def story() -> None:
        liar = Liar(seed, honest)
        device = Device("/dev/liar", liar)
        for ask in (device.identity, device.formats, lambda: device.sizes(1), lambda: device.rates(1, 2, 3)):
            with contextlib.suppress(SourceError):
                ask()
        assert len(list(device.controls())) <= v4l2.MAX_CONTROLS
        device.close()
        table = CameraConfig(name="cam", device="/dev/liar", controls={"exposure": 100, "gain": 3}, memory_mib=1)
        try:
            capture = Capture(table, "/dev/liar", liar, Clock())
        except SourceError:
            pass
        else:
            for _ in range(5):
                liar.deliver()
                capture._read()
            assert capture.format.size <= 1 << 20
            capture.close()
        assert liar.calls < 2000
        assert liar.held == 0

    asyncio.run(story())
