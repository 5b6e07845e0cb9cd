"""The desired config: a new one is tried, and stays only when the gateway is healthy with it.

The state machine is on disk, beside the config file `F` that `octogate run` was given; each step is one atomic write
or rename, so that a power cut between any two ends in a whole config:

    (none) --propose--> pending --start--> trial --healthy for health_s--> promote --> good
                                             |
                                             +-- not healthy, an error, or MAX_STARTS starts --> reverted

`F` is the good config at every moment. The candidate is `F.new`, what `F` was before it `F.old`, the state `F.state`.
Only promotion replaces `F`, by renaming the candidate over it; that it was decided is written first, so that an
interrupted one is finished at the next start.
"""

from __future__ import annotations

import enum
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway import durable
from gateway.config import MAX_CONFIG_BYTES, Config, load
from gateway.contract import GatewayStatus, SourceState
from gateway.errors import ConfigError, ControlError, StoreError

log = logging.getLogger("octogate")
MAX_STARTS = 3  # of one trial: a crash loop, or a machine that is switched off again and again, ends it
MAX_STATE = 64 << 10


class Phase(enum.StrEnum):
    GOOD = "good"
    PENDING = "pending"
    TRIAL = "trial"
    PROMOTE = "promote"
    REVERTED = "reverted"


class Need(msgspec.Struct, frozen=True):
    """What must be well for the trial to succeed: what was well before, and every model that is new or changed."""

    sources: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    uplink: bool = False


class State(msgspec.Struct, frozen=True):
    """`F.state`.

    Attributes:
        digest: sha256 of the candidate's text.
        id: of the command that set it.
        health_s: so long it must be healthy without a break to stay, or unhealthy to go.
        starts: how often the trial was started.
        reason: why it was reverted.
        told: whether the outcome has been made known.
    """

    phase: Phase
    digest: str = ""
    id: str = ""
    health_s: float = 60.0
    starts: int = 0
    need: Need = Need()
    reason: str = ""
    told: bool = True


def digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def unhealthy(status: GatewayStatus, need: Need) -> str:
    """What is not well, in words; empty when all that is needed is."""
    states = {source.name: source for source in status.sources}
    for name in need.sources:
        source = states.get(name)
        if source is None or source.state is not SourceState.OK:
            return f"source '{name}' was ok and is {source.state if source else 'gone'}"
    models = {model.name: model for model in status.models}
    for name in need.models:
        model = models.get(name)
        if model is None or model.state != "ready":
            return f"model '{name}' is {model.state + ' ' + model.detail if model else 'gone'}".strip()
    if status.spool.state != "ok":
        return f"the spool is {status.spool.state}: {status.spool.detail}"
    if need.uplink and status.uplink.state != "up":
        return f"the uplink was up and is {status.uplink.state} {status.uplink.detail}".strip()
    return ""


class Health:
    """Decides a trial from what is seen now and then. Times are monotonic seconds."""

    def __init__(self, health_s: float, now: float) -> None:
        self._health_s = health_s
        self._began = self._since = now
        self._well = False

    def look(self, why: str, now: float) -> bool | None:
        """`why` as of `unhealthy`: True to keep the config, False to revert it, None to go on looking."""
        well = not why
        if well != self._well:
            self._well, self._since = well, now
        if now - self._since >= self._health_s:
            return well
        if now - self._began >= 10 * self._health_s:  # neither for long enough: not something to stay with
            return False
        return None


