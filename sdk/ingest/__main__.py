"""`octogate-ingest`: the command line of the receiver. The only place here that turns errors into an exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gateway.contract import TOPIC_ROOT
from gateway.errors import ConfigError, OctogateError
from sdk.ingest import ledger
from sdk.ingest.batches import StreamLedger
from sdk.ingest.broker import Account
from sdk.ingest.consumer import Ingest, open_sink
from sdk.ingest.webhook import Webhook

OK, FAILED, MISUSED = 0, 1, 2

DESCRIPTION = """\
Takes the readings, inferences and events of any number of gateways from a broker into a database, each exactly once.

  octogate-ingest --db readings.db                              SQLite, one consumer
  octogate-ingest --postgres postgresql://ingest@db/plant       PostgreSQL, as many consumers as wanted
  octogate-ingest ledger --db readings.db                       what was committed, dropped by policy, missing
"""
EPILOG = """\
Several consumers on one PostgreSQL: with an MQTT 5 broker give all of them the same --share NAME; with any other broker
give each its own part of the gateways by the broker's access list, or simply run two of the same as a hot standby.

Secrets are never arguments: the broker's password is in --password-file; PostgreSQL's is in PGPASSWORD, in PGPASSFILE,
or in a whole DSN in the environment's OCTOGATE_POSTGRES; the webhook's address may be in OCTOGATE_WEBHOOK.

