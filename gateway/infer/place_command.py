"""`octogate bench`: the measurement of `place.py` from the command line, and what each runtime really does."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.config import load
from gateway.control import Client
from gateway.errors import ConfigError, ControlError
from gateway.infer import inventory, place_text, probe
from gateway.infer.bundle import Bundle, read_manifest
from gateway.infer.order import Order, cpus_here, order_of
from gateway.infer.place import place
from gateway.infer.place_text import Explained
from gateway.infer.ranking import Placement

OK, FAILED, CHANGED = 0, 1, 3  # exit statuses


def command(args: argparse.Namespace) -> int:
    """Run `octogate bench`; its exit status."""
    orders = _orders(args)
    if args.explain:
        return _explain_all(orders, as_json=args.json)
    placements: dict[str, Placement] = {}
    for order in orders:
        with place_text.progress(order.name) as tell:
            placement = placements[order.name] = asyncio.run(place(order, tell, again=True)).placement
        if not args.json:
            place_text.show(order, placement)
        if placement.ranking and order.keep:
            told = asyncio.run(_tell_gateway(args.config, order.name))
            if not args.json:
                print(f"remembered in {order.cache}; {told}\n")
    if args.json:
        print(msgspec.json.encode(placements).decode())
    if any(not placement.ranking for placement in placements.values()):
        return FAILED
    return CHANGED if any(p.ranking[0] != p.before for p in placements.values()) else OK


async def _tell_gateway(config: Path, model: str) -> str:
    """A running gateway uses the new choice at once; how that went."""
    try:
        async with Client.connect(load(config).control_path) as client:
            await client.ask("placed", object, model=model)
    except ControlError:
        return "the gateway will use it when it starts"
    return "the running gateway uses it"


def _orders(args: argparse.Namespace) -> list[Order]:
    """What the command line asks for.

    Raises:
        ConfigError: it names no model, or one that is not there.
    """
    if args.seconds <= 0 or args.seconds > 600:
        raise ConfigError(f"--seconds {args.seconds:g}: out of range", hint="more than 0, at most 600")
    what = args.model or args.what
    if not args.model and what.endswith(".octo"):
        # measured because somebody named it, whoever signed it; only the gateway insists on a trusted key
        manifest = read_manifest(Path(what))
        order = Order(
            name=manifest.name,
            bundle=str(Path(what).absolute()),
            allow_unsigned=True,
            cpus=cpus_here(),
            deadline_s=0.0,
        )
        return [_with_options(order, args)]
    config = load(args.config)
    tables = [table for table in config.model if what in ("", table.name)]
    if not tables:
        names = ", ".join(table.name for table in config.model) or "none"
        raise ConfigError(f"{args.config}: there is no model '{what}'", hint=f"there are: {names}; or a .octo file")
    return [_with_options(order_of(config, table), args) for table in tables]


def _with_options(order: Order, args: argparse.Namespace) -> Order:
    objective = args.objective or order.objective
    keep = bool(order.cache) and not args.dry_run and objective == order.objective
    return msgspec.structs.replace(order, objective=objective, seconds=args.seconds, keep=keep)


def _explain_all(orders: Sequence[Order], *, as_json: bool) -> int:
    explained = {order.name: asyncio.run(_explain(order)) for order in orders}
    if as_json:
        print(msgspec.json.encode(explained).decode())
    else:
        for order in orders:
            place_text.show_explained(order, explained[order.name])
    return OK if all(any(line.report for line in lines) for lines in explained.values()) else FAILED


async def _explain(order: Order) -> list[Explained]:
    """Every candidate loaded and proven in a process of its own, and what its runtime says of it."""
    path = Path(order.bundle)
    with Bundle(path) as bundle:
        bundle.verify(map(Path, order.keys), allow_unsigned=order.allow_unsigned)
        manifest = bundle.manifest
    possible, absent = inventory.candidates(order, manifest, await inventory.devices(order))
    lines = [Explained(m.candidate, None, m.rejected) for m in absent]
    for candidate in possible:
        answer = await inventory.ask(probe.AskReport(order.bundle, candidate, os.getpid()), order.patience_s)
        lines.append(Explained(candidate, answer.report, answer.fault))
    return lines