class Desired:
    """The config file and what is beside it.

    Attributes:
        path: the config file as it was named to `octogate run`.
        state: the state on disk, as of the last step.
        running: the file that this process runs: `path`, or the candidate while it is on trial.
        text: what it says, as it was read at the start: the file may be renamed or gone by now.
        digest: sha256 of that text.
        again: set when this process is to start anew once it has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.candidate = path.with_name(path.name + ".new")
        self.former = path.with_name(path.name + ".old")
        self._state_file = path.with_name(path.name + ".state")
        self.state = State(Phase.GOOD)
        self.running = path
        self.text = b""
        self.digest = ""
        self.again = False

    @property
    def on_trial(self) -> bool:
        return self.running == self.candidate

    # --- at the start -----------------------------------------------------------------------------------------

    def load(self) -> Config:
        """The config to run now: the good one, or the candidate.

        Raises:
            ConfigError: the good one cannot be used.
        """
        try:
            self._choose()
        except OSError as error:  # a step could not be written down: the good config is always whole
            log.error("%s: cannot go on with the new config: %s; running the good one", self._state_file, error)
            self.running = self.path
        if self.on_trial:
            try:
                return self._loaded()
            except ConfigError as error:
                self.revert(str(error))
                self.running = self.path
        return self._loaded()

    def _loaded(self) -> Config:
        config = load(self.running)
        self.text = self.running.read_bytes()
        self.digest = digest_of(self.text)
        return config

    def _choose(self) -> None:
        self.state = state = self._read_state()
        if state.phase is Phase.PROMOTE:
            self._finish_promotion()
        elif state.phase in (Phase.PENDING, Phase.TRIAL):
            if self._candidate_digest() != state.digest:
                self.revert(f"{self.candidate.name} is missing or damaged")
            elif state.starts >= MAX_STARTS:
                self.revert(f"started {state.starts} times without becoming healthy")
            else:
                self._keep(msgspec.structs.replace(state, phase=Phase.TRIAL, starts=state.starts + 1))
                self.running = self.candidate
        elif self.candidate.exists():  # left over
            durable.remove(self.candidate)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around the run: a trial that ends with an error is reverted, and the good config is started."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if not self.on_trial or self.state.phase is not Phase.TRIAL:
                raise
            log.exception("the config on trial ended with an error")
            self.revert(f"it ended with {type(error).__name__}: {error}")
            self.again = True
            raise

    # --- steps ------------------------------------------------------------------------------------------------

    def check(self, text: bytes) -> Config:
        """Whether this text could be run in the place of the present one; it becomes the candidate file.

        Raises:
            ConfigError: it cannot be used.
            ControlError: another one is being tried.
            StoreError: the folder cannot be written to.
        """
        if self.state.phase in (Phase.PENDING, Phase.TRIAL, Phase.PROMOTE):
            raise ControlError(
                f"config {self.state.digest[:12]} is on trial", hint="wait until `reported` says good or reverted"
            )
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError("larger than 1 MiB")
        with self._explained():
            durable.write_whole(self.candidate, text, self.path.stat().st_mode & 0o777)
        try:
            return load(self.candidate)
        except ConfigError:
            self.forget()
            raise

    def forget(self) -> None:
        """What was checked shall not be tried."""
        with self._explained():
            durable.remove(self.candidate)

    def propose(self, digest: str, id: str, need: Need, health_s: float) -> None:
        """What was checked shall be tried at the next start; StoreError when that cannot be written down."""
        with self._explained():
            self._keep(State(Phase.PENDING, digest, id, health_s, 0, need))

    def promote(self) -> None:
        """The candidate stays; StoreError when that cannot be written down."""
        with self._explained():
            self._keep(msgspec.structs.replace(self.state, phase=Phase.PROMOTE))
            self._finish_promotion()

    def revert(self, reason: str) -> None:
        """The good config is what the next start runs. What cannot be written is logged: the next start looks again."""
        reverted = msgspec.structs.replace(self.state, phase=Phase.REVERTED, reason=reason[:500], told=False)
        try:
            self._keep(reverted)
            durable.remove(self.candidate)
        except OSError as error:
            self.state = reverted
            log.error("%s: cannot write that the config was reverted: %s", self._state_file, error)

    def _finish_promotion(self) -> None:
        if self.candidate.exists():
            durable.write_whole(self.former, self.path.read_bytes(), self.path.stat().st_mode & 0o777)
            durable.replace(self.candidate, self.path)
        self._keep(msgspec.structs.replace(self.state, phase=Phase.GOOD, told=False))
        self.running = self.path

    def told(self) -> None:
        """The outcome has been made known; StoreError when that cannot be written down."""
        with self._explained():
            self._keep(msgspec.structs.replace(self.state, told=True))

    def _candidate_digest(self) -> str:
        try:
            return digest_of(self.candidate.read_bytes())
        except FileNotFoundError:
            return ""

    def _keep(self, state: State) -> None:
        durable.write_whole(self._state_file, msgspec.json.encode(state), 0o600)
        self.state = state

    def _read_state(self) -> State:
        try:
            with self._state_file.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_STATE), type=State)
        except FileNotFoundError:
            return State(Phase.GOOD)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("%s: damaged, the good config runs: %s", self._state_file, error)
            return State(Phase.GOOD)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self.path.parent}: cannot write beside the config: {error.strerror}",
                hint="let the daemon's user write to that folder",
            ) from error
