"""A gateway's ordinary life: it comes up, reads, computes, shows, sends, and bears an unplugged cable."""

from __future__ import annotations

import re
import time

import msgspec

from firmware_tools.image_checks.bench import NODE, STREAM, WAIT_S, WORD, Bench, expect
from gateway.contract import SourceState

BUNDLES = "/usr/share/octogate /opt/octogate /data/bundles"
RUNTIMES = ("onnx", "litert", "openvino")
PAGE = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/{}', timeout=120).read().decode())"
UNPLUGGED_S = 60.0
IDLE_MIB = 220
ACTIVE_CPU_S = 3.0


async def boots(bench: Bench) -> str:
    """Boots to a healthy gateway, its slot marked good"""
    await bench.healthy()
    took = await bench.run("systemctl is-system-running --wait; systemd-analyze time || true")
    if found := re.search(r"= (.+)", took):
        bench.figures["boot, by systemd-analyze"] = found[1].strip()
    if found := re.search(r"([\w. ]+) \(userspace\)", took):
        bench.figures["of it userspace"] = found[1].strip().removeprefix("+ ")
    used = int(await bench.run("systemctl show --value --property CPUUsageNSec octogate"))
    bench.figures["the gateway's processor time by now"] = f"{used / 1e9:.1f} s"
    free = (await bench.run("free -m")).splitlines()[1].split()
    bench.figures["memory of the whole guest, idle"] = f"{free[2]} MiB used, {free[6]} of {free[1]} MiB available"
    failed = (await bench.run("systemctl --failed --plain --no-legend")).strip()
    expect(not failed, f"failed units: {failed}")
    return f"slot {await bench.slot()}"


async def reads(bench: Bench) -> str:
    """Acquires from a MicroPython node on USB serial; what it acknowledges is on disk"""
    await bench.configure()
    async with bench.plugged():
        await bench.acknowledged(100)
        await bench.until(lambda s: any(x.state == SourceState.OK for x in s.sources), "the node is a source in order")
        told = bench.told.readings
        taken = (await bench.whole_ledger())[STREAM]
    expect(taken >= told, f"{told} readings were acknowledged, {taken} are on disk")
    return f"{told} readings acknowledged, {taken} on disk"


async def starts_reading(bench: Bench) -> str:
    """From power-on to the first reading that is acknowledged as durable"""
    await bench.run("sync")
    before, started = bench.told.readings, time.monotonic()
    await bench.target.power_cycle()
    async with bench.plugged():
        await bench.acknowledged(1, 1.5 * WAIT_S)
        took = time.monotonic() - started
        expect(bench.told.readings > before, "nothing new was acknowledged")
        await bench.target.until_up()
        await bench.healthy()
    used = int(await bench.run("systemctl show --value --property CPUUsageNSec octogate")) / 1e9
    bench.figures["power-on to the first durable reading"] = f"{took:.0f} s"
    bench.figures["the gateway's processor time with a node, until healthy"] = f"{used:.1f} s"
    return f"{took:.0f} s"


async def infers(bench: Bench) -> str:
    """Every model's golden samples come out right with each runtime of the image"""
    files = (await bench.run(f"find {BUNDLES} -xdev -name '*.octo' 2>/dev/null || true")).split()
    expect(bool(files), f"there is no bundle in {BUNDLES}")
    right: set[str] = set()
    for path in files:
        done = await bench.octogate("bundle", "verify", path, "--key", "/usr/share/octogate/octogate-models.pub.pem")
        expect(done.status == 0, f"{path}: {done.output.strip()}")
        lines = await bench.json("bench", path, "--explain", "--json")
        expect(lines is not None, f"octogate bench {path} says nothing")
        for line in (line for lines in lines.values() for line in lines):
            backend, why = line["candidate"]["backend"], line.get("fault") or line.get("rejected") or ""
            if line.get("report"):
                right.add(backend)
            else:
                expect("golden" not in why, f"{path} on {backend}: {why}")
    missing = [name for name in RUNTIMES if name not in right]
    expect(not missing, f"no model runs right on {', '.join(missing)}")
    return f"{len(files)} bundles on {', '.join(sorted(right))}"


async def shows(bench: Bench) -> str:
    """The local page and /api/status are served"""
    page = await bench.run(f'/opt/octogate/bin/python -c "{PAGE.format("")}"')
    expect("<html" in page.lower(), f"this is no page: {page[:200]}")
    status = msgspec.json.decode(await bench.run(f'/opt/octogate/bin/python -c "{PAGE.format("api/status")}"'))
    expect("gateway" in status, f"this is no status: {str(status)[:200]}")
    return f"{len(page)} bytes, status of {status['gateway']}"


