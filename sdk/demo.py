"""The demo: a small factory without hardware, a broker that goes away, and the proof that nothing was lost.

A node (MicroPython, the project's firmware), a camera and a simulated bus with two meters feed the gateway; an embedded
broker carries what it sends to a consumer. A meter dies and comes back, the broker is taken away for some seconds, the node is
unplugged. At the end every reading is compared with what the node sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.config import load
from gateway.contract import EVENTS_STREAM, BatchKind, GatewayStatus, Schema
from gateway.errors import OctogateError
from sdk import demo_factory as factory
from sdk import demo_meter
from sdk.demo_data import DemoData, prepare
from sdk.demo_forms import with_forms
from sdk.demo_screen import Screen, plain_screen, record, rich_screen, show_summary
from sdk.demo_summary import Summary, audit, count, delivered_rows, recording, summarise
from sdk.demo_view import Moment, View
from sdk.ingest import Ingest
from sdk.simulated_bus import Bus

STREAM = "press-4/power"
LOOK_S = 0.25  # between two looks at the gateway
OUTAGE_AT, OUTAGE_SHARE, OUTAGE_MAX_S = 0.4, 0.25, 8.0  # of the demo's time
OUTAGE_EVERY_S = 60.0  # when it has no end
PATIENCE_S = 15.0  # for the rest to be delivered
LAST_EVENT_S = 5.0  # for the gateway's last word to be committed
CAUGHT_UP_S = 5.0  # after an outage, so long the view says so
RECORD_AT = 0.8  # of the outage


@dataclass(frozen=True)
class Options:
    seconds: float | None
    plain: bool
    port: int
    folder: Path
    picture: Path | None  # a folder for demo.svg
    forms: Path | None  # the recogniser's bundle


@dataclass
class Factory:
    """What is running, and what the view is told about it."""

    node: factory.CountingNode
    broker: factory.Broker
    gateway: factory.Gateway
    ingest: Ingest
    bus: Bus
    seconds: float | None
    stop: asyncio.Event
    phase: str = "running"
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    async def look(self) -> Moment:
        status = await self.gateway.status()
        table = self.ingest.table.next.items()
        delivered = sum(seq for (_, _, stream), seq in table if stream == STREAM)
        broker = self.broker
        return Moment(
            status, self.elapsed_s, self.seconds, self.phase, self.node.sent, delivered, broker.away_s, broker.outage_s
        )


def main(
    seconds: float | None = 60.0,
    plain: bool = False,
    port: int = 8080,
    folder: Path = factory.ROOT / "build" / "demo",
    record: Path | None = None,
    forms: Path | None = None,
) -> int:
    """Run the demo; its exit status: 0 only if every reading arrived, once and in order.

    Args:
        seconds: how long; 0 or None is until Ctrl-C, with an outage every minute.
        plain: no live view: a line a second on stderr, the summary as one JSON line on stdout.
        port: of the local page on 127.0.0.1; another is taken when it is not free.
        folder: for everything the demo writes; what an earlier demo left there is removed.
        record: a folder for demo.svg, a picture of the view.
        forms: the recogniser that reads paper forms; without it there are none in the demo.
    """
    plain = plain or not sys.stdout.isatty()
    options = Options(seconds or None, plain, port, folder.absolute(), record, forms and forms.absolute())
    faults: list[OctogateError] = []
    try:
        with _alone(options.folder):
            data = prepare(say=_say)
            summary = asyncio.run(_run(options, data))
    except* OctogateError as errors:
        faults.extend(_leaves(errors))
    if faults:
        for fault in faults:
            _say(str(fault))
        return 1
    if plain:
        print(json.dumps({**msgspec.to_builtins(summary), "ok": summary.ok}), flush=True)
    else:
        show_summary(summary)
    return 0 if summary.ok else 1


def _say(text: str) -> None:
    print(f"octogate demo: {text}", file=sys.stderr, flush=True)


def _leaves(group: BaseExceptionGroup[OctogateError]) -> Iterator[OctogateError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """An empty folder that no other demo uses."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OctogateError(f"another demo runs in {folder}", hint="end it first") from error
        if folder.exists() and not (folder / "gateway.toml").is_file() and any(folder.iterdir()):
            raise OctogateError(f"{folder} holds something else than a demo", hint="name another --folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield


async def _run(options: Options, data: DemoData) -> Summary:
    async with _factory(options, data) as (running, view):
        screen: Callable[[View], contextlib.AbstractContextManager[Screen]]
        screen = plain_screen if options.plain else rich_screen
        with screen(view) as show:
            await _live(running, view, show, options)
            last = await _drain(running, view, show)
        status = await running.gateway.end()
        await _last_event(running, options.folder)
    return _summary(running, options.folder, data, last, status)


@asynccontextmanager
async def _factory(options: Options, data: DemoData) -> AsyncIterator[tuple[Factory, View]]:
    """Everything started, each part when the one before it is ready; ended in the opposite order."""
    folder, stop = options.folder, asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    panel_port = factory.free_port(options.port)
    if panel_port != options.port:
        _say(f"port {options.port} is taken: the page is on {panel_port}")
    broker_port = factory.free_port()
    config = _write_config(folder, data, broker_port, panel_port, options.forms)
    schema = data.schema
    channels = [[c.name, c.type, c.unit] for c in schema.channels]
    node = factory.make_node(folder / "node", folder / "press-4", data.shape, channels, schema.record_size)
    kind = "real MicroPython" if node.is_micropython else "CPython, there is no MicroPython here"
    _say(f"the node runs the firmware under {kind}")
    control, log = folder / "data" / "control.sock", folder / "gateway.log"
    async with (
        factory.Broker(broker_port).running() as broker,
        node,
        demo_meter.meters(folder) as bus,
        Ingest.open(folder / "consumer.db", factory.LOOPBACK, broker_port) as ingest,
        factory.Gateway(config, control, log).running() as gateway,
    ):
        url = f"http://{factory.LOOPBACK}:{panel_port}"
        _say(f"running; the page is on {url}, the gateway's log is {log}")
        yield Factory(node, broker, gateway, ingest, bus, options.seconds, stop), View(url, f"node: {kind}", STREAM)


def _write_config(folder: Path, data: DemoData, broker_port: int, panel_port: int, forms: Path | None) -> Path:
    """gateway/example.toml with this demo's folder, line and ports in it."""
    overrides: dict[tuple[str, str], str | int] = {
        ("gateway", "data_dir"): str(folder / "data"),
        ("source", "port"): str(folder / "press-4"),
        ("source", "folder"): str(data.pictures.absolute()),
        ("uplink", "port"): broker_port,
        ("panel", "port"): panel_port,
    }
    example = factory.EXAMPLE
    path = folder / "gateway.toml"
    text = factory.configured(example.read_text(), example.parent, overrides)
    path.write_text(with_forms(text, forms) if forms else text)
    demo_meter.add_to_config(path)
    load(path)
    return path


async def _live(running: Factory, view: View, show: Screen, options: Options) -> None:
    """Show it until its time is over or Ctrl-C, with the outages going on meanwhile."""
    picture = options.picture
    async with asyncio.TaskGroup() as tasks:
        outages = tasks.create_task(_outages(running), name="outages")
        troubles = tasks.create_task(_troubles(running), name="troubles")
        while not running.stop.is_set() and running.elapsed_s < (running.seconds or float("inf")):
            moment = await running.look()
            view.update(moment)
            show(view)
            if picture is not None and (moment.away_s or 0) > RECORD_AT * next(_plan(running.seconds))[1]:
                _record(view, picture)
                picture = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.stop.wait(), LOOK_S)
        outages.cancel()
        troubles.cancel()


