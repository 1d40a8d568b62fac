"""The one file that names concrete parts: builds them, supervises them, stops them in order."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import random
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from edge import __version__
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.contract.messages import Status
from edge.contract.topics import Topics
from edge.core.access_unit import Quality
from edge.core.backoff import Backoff
from edge.core.budget import CommandRates
from edge.errors import ConfigInvalid, EdgeError, Unavailable
from edge.host.clock import SystemClock
from edge.host.event_store import EventStore
from edge.host.journal import set_level, set_up_logging
from edge.host.kept import KeptFile
from edge.host.ledger import Ledger
from edge.host.systemd import Supervision
from edge.host.vitals import MachineVitals
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.mqtt.broker import Message
from edge.mqtt.factory import make_broker
from edge.report import Report
from edge.sessions.camera_use import CameraUse
from edge.sessions.service import Sessions, session_of_log
from edge.sessions.wish import StreamWish
from edge.settings import tunable, tuned
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.events import Events
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from edge.signalling.shadow import Shadow
from edge.signalling.telemetry import TelemetryBeat
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
        self._raised: BaseException | None = None

    async def start(self, name: str, part: Part) -> None:
        """Start a part and wait until it accepts requests; a part that takes longer goes on starting beside the next.

        Raises: what the part raised, which is a bug.
        """
        ready = asyncio.Event()
        task = asyncio.create_task(supervise(name, part, ready, self._on_error), name=name)
        self._tasks.append(task)
        waiting = asyncio.create_task(ready.wait())
        done, _ = await asyncio.wait({task, waiting}, timeout=_START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not done:
            log.warning("part not ready yet part=%s after_s=%.0f", name, _START_TIMEOUT_S)
        if task.done():
            self._raise(task)

    async def wait(self) -> None:
        """Until a part ends, which is a bug: its error is raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._raise(task)

    async def stop(self) -> None:
        """Stop all, last started first. An error that was raised before is not logged again."""
        while self._tasks:
            task = self._tasks.pop()
            ended_before = task.done()
            task.cancel()
            _, late = await asyncio.wait({task}, timeout=_STOP_TIMEOUT_S)
            if late:
                log.error("part did not stop part=%s after_s=%.0f", task.get_name(), _STOP_TIMEOUT_S)
            elif not task.cancelled() and (exc := task.exception()) is not None and exc is not self._raised:
                when = "ran" if ended_before else "stopped"
                log.error("part failed while it %s part=%s", when, task.get_name(), exc_info=exc)

    def _raise(self, task: asyncio.Task[None]) -> None:
        self._raised = task.exception()
        task.result()


