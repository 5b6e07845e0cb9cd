"""What can be asked of a gateway from afar: ties the commands to the running daemon, and watches a config on trial."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from gateway import __version__, command, diagnostics
from gateway.clock import Clock
from gateway.command import (
    Accepted,
    Answer,
    Blob,
    Block,
    BlocksGetArgs,
    BundleDropArgs,
    BundlePutArgs,
    ConfigSetArgs,
    ConfigText,
    Have,
    ModelRollbackArgs,
    ModelSwap,
    ModelSwapArgs,
    NoArgs,
    Reported,
    SnapshotArgs,
    SourceWriteArgs,
    UpdateInstallArgs,
    UpdateState,
)
from gateway.config import Config
from gateway.contract import AUDIT_STREAM, BatchKind, Event, GatewayStatus, Severity, SourceState
from gateway.errors import ControlError, OctogateError, StoreError
from gateway.sync.blocks import Blobs, Bundles
from gateway.sync.commands import Commands, Guard, Operation
from gateway.sync.desired import Desired, Health, Need, Phase, digest_of, unhealthy
from gateway.sync.journal import Journal
from gateway.sync.updates import Updates

log = logging.getLogger("octogate")
LOOK_S = (0.1, 1.0)  # between two looks at a config on trial: a twentieth of health_s, within these
_encode = msgspec.json.Encoder().encode


class Store(Protocol):
    def append_row(self, stream: str, kind: BatchKind, row: bytes) -> asyncio.Future[None]: ...


class Models(Protocol):
    def list(self) -> tuple[ModelSwap, ...]: ...
    async def swap(self, args: ModelSwapArgs) -> ModelSwap: ...
    async def rollback(self, args: ModelRollbackArgs) -> ModelSwap: ...


class Host(Protocol):
    """What the running daemon offers."""

    config: Config
    clock: Clock

    @property
    def spool(self) -> Store: ...
    @property
    def models(self) -> Models: ...
    def status(self) -> GatewayStatus: ...
    def picture(self, args: Mapping[str, Any]) -> dict[str, Any]: ...
    async def write(self, source: str, metric: str, value: bool | int | float | str) -> None: ...
    def notify(self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None: ...


class Remote:
    """The commands of one daemon.

    Args:
        desired: the config file and its trial; None where the daemon was not started from a file.
        stop: set to end the daemon; whoever runs it starts it again when `desired.again` is set.
    """

    def __init__(self, host: Host, desired: Desired | None, stop: asyncio.Event) -> None:
        self._host = host
        self._desired = desired
        self._stop = stop
        self._restart = False
        folder = host.config.data_dir
        self._bundles = Bundles(folder / "bundles")
        self._updates = Updates(folder / "updates")
        self._blobs = Blobs(folder / "commands" / "blobs")
        self._tail = diagnostics.LogTail()
        self.commands = Commands(
            self._operations(), Journal(folder / "commands" / "journal.db"), self._audit, self._wall_ms, self._done
        )
        self.commands.reported = lambda: _encode(self._reported())

    async def run(self) -> None:
        """Serve until cancelled; while a config is on trial, decide it."""
        root = logging.getLogger()
        root.addHandler(self._tail)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.commands.run(), name="commands")
                if self._desired is not None:
                    await self._tell(self._desired)
                    if self._desired.on_trial:
                        tasks.create_task(self._try(self._desired), name="trial")
        finally:
            root.removeHandler(self._tail)

    async def control(self, request: Mapping[str, Any]) -> Answer:
        """A command by the control socket: `{"id", "op", "deadline", "args"}`, the same as by MQTT, never signed."""
        id = request.get("id")
        if not isinstance(id, str) or not command.valid_id(id):
            raise ControlError("command: no id", hint="1 to 64 letters, digits, - and _")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(given: Answer) -> None:
            if not answer.done():  # else the asker is gone
                answer.set_result(given)

        self.commands.receive(Guard("control", self._host.config.gateway.id), id, _encode(dict(request)), reply)
        return await answer

    # --- operations -------------------------------------------------------------------------------------------

    def _operations(self) -> dict[str, Operation]:
        # a block of a bundle that goes on is bound by the hash that its signed beginning named
        begins: Callable[[BundlePutArgs], bool] = lambda args: args.offset == 0  # noqa: E731
        return {
            "status": Operation(NoArgs, self._status),
            "restart": Operation(NoArgs, self._restarting, changes=True),
            "snapshot": Operation(SnapshotArgs, self._snapshot),
            "diagnostics": Operation(NoArgs, self._diagnostics),
            "config.get": Operation(NoArgs, self._config_get),
            "config.set": Operation(ConfigSetArgs, self._config_set, changes=True),
            "bundle.put": Operation(BundlePutArgs, self._bundle_put, changes=True, once=False, opening=begins),
            "bundle.drop": Operation(BundleDropArgs, self._bundle_drop, changes=True),
            "model.list": Operation(NoArgs, self._model_list),
            "model.swap": Operation(ModelSwapArgs, self._model_swap, changes=True),
            "model.rollback": Operation(ModelRollbackArgs, self._model_rollback, changes=True),
            "update.put": Operation(BundlePutArgs, self._update_put, changes=True, once=False, opening=begins),
            "update.install": Operation(UpdateInstallArgs, self._update_install, changes=True),
            "update.status": Operation(NoArgs, self._update_status),
            "source.write": Operation(SourceWriteArgs, self._source_write, changes=True),
            "blocks.get": Operation(BlocksGetArgs, self._blocks_get, once=False, opening=lambda _: False),
        }

    async def _status(self, _: NoArgs, __: str) -> GatewayStatus:
        return self._host.status()

    async def _restarting(self, _: NoArgs, __: str) -> str:
        self._from_file()
        self._restart = True
        return "restarting"

    async def _snapshot(self, args: SnapshotArgs, _: str) -> Blob:
        picture = self._host.picture({"source": args.source})
        return await asyncio.to_thread(self._blobs.keep, picture["data"], picture["media"], args.source, picture["seq"])

    async def _diagnostics(self, _: NoArgs, __: str) -> Blob:
        host = self._host
        text = self._desired.text.decode() if self._desired else ""
        packed = await asyncio.to_thread(
            diagnostics.pack,
            host.status(),
            text,
            list(self._tail.lines),
            {"reported": self._reported()},
            host.config.data_dir,
        )
        name = f"{host.config.gateway.id}-diagnostics.tar.gz"
        return await asyncio.to_thread(self._blobs.keep, packed, "application/gzip", name)

    async def _config_get(self, _: NoArgs, __: str) -> ConfigText:
        desired = self._from_file()
        return ConfigText(desired.digest, desired.text.decode(), self._reported())

    async def _config_set(self, args: ConfigSetArgs, id: str) -> Accepted:
        desired, text = self._from_file(), args.text.encode()
        digest = digest_of(text)
        if args.base and args.base != desired.digest:
            raise ControlError(
                f"the config is not {args.base[:12]} any more, but {desired.digest[:12]}", hint="config.get, then again"
            )
        if digest == desired.digest:
            return Accepted("good", digest)
        new = await asyncio.to_thread(desired.check, text)
        try:
            self._refuse_what_cuts_it_off(new)
            from gateway.plan import plan  # what a start can do without

            planned = await asyncio.to_thread(plan, self._host.config, new)
        except OctogateError:
            await asyncio.to_thread(desired.forget)
            raise
        await asyncio.to_thread(desired.propose, digest, id, self._need(new), args.health_s)
        self._restart = True
        return Accepted("pending", digest, planned.changes, planned.warnings)

    def _refuse_what_cuts_it_off(self, new: Config) -> None:
        old = self._host.config
        if new.gateway.id != old.gateway.id or new.data_dir != old.data_dir:
            raise ControlError(
                "gateway.id and gateway.data_dir stay as they are: what is on disk hangs on them",
                hint="change them on the machine",
            )
        if old.uplink and not new.uplink:
            raise ControlError("nobody would hear how it went without an uplink", hint="take it out on the machine")

    def _need(self, new: Config) -> Need:
        """What is well now, as far as it is still there, and the models that are new or changed."""
        status = self._host.status()
        sources = {source.name for source in new.source}
        old = {model.name: model for model in self._host.config.model}
        ready = {model.name for model in status.models if model.state == "ready"}
        return Need(
            sources=tuple(s.name for s in status.sources if s.state is SourceState.OK and s.name in sources),
            models=tuple(m.name for m in new.model if m.name in ready or m != old.get(m.name)),
            uplink=status.uplink.state == "up",
        )

    async def _bundle_put(self, args: BundlePutArgs, _: str) -> Have:
        return await asyncio.to_thread(self._bundles.put, args)

    async def _bundle_drop(self, args: BundleDropArgs, _: str) -> str:
        path = self._bundles.path(args.sha256)
        config = self._host.config
        if path in [config.path(model.bundle) for model in config.model]:
            raise ControlError("this bundle is in use", hint="set a config without it first")
        if self._desired is not None and self._desired.state.phase in (Phase.PENDING, Phase.TRIAL):
            raise ControlError("a config is on trial, and may be reverted to it", hint="wait until that is decided")
        await asyncio.to_thread(self._bundles.drop, args.sha256)
        return "dropped"

    async def _model_list(self, _: NoArgs, __: str) -> tuple[ModelSwap, ...]:
        return self._host.models.list()

    async def _model_swap(self, args: ModelSwapArgs, _: str) -> ModelSwap:
        return await self._host.models.swap(args)

    async def _model_rollback(self, args: ModelRollbackArgs, _: str) -> ModelSwap:
        return await self._host.models.rollback(args)

    async def _update_put(self, args: BundlePutArgs, _: str) -> Have:
        return await asyncio.to_thread(self._updates.put, args)

    async def _update_install(self, args: UpdateInstallArgs, _: str) -> UpdateState:
        return await asyncio.to_thread(self._updates.install, args.sha256)

    async def _update_status(self, _: NoArgs, __: str) -> UpdateState:
        return await asyncio.to_thread(self._updates.state)

    async def _source_write(self, args: SourceWriteArgs, _: str) -> str:
        await self._host.write(args.source, args.metric, args.value)
        return "written"

    async def _blocks_get(self, args: BlocksGetArgs, _: str) -> Block:
        return await asyncio.to_thread(self._blobs.get, args)

    def _from_file(self) -> Desired:
        if self._desired is None:
            raise ControlError("this gateway was not started from a file", hint="use `octogate run`")
        return self._desired

    # --- the trial --------------------------------------------------------------------------------------------

    async def _try(self, desired: Desired) -> None:
        """Look at the health until the config on trial has shown itself good, or not."""
        state = desired.state
        health = Health(state.health_s, time.monotonic())
        pause = min(max(state.health_s / 20, LOOK_S[0]), LOOK_S[1])
        keep: bool | None = None
        why = ""
        while keep is None:
            await asyncio.sleep(pause)
            why = unhealthy(self._host.status(), state.need)
            keep = health.look(why, time.monotonic())
        try:
            if keep:
                await asyncio.to_thread(desired.promote)
                await self._tell(desired)
                return
        except StoreError as error:
            why = str(error)
        await asyncio.to_thread(desired.revert, why or "never healthy for long enough")
        self._restart = True
        self._done()

    async def _tell(self, desired: Desired) -> None:
        """Make the outcome of a trial known, once it stands."""
        state = desired.state
        if state.told or state.phase not in (Phase.GOOD, Phase.REVERTED):
            return
        good = state.phase is Phase.GOOD
        message = f"config {state.digest[:12]} " + ("stays" if good else f"was reverted: {state.reason}")
        severity = Severity.INFO if good else Severity.ALARM
        self._host.notify("gateway", f"config.{state.phase}", "point", severity, message, digest=state.digest)
        row = self._audit(f"config.{state.phase}", good, message, {"id": state.id, "digest": state.digest})
        await row
        try:
            await asyncio.to_thread(desired.told)
        except StoreError as error:
            log.error("%s", error)  # told again at the next start
        self.commands.report()

    def _reported(self) -> Reported:
        desired, gateway = self._desired, self._host.config.gateway.id
        if desired is None:
            return Reported(gateway, __version__, "", "good")
        state = desired.state
        phase = Phase.TRIAL if desired.on_trial else state.phase  # reverted, once the good one runs again
        return Reported(gateway, __version__, desired.digest, phase, state.digest, state.id, state.reason)

    # --- for the commands -------------------------------------------------------------------------------------

    def _done(self) -> bool:
        if not self._restart or self._desired is None:
            return False
        self._desired.again = True
        self.commands.report()
        self._stop.set()
        return True

    def _wall_ms(self) -> int | None:
        offset = self._host.clock.wall_offset_ns()
        return None if offset is None else (self._host.clock.mono_ns() + offset) // 10**6

    def _audit(self, name: str, well: bool, message: str, detail: Mapping[str, Any]) -> asyncio.Future[None]:
        severity = Severity.INFO if well else Severity.WARNING
        if not well or name not in ("command.received", "command.done"):
            log.log(logging.INFO if well else logging.WARNING, "%s", message)
        event = Event(name, "commands", "point", severity, self._host.clock.now(), message, dict(detail))
        return self._host.spool.append_row(AUDIT_STREAM, BatchKind.EVENTS, _encode(event))