async def syncs(bench: Bench) -> str:
    """Without a network it goes on; when the link comes up names are resolved, and all is delivered, once, in order"""
    await bench.target.link(up=False)
    try:
        async with bench.plugged():
            await bench.acknowledged(100)
    finally:
        await bench.target.link(up=True)
    taken = (await bench.whole_ledger())[STREAM]
    await bench.until(
        lambda s: any(x.delivered_seq >= taken for x in s.streams if x.name == STREAM), "all is confirmed"
    )
    # a name that the gateway's own resolver knows, whatever is beyond the router
    look = "for i in $(seq 60); do getent ahostsv4 _gateway && exit 0; sleep 1; done; exit 1"
    expect(bench.target.host in await bench.run(look), "the name of the router is not resolved")
    expect(bench.delivered() >= taken, f"{taken} taken, the consumer has {bench.delivered()}")
    expect(bench.ingest.table.next != {}, "the consumer knows no stream")
    expect((await bench.whole_ledger())[STREAM] >= taken, "the ledger forgot something")
    return f"{bench.delivered()} readings at the consumer"


async def flaps(bench: Bench) -> str:
    """The link goes down and up three times while it sends; the ledger stays whole"""
    async with bench.plugged():
        for _ in range(3):
            for up in (False, True):
                await bench.target.link(up=up)
                await bench.acknowledged(20)
        await bench.until(lambda s: s.uplink.state == WORD[True], "the uplink is up again")
    taken = (await bench.whole_ledger())[STREAM]
    await bench.until(
        lambda s: any(x.delivered_seq >= taken for x in s.streams if x.name == STREAM), "all is confirmed"
    )
    return f"{taken} readings, {bench.delivered()} delivered"


async def replugs(bench: Bench) -> str:
    """The node is unplugged and plugged in again; nothing is lost or doubled"""
    for _ in range(2):
        async with bench.plugged():
            await bench.acknowledged(40)
        await bench.until(
            lambda s: any(x.state != SourceState.OK for x in s.sources), "the source is away", UNPLUGGED_S + WAIT_S
        )
    async with bench.plugged():
        took = await bench.acknowledged(1)
        await bench.acknowledged(40)
    taken, told = (await bench.whole_ledger())[STREAM], bench.told.readings
    expect(taken >= told, f"{told} readings were acknowledged, {taken} are on disk")
    return f"{took:.1f} s from the plug to the first durable reading"


async def sees_a_clock_step(bench: Bench) -> str:
    """The clock is set while it runs (ECANCELED of its timer): one event, and the readings keep their order"""
    async with bench.plugged():
        await bench.acknowledged(20)
        await bench.run("systemctl stop systemd-timesyncd; date -s '+1 year'")
        await bench.acknowledged(20)
        await bench.run("date -s '-1 year'; systemctl start systemd-timesyncd")
        await bench.acknowledged(20)
    status = await bench.until(lambda s: any("clock" in e.name for e in s.events), "an event about the clock")
    await bench.whole_ledger()
    return ", ".join(sorted({event.name for event in status.events if "clock" in event.name}))


CAMERA = """[[source]]
kind = "camera"
name = "dock-cam"
device = "{device}"
width = 320
height = 180
fps = 1.0
format = "yuyv"
[[model]]
name = "detect"
bundle = "{bundle}"
deadline_ms = 60000
[[pipeline]]
name = "dock-objects"
source = "dock-cam"
model = "detect"
"""


async def sees(bench: Bench) -> str:
    """A camera (the kernel's vivid) is listed, takes a picture, and its frames are inferred and stored"""
    await bench.run("modprobe vivid n_devs=1 node_types=0x1 && udevadm settle")
    try:
        found = await bench.json("cameras", "--json")
        expect(bool(found), "octogate cameras lists none")
        device = (await bench.run("readlink -f /dev/v4l/by-path/* /dev/video0 2>/dev/null | head -1 || true")).strip()
        picture = "/run/octogate/try.jpg"
        done = await bench.octogate("cameras", "--device", device, "--picture", picture, "--size", "320x180")
        expect(done.status == 0, f"no picture: {done.output.strip()}")
        size = int(await bench.run(f"stat -c %s {picture}"))
        bundle = (await bench.run(f"find {BUNDLES} -xdev -name 'detect*.octo' 2>/dev/null | head -1")).strip()
        await bench.configure(CAMERA.format(device=device, bundle=bundle))
        status = await bench.until(lambda s: any(p.inferences >= 2 for p in s.pipelines), "two pictures are inferred")
        taken = await bench.whole_ledger()
        expect(taken.get("dock-objects", 0) > 0, f"no inference is in the spool: {taken}")
    finally:
        await bench.configure()
        await bench.target.run("sleep 1; modprobe -r vivid")
    frames = next(source.frames for source in status.sources if source.name == "dock-cam")
    return f"a picture of {size} bytes, {frames} frames, {status.pipelines[0].inferences} inferences"


__all__ = ["NODE"]