Exit status: 0 ended as asked (ledger: nothing is missing), 1 failed (ledger: something is missing), 2 misused.
"""
LEDGER = """\
Prints, for each stream of each gateway, how many sequence numbers are committed, were dropped by the gateway's policy
(when and why), are missing, and wait behind a hole. Exit status 1 if anything is missing. Compare it with what
`octogate ledger` prints on the gateway: the sums must be the same once everything is delivered.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if arguments[:1] == ["ledger"]:
            return _ledger(_ledger_parser().parse_args(arguments[1:]))
        return _consume(_parser().parse_args(arguments))
    except ConfigError as error:
        print(f"octogate-ingest: {error}", file=sys.stderr)
        return MISUSED
    except OctogateError as error:
        print(f"octogate-ingest: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _database(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("database (one of them)")
    group.add_argument("--db", type=Path, metavar="FILE", help="a SQLite file; made when missing")
    group.add_argument("--postgres", metavar="DSN", help="a PostgreSQL database, without its password; needs asyncpg")


def _ledger_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("octogate-ingest ledger", description=LEDGER, formatter_class=raw)
    _database(parser)
    parser.add_argument("--count", action="store_true", help="also count the rows that are really there (reads all)")
    parser.add_argument("--json", action="store_true", help="as JSON instead of text")
    return parser


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("octogate-ingest", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    _database(parser)
    broker = parser.add_argument_group("broker")
    broker.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    broker.add_argument("--port", type=int, default=1883, help="default: %(default)s")
    broker.add_argument("--username", default="", help="with --password-file")
    broker.add_argument("--password-file", type=Path, metavar="FILE", help="a file with the password in its first line")
    broker.add_argument("--ca-file", type=Path, metavar="FILE", help="turns TLS on; the broker's name is checked")
    broker.add_argument("--cert-file", type=Path, metavar="FILE", help="our certificate, for brokers that ask (mTLS)")
    broker.add_argument("--key-file", type=Path, metavar="FILE", help="its key")
    broker.add_argument("--mqtt", choices=("3.1.1", "5"), default="3.1.1", help="default: %(default)s")
    broker.add_argument(
        "--share", default="", metavar="NAME", help="share the messages with others of this name (MQTT 5)"
    )
    broker.add_argument(
        "--session", default="", metavar="NAME", help="the broker keeps messages while we are away; a name of our own"
    )
    broker.add_argument("--prefix", default=TOPIC_ROOT, help="the topics' beginning; default: %(default)s")
    hook = parser.add_argument_group("webhook: events to an operations system")
    hook.add_argument("--webhook", metavar="URL", help="each event is posted here as JSON with an Idempotency-Key")
    hook.add_argument("--webhook-token-file", type=Path, metavar="FILE", help="sent as Authorization: Bearer")
    hook.add_argument("--webhook-ca-file", type=Path, metavar="FILE", help="vouches for the server")
    parser.add_argument("--json", action="store_true", help="what goes wrong is said as JSON lines, too")
    return parser


def _where(args: argparse.Namespace) -> tuple[Path | None, str]:
    """The SQLite file or the PostgreSQL DSN."""
    if args.postgres and (urlsplit(args.postgres).password or "password" in parse_qs(urlsplit(args.postgres).query)):
        raise ConfigError(
            "--postgres: a password on the command line can be read by everyone here",
            hint="put it into PGPASSWORD or PGPASSFILE, or the whole DSN into OCTOGATE_POSTGRES",
        )
    postgres = args.postgres or ("" if args.db else os.environ.get("OCTOGATE_POSTGRES", ""))
    if bool(args.db) == bool(postgres):
        raise ConfigError("name one database", hint="--db FILE or --postgres DSN")
    return args.db, postgres


def _account(args: argparse.Namespace) -> Account:
    v5 = args.mqtt == "5" or bool(args.share)
    for name in (args.share, args.session):
        if any(c in name for c in "/+#") or len(name) > 100:
            raise ConfigError(f"{name!r}: not a name for --share or --session", hint="no '/', '+' or '#', at most 100")
    if (args.cert_file or args.key_file) and not (args.ca_file and args.cert_file and args.key_file):
        raise ConfigError("--cert-file, --key-file and --ca-file go together", hint="give all three")
    if args.prefix.strip("/") != args.prefix or any(c in args.prefix for c in "+#") or not args.prefix:
        raise ConfigError(f"--prefix {args.prefix!r}: not the beginning of a topic", hint=f"for example {TOPIC_ROOT}")
    if not 0 < args.port < 65536:
        raise ConfigError(f"--port {args.port}: no port", hint="1 to 65535")
    return Account(
        *(args.host, args.port, args.username, args.password_file, args.ca_file, args.cert_file, args.key_file),
        *(args.share, args.session, args.prefix, v5),
    )


def _ledger(args: argparse.Namespace) -> int:
    path, postgres = _where(args)

    async def ask() -> tuple[StreamLedger, ...]:
        sink = await open_sink(path, postgres, read_only=True)
        try:
            return tuple(await sink.ledger(count=args.count))
        finally:
            await sink.close()

    streams = asyncio.run(ask())
    print(json.dumps(ledger.as_json(streams)) if args.json else ledger.as_text(streams))
    return OK if ledger.whole(streams) else FAILED


def _consume(args: argparse.Namespace) -> int:
    path, postgres = _where(args)
    account = _account(args)

    def say(text: str) -> None:
        print(json.dumps({"said": text}) if args.json else f"octogate-ingest: {text}", file=sys.stderr, flush=True)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with Ingest.open(path, postgres=postgres, account=account, say=say) as ingest:
            say(f"{account.host}:{account.port} {account.subscription} -> {ingest.table.sink.name}")
            totals = await _run(args, ingest, stop, say)
            print(json.dumps(totals), flush=True)

    try:
        asyncio.run(until_signalled())
    except* OctogateError as group:
        raise _first(group) from None
    return OK


async def _run(args: argparse.Namespace, ingest: Ingest, stop: asyncio.Event, say: Any) -> dict[str, Any]:
    """Until `stop`; the counts."""
    url = args.webhook or os.environ.get("OCTOGATE_WEBHOOK", "")
    if not url:
        await stop.wait()
        return asdict(ingest.counts)
    files = {"token_file": args.webhook_token_file, "ca_file": args.webhook_ca_file}
    hook = Webhook(ingest.table.sink, url, say=say, **files)
    ingest.on_events = hook.wake
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(hook.run(), name="webhook")
        await stop.wait()
        posting.cancel()
    return {**asdict(ingest.counts), "webhook": asdict(hook.counts)}


def _first(group: BaseExceptionGroup[OctogateError]) -> OctogateError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, OctogateError)
    return found


if __name__ == "__main__":
    sys.exit(main())
