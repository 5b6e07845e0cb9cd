"""Power that goes away, clocks that are wrong, processors that hang."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from firmware_tools.image_checks.bench import STREAM, Bench, expect

LONGEST_MS = 20_000  # from an acknowledged reading to the cut
EARLY = 0.25  # share of cuts that come while it boots
BOOT_MS = 60_000


async def survives_cuts(bench: Bench) -> str:
    """The plug is pulled at random moments, un-flushed writes are lost: it boots, and what was acknowledged is there"""
    lost = early = 0
    for number in range(1, bench.cuts + 1):
        during_boot = bench.chance.random() < EARLY
        async with bench.plugged():
            if during_boot:
                early += 1
            else:
                await bench.acknowledged(20)
            # not to wait for something: the moment is to be a random one
            await asyncio.sleep(bench.chance.randrange(BOOT_MS if during_boot else LONGEST_MS) / 1000)
            promised = bench.told.readings
            lost += await bench.target.cut()
        if bench.chance.random() < EARLY and number < bench.cuts:
            continue  # the next cut meets a machine that boots after a cut
        await bench.target.until_up()
        await bench.healthy()
        taken = (await bench.whole_ledger())[STREAM]
        expect(taken >= promised, f"cut {number}: {promised} readings were acknowledged, {taken} are on disk")
    bench.figures["power cuts survived"] = f"{bench.cuts} of {bench.cuts}, {lost} un-flushed sectors lost in them"
    return f"{bench.cuts} cuts ({early} while booting), {lost} sectors lost"


async def bears_an_early_clock(bench: Bench) -> str:
    """Boots with its clock in 1999 and no network, reads, and dates the readings when the clock becomes right"""
    return await _with_clock(bench, datetime(1999, 12, 31, 23, 59, tzinfo=UTC))


async def bears_a_late_clock(bench: Bench) -> str:
    """The same with its clock in 2037"""
    return await _with_clock(bench, datetime(2037, 6, 1, tzinfo=UTC))


async def _with_clock(bench: Bench, clock: datetime) -> str:
    await bench.run("sync")
    await bench.target.power_cycle(clock)
    await bench.target.link(up=False)
    try:
        await bench.target.until_up()
        await bench.healthy()
        showed = (await bench.run("date -u +%Y")).strip()
        async with bench.plugged():
            await bench.acknowledged(40)
            await bench.run(f"systemctl stop systemd-timesyncd; date -s @{int(datetime.now(UTC).timestamp())}")
            await bench.acknowledged(40)
        taken = (await bench.whole_ledger())[STREAM]
    finally:
        await bench.target.link(up=True)
    await bench.until(lambda s: any("clock" in e.name for e in s.events), "an event about the clock")
    await bench.target.power_cycle(None)
    await bench.target.until_up()
    await bench.healthy()
    return f"it showed {showed}; {taken} readings on disk"


async def is_reset_by_its_watchdog(bench: Bench) -> str:
    """PID 1 hangs: the hardware watchdog resets the machine, and the ledger is whole"""
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = await bench.run(boot)
    await bench.run("ls /dev/watchdog0")
    await bench.run("sync; kill -SEGV 1")  # systemd catches it, says so, and freezes
    await bench.target.until_up()
    await bench.healthy()
    expect(await bench.run(boot) != before, "it was not restarted")
    return f"{(await bench.whole_ledger()).get(STREAM, 0)} readings on disk"