class Daemon:
    """One camera and everybody who watches it. Made in its event loop.

    `settings`: as the file has them. `trial_s`: how long the camera may take to give a picture with those that were
    changed from afar.
    """

    def __init__(self, settings: Settings, *, trial_s: float = TRIAL_S) -> None:
        self._settings = settings
        kept_tuning = KeptFile(settings.state.dir / "tuning.json")
        shadow_by = settings.mqtt.shadow_by
        tuning = recall(kept_tuning.read(), self._check) if shadow_by else TuningState()
        settings = tuned(settings, tuning.desired)
        set_level(settings.log.level)
        self._counters: Counter[str] = Counter()
        self._topics = Topics(settings.device.id, settings.mqtt.prefix)
        self._wish = StreamWish(KeptFile(settings.state.dir / "wish.json", self._failed))
        controls = KeptFile(settings.state.dir / "controls.json", self._failed)
        self._camera = CameraProcess(
            settings.camera, self._push, self._camera_changed, self._sd_failed, values=controls.read()
        )
        frame_s = {Quality.HD: 1 / settings.camera.hd.fps, Quality.SD: 1 / settings.camera.sd.fps}
        self._hub = Hub(self._camera, time.monotonic, self._counters, frame_s)
        will = Status(device=settings.device.id, online=False, at=datetime.now(UTC), version=__version__)
        shadow = self._topics.shadow(at_aws=shadow_by == "aws")
        self._broker = make_broker(
            settings.mqtt,
            settings.device.id,
            (self._topics.command,),
            Message(self._topics.status, will.model_dump_json().encode(), retain=True),
            optional=shadow.to_device if shadow_by else (),
        )
        self._event_store = EventStore(settings.state.dir / "events.sqlite")
        self._events = Events(
            self._broker, self._topics.event, self._event_store, self._counters, settings.mqtt.publishes_per_s
        )
        self._outbox = Outbox(self._broker, self._topics, self._status, self._counters)
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
            notice=self._events.notice,
            counters=self._counters,
        )
        self._camera_use = CameraUse(self._sessions, self._camera, controls, self._events.notice)
        auth = settings.auth
        keys = TokenKeys(auth.jwks_file) if auth.mode == "required" and auth.jwks_file is not None else None
        clock = SystemClock(trusted=auth.trust_clock)
        if keys is not None and not clock.known():
            log.warning("the clock is not known to be set: until it is, or auth.trust_clock says so, no token counts")
        self._ledger = Ledger(settings.state.dir / "once.sqlite", time.time)
        self._commands = Commands(
            self._topics,
            self._sessions,
            self._camera_use,
            self._outbox,
            authority=Authority(settings.device.id, keys, clock.known),
            once=Once(self._ledger, time.time()),
            rates=CommandRates(auth.commands_per_s, auth.commands_in_all_per_s),
            status=self._status,
            now_s=time.monotonic,
            wall_s=time.time,
            refused=self._failed,
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
            notice=self._events.notice,
            refused=self._failed,
            trial_s=trial_s,
        )
        self._shadow = Shadow(shadow, self._broker, self._tuning, refused=self._failed, counters=self._counters)
        self._broker.listen(self._receive, self._link)
        self._report = Report(
            settings,
            broker=self._broker,
            camera=self._camera,
            commands=self._commands,
            counters=self._counters,
            event_store=self._event_store,
            notice=self._events.notice,
            peers=self._peers,
            sessions=self._sessions,
            vitals=MachineVitals(settings.state.dir),
            wish=self._wish,
        )
        self._telemetry = TelemetryBeat(self._outbox, self._topics, self._report.telemetry, settings.mqtt.telemetry_s)
        app = make_app(self._sessions, self._camera_use, self._report.status, self._report.unwell)
        self._api = LocalServer(app, settings.api)
        self._supervision = Supervision(self._report.line, self._report.unwell)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; a part's bug is raised after the others were stopped."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        nest = Nest(self._failed)
        run = KeptFile(self._settings.state.dir / "run.json")
        before = run.read()
        self._events.notice("daemon.started", None, {"version": __version__, "last_end": (before or {}).get("end")})
        await run.write({"end": "unclean"})
        try:
            await nest.start("broker", self._broker)
            await nest.start("event-store", self._event_store)
            await nest.start("outbox", self._outbox)
            await nest.start("events", self._events)
            await nest.start("camera", self._camera)
            await nest.start("sessions", self._sessions)
            await nest.start("ledger", self._ledger)
            await nest.start("commands", self._commands)
            if self._settings.mqtt.shadow_by is not None:
                await nest.start("tuning", self._tuning)
                await nest.start("shadow", self._shadow)
            await nest.start("local-api", self._api)
            await nest.start("supervision", self._supervision)
            if self._settings.mqtt.telemetry_s:
                await nest.start("telemetry", self._telemetry)
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
        await run.write({"end": "clean"})

    def _push(self, unit: AccessUnit) -> None:
        self._report.unit(unit)
        self._hub.push(unit)

    def _camera_changed(self) -> None:
        self._report.camera_changed()
        self._sessions.camera_changed(self._camera.error, running=self._camera.state is CameraState.RUNNING)
        self._outbox.status_changed()

    def _sd_failed(self, why: str) -> None:
        self._hub.no_sd(why)
        self._events.notice("camera.sd_failed", None, {"error": why})
        self._outbox.status_changed()

    def _receive(self, message: Message) -> None:
        door = self._commands if message.topic == self._topics.command else self._shadow
        door.receive(message)

    def _check(self, desired: Values) -> Values:
        return tunable(tuned(self._settings, desired))

    def _apply(self, desired: Values) -> None:
        settings = tuned(self._settings, desired)
        set_level(settings.log.level)
        self._sessions.retune(settings.sessions, settings.camera.idle_stop_s)
        self._camera.retune(settings.camera)

    def _tuning_changed(self) -> None:
        self._shadow.changed()
        self._outbox.status_changed()

    def _link(self, up: bool) -> None:
        self._events.link(up)
        self._outbox.link(up)
        self._shadow.link(up)
        if up:
            self._sessions.tell_camera_again()

    def _status(self) -> Status:
        return self._report.status()

    def _failed(self, error: EdgeError) -> None:
        self._report.failed(error)
        self._outbox.status_changed()


def run_daemon(settings: Settings) -> None:
    """Run the daemon in this process until a signal ends it.

    Raises: ConfigInvalid: the state directory cannot be made, AWS's client is not installed, or the public keys cannot
    be read.
    """
    set_up_logging(settings.log.level, session_of_log.get)
    # systemd's watchdog ends a hung daemon by SIGABRT: where it hung is then in the journal.
    faulthandler.enable()
    try:
        settings.state.dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigInvalid([f"state.dir: {exc.strerror}"]) from exc
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    await Daemon(settings).run()