async def _outages(running: Factory) -> None:
    """Take the broker away and bring it back: once in a demo with an end, else every minute."""
    for pause, length in _plan(running.seconds):
        await asyncio.sleep(pause)
        running.phase = "the broker is away"
        await running.broker.take_away()
        await asyncio.sleep(length)
        await running.broker.bring_back()
        running.phase = "catching up"
        await asyncio.sleep(CAUGHT_UP_S)
        running.phase = "running"


async def _troubles(running: Factory) -> None:
    def say(phase: str) -> None:
        running.phase = phase

    await demo_meter.troubles(running.bus, running.node, running.seconds, say)


def _plan(seconds: float | None) -> Iterator[tuple[float, float]]:
    """Pauses and lengths of the outages, seconds."""
    if seconds is not None:
        yield seconds * OUTAGE_AT, min(OUTAGE_MAX_S, seconds * OUTAGE_SHARE)
        return
    while True:
        yield OUTAGE_EVERY_S - OUTAGE_MAX_S - CAUGHT_UP_S, OUTAGE_MAX_S


async def _drain(running: Factory, view: View, show: Screen) -> GatewayStatus:
    """The node stops; what it sent is stored and delivered. Gives up after PATIENCE_S; a second Ctrl-C at once."""
    running.stop.clear()
    running.phase = "the node has stopped, the rest is delivered"
    running.node.replug()
    running.node.halt()
    await running.broker.bring_back()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        moment = await running.look()
        view.update(moment)
        show(view)
        over = time.monotonic() > deadline or running.stop.is_set()
        if over or _all_delivered(moment):
            if over:
                _say(f"not everything was delivered within {PATIENCE_S:g} s")
            return moment.status
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(running.stop.wait(), LOOK_S)


