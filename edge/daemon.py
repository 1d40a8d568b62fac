"""The one file that names concrete parts: builds them, supervises them, stops them in order."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from edge import __version__
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.contract.messages import (
    BrokerStatus,
    CameraStatus,
    LastError,
    RecoveryStatus,
    Status,
    StreamStatus,
    ViewersStatus,
)
from edge.contract.topics import Topics
from edge.core.access_unit import Quality
from edge.core.backoff import Backoff
from edge.core.budget import CommandRates
from edge.errors import CameraUnavailable, ConfigInvalid, EdgeError, Unavailable
from edge.host.clock import SystemClock
from edge.host.journal import set_level, set_up_logging
from edge.host.kept import KeptFile
from edge.host.ledger import Ledger
from edge.host.systemd import Supervision
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.sessions.camera_use import CameraUse
from edge.sessions.service import Sessions, session_of_log
from edge.sessions.wish import StreamWish
from edge.settings import tunable, tuned
from edge.signalling.authority import Authority
from edge.signalling.broker import Message
from edge.signalling.commands import Commands
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from edge.signalling.shadow import Shadow
from edge.signalling.tokens import TokenKeys
from edge.streaming.hub import Hub
from edge.streaming.peer import PeerFactory
from edge.tuning.service import TRIAL_S, Tuning
from edge.tuning.state import State as TuningState
from edge.tuning.state import recall

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.core.access_unit import AccessUnit
    from edge.core.tuning import Values
    from edge.settings import Settings
    from edge.signalling.broker import Broker
    from edge.signalling.settings import MqttSettings

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 8.0
_START_TIMEOUT_S = 20.0


class Part(Protocol):
    """What the supervisor runs: ends by cancellation or by an error; sets `ready` when it can be asked."""

    async def run(self, ready: asyncio.Event) -> None: ...


async def supervise(name: str, part: Part, ready: asyncio.Event, on_error: Callable[[EdgeError], None]) -> None:
    """Run a part, again after `Unavailable` with a growing wait; any other error is a bug and goes up."""
    backoff = Backoff()
    while True:
        started_s = time.monotonic()
        try:
            await part.run(ready)
        except Unavailable as exc:
            on_error(exc)
            if time.monotonic() - started_s > backoff.cap_s:
                backoff.reset()
            wait_s = backoff.next_s(random.random())  # noqa: S311  jitter
            log.warning("%s: %s; again in %.1f s", name, exc.message, wait_s)
            ready.set()
            await asyncio.sleep(wait_s)
        else:
            message = f"the part {name} ended by itself"
            raise RuntimeError(message)


class Nest:
    """Running parts, started one after the other and stopped in the opposite order, each within a deadline."""

    def __init__(self, on_error: Callable[[EdgeError], None]) -> None:
        self._on_error = on_error
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, name: str, part: Part) -> None:
        """Start a part and wait until it can be asked."""
        ready = asyncio.Event()
        task = asyncio.create_task(supervise(name, part, ready, self._on_error), name=name)
        self._tasks.append(task)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task

    async def wait(self) -> None:
        """Until a part ends, which is a bug: its error is raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task

    async def stop(self) -> None:
        """Stop all, last started first."""
        while self._tasks:
            task = self._tasks.pop()
            task.cancel()
            _, late = await asyncio.wait({task}, timeout=_STOP_TIMEOUT_S)
            if late:
                log.error("%s did not stop within %.0f s", task.get_name(), _STOP_TIMEOUT_S)
            elif not task.cancelled() and (exc := task.exception()) is not None:
                log.error("%s failed while it stopped", task.get_name(), exc_info=exc)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was last seen of the camera."""

    state: CameraState = CameraState.CLOSED
    error: CameraUnavailable | None = None
    reopens: int = 0
    restarts: int = 0

    @property
    def running(self) -> bool:
        return self.state is CameraState.RUNNING

    @property
    def tries(self) -> int:
        return self.reopens + self.restarts

    @property
    def counts(self) -> dict[str, int]:
        return {"reopens": self.reopens, "restarts": self.restarts}


def make_broker(mqtt: MqttSettings, client_id: str, subscriptions: tuple[str, ...], will: Message) -> Broker:
    """The client that the settings say; the other one is not even loaded.

    Raises: ConfigInvalid: AWS's is wanted and not installed.
    """
    if not mqtt.by_aws:
        from edge.signalling.paho_broker import PahoBroker  # noqa: PLC0415

        return PahoBroker(mqtt, client_id, subscriptions, will)
    try:
        from edge.signalling.aws_broker import AwsBroker  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        said = 'mqtt.client: awsiotsdk is not installed (edge-streamer[aws]); client = "paho" does without'
        raise ConfigInvalid([said]) from exc
    return AwsBroker(mqtt, client_id, subscriptions, will)


class Daemon:
    """One camera and everybody who watches it. Made in its event loop.

    `trial_s`: how long the camera may take to give a picture with settings that were changed from afar.
    """

    def __init__(self, settings: Settings, *, trial_s: float = TRIAL_S) -> None:
        self._file = settings
        kept_tuning = KeptFile(settings.state.dir / "tuning.json")
        shadow_by = settings.mqtt.shadow_by
        tuning = recall(kept_tuning.read(), self._check) if shadow_by else TuningState()
        self._settings = settings = tuned(settings, tuning.desired)
        set_level(settings.log.level)
        self._counters: Counter[str] = Counter()
        self._started_at = datetime.now(UTC)
        self._last_error: LastError | None = None
        self._last_camera = _Seen()
        self._tries_at_rest = 0
        self._recovered_at: datetime | None = None
        self._topics = Topics(settings.device.id, settings.mqtt.prefix)
        self._wish = StreamWish(KeptFile(settings.state.dir / "wish.json"))
        controls = KeptFile(settings.state.dir / "controls.json")
        self._camera = CameraProcess(
            settings.camera, self._push, self._camera_changed, self._sd_failed, values=controls.read()
        )
        frame_s = {Quality.HD: 1 / settings.camera.hd.fps, Quality.SD: 1 / settings.camera.sd.fps}
        self._hub = Hub(self._camera, time.monotonic, self._counters, frame_s)
        self._unit_s = time.monotonic()
        shadow = self._topics.shadow(at_aws=shadow_by == "aws")
        self._broker = make_broker(
            settings.mqtt,
            settings.device.id,
            (self._topics.command, *(shadow.to_device if shadow_by else ())),
            Message(self._topics.status, self._will().model_dump_json().encode(), retain=True),
        )
        self._outbox = Outbox(self._broker, self._topics, self.status, self._counters)
        self._peers = PeerFactory(self._hub, settings.ice, settings.rtp, self._counters, frame_s=frame_s[Quality.HD])
        if self._peers.stock_because is not None:
            log.warning("aiortc's own sender is used, since this is not as it is known: %s", self._peers.stock_because)
        self._sessions = Sessions(
            settings.sessions,
            self._wish,
            self._camera,
            self._peers,
            idle_stop_s=settings.camera.idle_stop_s,
            now_s=time.monotonic,
            on_change=self._outbox.status_changed,
            notice=self._outbox.notice,
            counters=self._counters,
        )
        self._camera_use = CameraUse(self._sessions, self._camera, controls, self._outbox.notice)
        auth = settings.auth
        keys = TokenKeys(auth.jwks_file) if auth.mode == "required" and auth.jwks_file is not None else None
        self._ledger = Ledger(settings.state.dir / "once.sqlite", time.time)
        self._commands = Commands(
            self._topics,
            self._sessions,
            self._camera_use,
            self._outbox,
            authority=Authority(settings.device.id, keys, SystemClock(trusted=auth.trust_clock).known),
            once=Once(self._ledger, time.time()),
            rates=CommandRates(auth.commands_per_s, auth.commands_in_all_per_s),
            status=self.status,
            now_s=time.monotonic,
            wall_s=time.time,
            refused=self._remember,
            counters=self._counters,
        )
        self._tuning = Tuning(
            tuning,
            kept_tuning,
            self._camera,
            self._wish,
            self._sessions.camera_in_use,
            check=self._check,
            apply=self._apply,
            on_change=self._tuning_changed,
            notice=self._outbox.notice,
            refused=self._remember,
            trial_s=trial_s,
        )
        self._shadow = Shadow(shadow, self._broker, self._tuning, refused=self._remember, counters=self._counters)
        self._broker.listen(self._receive, self._link)
        app = make_app(self._sessions, self._camera_use, self.status, self.unwell)
        self._api = LocalServer(app, settings.api)
        self._supervision = Supervision(self.status_line, self.unwell)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; a part's bug is raised after the others were stopped."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        nest = Nest(self._remember)
        try:
            await nest.start("broker", self._broker)
            await nest.start("outbox", self._outbox)
            await nest.start("camera", self._camera)
            await nest.start("sessions", self._sessions)
            await nest.start("ledger", self._ledger)
            await nest.start("commands", self._commands)
            if self._file.mqtt.shadow_by is not None:
                await nest.start("tuning", self._tuning)
                await nest.start("shadow", self._shadow)
            await nest.start("local-api", self._api)
            await nest.start("supervision", self._supervision)
            log.info("edge-streamer %s, device %s: ready", __version__, self._settings.device.id)
            stopping = asyncio.create_task(asked.wait(), name="signals")
            failing = asyncio.create_task(nest.wait(), name="parts")
            done, _ = await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if failing in done:
                await failing
            failing.cancel()
            log.info("stopping")
        finally:
            await nest.stop()

    def status(self) -> Status:
        """What is true now."""
        return Status(
            device=self._settings.device.id,
            online=True,
            at=datetime.now(UTC),
            version=__version__,
            started_at=self._started_at,
            stream=StreamStatus(wanted="running" if self._wish.running else "stopped", reason=self._wish.reason),
            camera=self._camera_status(),
            viewers=ViewersStatus(
                connected=self._sessions.count,
                limit=self._settings.sessions.max_viewers,
                sender="own" if self._peers.stock_because is None else "stock",
                sender_fault=self._peers.stock_because,
            ),
            broker=BrokerStatus(connected=self._broker.connected, error=self._broker.error),
            last_error=self._last_error,
            counters={**self._counters, "camera_units_dropped": self._camera.dropped},
        )

    def _camera_status(self) -> CameraStatus:
        camera = self._camera
        stream = camera.opening.format if camera.opening else None
        remedy, why, stalls = camera.recovery
        return CameraStatus(
            state=camera.state.value,
            source=camera.source,
            encoder=stream.encoder if stream else None,
            width=stream.width if stream else None,
            height=stream.height if stream else None,
            fps=camera.values.get("fps", stream.fps) if stream else None,
            profile_level_id=stream.profile_level_id if stream else None,
            restarts=camera.restarts,
            recovery=RecoveryStatus(
                stalls=stalls,
                reopens=camera.reopens,
                restarts=camera.restarts,
                last=remedy.value if remedy else None,
                why=why or None,
                at=self._recovered_at,
            ),
            error=camera.error.message if camera.error else None,
            code=camera.error.code if camera.error else None,
            sd_error=camera.sd_error,
            controls=camera.values,
        )

    def status_line(self) -> str:
        """What is true now, for `systemctl status`."""
        wish = "streaming wanted" if self._wish.running else "stopped"
        camera = f"camera {self._camera.state}" + (f" ({self._camera.error.message})" if self._camera.error else "")
        broker = "broker connected" if self._broker.connected else f"no broker ({self._broker.error})"
        return f"{wish}, {camera}, {self._sessions.count} viewers, {broker}"

    def unwell(self) -> str | None:
        """What is not well in a way that only a restart mends; stopped, idle, brokerless, no camera are well."""
        now_s = time.monotonic()
        if not self._sessions.well(now_s):
            return "a session is stuck"
        if not self._commands.well(now_s):
            return "a command is stuck"
        # The camera part restarts a camera that stalls; pictures that stay away for this long mean that it does not.
        late_s = 5 * self._settings.camera.stall_s + self._settings.camera.open_timeout_s
        if self._camera.state is CameraState.RUNNING and now_s - self._unit_s > late_s:
            return "the camera counts as running and delivers nothing"
        return None

    def _push(self, unit: AccessUnit) -> None:
        self._unit_s = time.monotonic()
        self._counters["access_units"] += 1
        self._hub.push(unit)

    def _camera_changed(self) -> None:
        camera, before = self._camera, self._last_camera
        now = self._last_camera = _Seen(camera.state, camera.error, camera.reopens, camera.restarts)
        if now.tries > before.tries:
            self._recovered_at = datetime.now(UTC)
            remedy, why, _ = camera.recovery
            self._outbox.notice("camera.recovering", None, {"tried": remedy, "why": why, **now.counts})
        if now.running and not before.running:
            self._unit_s = time.monotonic()
            if before.error or now.tries > self._tries_at_rest:
                self._outbox.notice("camera.back", None, now.counts)
            self._tries_at_rest = now.tries
            self._tell_encoder()
        if now.error and now.error is not before.error:
            self._remember(now.error)
            self._outbox.notice("camera.lost", None, {"error": now.error.message, "code": now.error.code, **now.counts})
        self._sessions.camera_changed(now.error, running=now.running)
        self._outbox.status_changed()

    def _sd_failed(self, why: str) -> None:
        self._hub.no_sd(why)
        self._outbox.notice("camera.sd_failed", None, {"error": why})
        self._outbox.status_changed()

    def _receive(self, message: Message) -> None:
        door = self._commands if message.topic == self._topics.command else self._shadow
        door.receive(message)

    def _check(self, desired: Values) -> Values:
        return tunable(tuned(self._file, desired))

    def _apply(self, desired: Values) -> None:
        settings = self._settings = tuned(self._file, desired)
        set_level(settings.log.level)
        self._sessions.retune(settings.sessions, settings.camera.idle_stop_s)
        self._camera.retune(settings.camera)

    def _tuning_changed(self) -> None:
        self._shadow.changed()
        self._outbox.status_changed()

    def _link(self, up: bool) -> None:
        self._outbox.link(up)
        self._shadow.link(up)
        if up:
            self._sessions.tell_camera_again()

    def _tell_encoder(self) -> None:
        if (opening := self._camera.opening) is not None:
            stream = opening.format
            log.info(
                "camera %s, encoder %s: %dx%d at %g fps, %s",
                *(self._camera.source, stream.encoder, stream.width, stream.height, stream.fps),
                stream.profile_level_id,
            )

    def _remember(self, error: EdgeError) -> None:
        self._last_error = LastError(code=error.code, message=error.message, at=datetime.now(UTC))
        self._outbox.status_changed()

    def _will(self) -> Status:
        return Status(device=self._settings.device.id, online=False, at=self._started_at, version=__version__)


def run_daemon(settings: Settings) -> None:
    """Run the daemon in this process until a signal ends it.

    Raises: ConfigInvalid: the state directory cannot be made, AWS's client is not installed, or the public keys cannot
    be read.
    """
    set_up_logging(settings.log.level, session_of_log.get)
    try:
        settings.state.dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigInvalid([f"state.dir: {exc.strerror}"]) from exc
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    await Daemon(settings).run()