async def _last_event(running: Factory, folder: Path) -> None:
    """The gateway has ended, and its last word is on its way: wait until the consumer has committed it."""
    stored = count(folder / "data" / "spool.db", folder / "consumer.db")[EVENTS_STREAM].stored
    more, ingest = asyncio.Event(), running.ingest
    ingest.on_events = more.set
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_EVENT_S):
            while sum(seq for (_, _, stream), seq in ingest.table.next.items() if stream == EVENTS_STREAM) < stored:
                await more.wait()
                more.clear()


def _all_delivered(moment: Moment) -> bool:
    """All readings; of inferences and events, which go on, all but the newest."""
    readings = next((s for s in moment.status.streams if s.name == STREAM), None)
    there = readings is not None and moment.sent == readings.next_seq == readings.delivered_seq == moment.delivered
    rows = [s for s in moment.status.streams if s.kind is not BatchKind.SAMPLES]
    return there and all(s.next_seq - s.delivered_seq <= 2 for s in rows)


def _record(view: View, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record(view, folder / "demo.svg")


def _summary(running: Factory, folder: Path, data: DemoData, last: GatewayStatus, status: int) -> Summary:
    database, sent = folder / "consumer.db", running.node.sent
    schema: Schema = data.schema
    readings = audit(delivered_rows(database, STREAM), sent, recording(data.shape, schema.format))
    return summarise(
        readings,
        count(folder / "data" / "spool.db", database),
        last,
        stream=STREAM,
        sent=sent,
        outage_s=running.broker.outage_s,
        seconds=running.elapsed_s,
        node="MicroPython" if running.node.is_micropython else "CPython",
        repeats=running.ingest.counts.repeated,
        gateway_status=status,
    )


def command(argv: Sequence[str] | None = None) -> int:
    """`python -m sdk.demo`."""
    parser = argparse.ArgumentParser("python -m sdk.demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="0: until Ctrl-C (default: %(default)g)")
    parser.add_argument("--plain", action="store_true", help="no live view; the summary as one JSON line on stdout")
    parser.add_argument("--port", type=int, default=8080, help="of the local page (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=factory.ROOT / "build" / "demo", help="for what it writes")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write a picture of the view to DIR/demo.svg")
    parser.add_argument("--forms", type=Path, metavar="BUNDLE", help="read paper forms with this recogniser")
    args = parser.parse_args(argv)
    if args.seconds < 0 or 0 < args.seconds < 5:
        parser.error("--seconds: 0, or 5 and more: less has no room for an outage")
    return main(args.seconds, args.plain, args.port, args.folder, args.record, args.forms)


if __name__ == "__main__":
    sys.exit(command())
