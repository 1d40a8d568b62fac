"""Builds the parts of the daemon, connects them, and runs them. The one module that names concrete parts."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edge import __version__
from edge.camera.port import CameraState
from edge.camera.process import CameraProcess
from edge.camera.watch import CameraWatch
from edge.contract.messages import ControlsBody, Offline
from edge.contract.topics import Topics
from edge.core.access_unit import Quality
from edge.core.budget import CommandRates
from edge.core.health import Health
from edge.core.log_limit import LogLimit
from edge.errors import ConfigInvalid, EdgeError
from edge.host import descriptors, state_directory
from edge.host.atomic_file import AtomicFile
from edge.host.clock import SystemClock
from edge.host.damaged_files import DamagedFiles
from edge.host.event_store import EventStore
from edge.host.journal import set_level, set_up_logging
from edge.host.ledger import Ledger
from edge.host.state_file import StateFile
from edge.host.systemd import Supervision
from edge.host.vitals import MachineVitals
from edge.local_api.app import make_app
from edge.local_api.server import LocalServer
from edge.mqtt.broker import Message
from edge.mqtt.factory import make_broker
from edge.sessions.camera_requests import CameraRequests
from edge.sessions.desired_stream import DesiredStream
from edge.sessions.service import SessionService, log_session
from edge.sessions.state_writer import StateWriter
from edge.settings import tunable, tuned
from edge.signalling.authority import Authority
from edge.signalling.commands import Commands
from edge.signalling.events import Events
from edge.signalling.once import Once
from edge.signalling.outbox import Outbox
from edge.signalling.shadow import Shadow
from edge.signalling.status import StatusReport
from edge.signalling.telemetry import TelemetryBeat
from edge.signalling.tokens import TokenKeys
from edge.streaming.hub import Hub
from edge.streaming.loop_errors import LoopErrors
from edge.streaming.peer import PeerFactory
from edge.supervisor import Supervisor
from edge.tuning.service import TRIAL_S, Tuning
from edge.tuning.state import State as TuningState
from edge.tuning.state import recall

if TYPE_CHECKING:
    from edge.contract.messages import Status
    from edge.core.access_unit import AccessUnit
    from edge.core.tuning import SettingsValues
    from edge.settings import Settings
    from edge.supervisor import Part

log = logging.getLogger(__name__)


class Daemon:
    """One camera and its viewers. Construct it in its event loop.

    `file_settings`: the settings of the file, without those that a backend changed. `trial_s`: within this time the
    camera must deliver a picture with changed settings, or they are rolled back.
    """

    def __init__(self, file_settings: Settings, *, trial_s: float = TRIAL_S) -> None:
        self._file_settings = file_settings
        self._state_dir = file_settings.state.dir
        self._damaged = DamagedFiles()
        self._run_store = StateFile(self._state_dir / "run.json", damaged=self._damaged)
        stored_end = (self._run_store.read() or {}).get("end")
        self._last_end = stored_end if stored_end in ("clean", "unclean") else None
        self._tuning_store = StateFile(self._state_dir / "tuning.json", damaged=self._damaged)
        remote = file_settings.mqtt.shadow_by is not None
        tuning = recall(self._tuning_store, self._check) if remote else TuningState()
        settings = tuned(file_settings, tuning.desired)
        set_level(settings.log.level)

        self._counters: Counter[str] = Counter()
        self._clock = SystemClock(trusted=settings.auth.trust_clock)
        self._topics = Topics(settings.device.id, settings.mqtt.prefix)
        self._build_video(settings)
        self._build_messages(settings)
        self._build_sessions(settings)
        self._build_status(settings)
        self._build_commands(settings)
        self._build_tuning(tuning, trial_s)
        self._build_local_api(settings)
        self._parts = self._start_order(settings)

    def _start_order(self, settings: Settings) -> list[tuple[str, Part]]:
        """The parts by name, in the order in which they start. They stop in the reverse order."""
        parts: list[tuple[str, Part]] = [
            ("broker", self._broker),
            ("event-store", self._event_store),
            ("outbox", self._outbox),
            ("events", self._events),
            ("camera", self._camera),
            ("sessions", self._sessions),
            ("ledger", self._ledger),
            ("commands", self._commands),
        ]
        if settings.mqtt.shadow_by is not None:
            parts += [("tuning", self._tuning), ("shadow", self._shadow)]
        parts += [("local-api", self._local_api), ("supervision", self._supervision)]
        if settings.mqtt.telemetry_s:
            parts.append(("telemetry", self._telemetry))
        return parts

    def _build_video(self, settings: Settings) -> None:
        self._controls_store = StateFile(self._state_dir / "controls.json", self._failed, self._damaged)
        try:
            values = ControlsBody.model_validate(self._controls_store.read() or {}).given()
        except ValidationError as exc:
            self._controls_store.set_aside(f"{exc.error_count()} controls are not valid")
            values = {}
        self._camera = CameraProcess(settings.camera, self._push, self._camera_changed, self._sd_failed, values=values)
        frame_s = {Quality.HD: 1 / settings.camera.hd.fps, Quality.SD: 1 / settings.camera.sd.fps}
        self._sd_events = LogLimit()
        self._hub = Hub(self._camera, time.monotonic, self._counters, frame_s)
        self._peers = PeerFactory(self._hub, settings.ice, settings.rtp, self._counters, frame_s=frame_s[Quality.HD])
        if self._peers.stock_because is not None:
            log.warning("fallback to the stock sender, each viewer costs more CPU reason=%r", self._peers.stock_because)

    def _build_messages(self, settings: Settings) -> None:
        will = Offline(device=settings.device.id, at=datetime.now(UTC), version=__version__)
        self._shadow_topics = self._topics.shadow(at_aws=settings.mqtt.shadow_by == "aws")
        self._broker = make_broker(
            settings.mqtt,
            settings.device.id,
            (self._topics.command,),
            Message(self._topics.status, will.model_dump_json().encode(), retain=True),
            optional=self._shadow_topics.to_device if settings.mqtt.shadow_by else (),
            atomic_file=AtomicFile,
        )
        self._broker.listen(self._receive, self._link_changed)
        self._event_store = EventStore(self._state_dir / "events.sqlite", self._damaged)
        self._events = Events(
            self._broker, self._topics.event, self._event_store, self._counters, settings.mqtt.publishes_per_s
        )
        self._outbox = Outbox(self._broker, self._topics, self._status, self._counters)

    def _build_sessions(self, settings: Settings) -> None:
        # The file keeps its name, because the previous release reads it after a rollback.
        self._stream_store = StateFile(self._state_dir / "wish.json", self._failed, self._damaged, reserve=True)
        self._stream_copy = StateFile(self._state_dir / "wish.copy.json", damaged=self._damaged)
        self._desired = DesiredStream(self._stream_store, self._stream_copy, self._stop_may_be_lost)
        self._sessions = SessionService(
            settings.sessions,
            self._desired,
            self._camera,
            self._peers,
            idle_stop_s=settings.camera.idle_stop_s,
            now_s=time.monotonic,
            on_change=self._outbox.status_changed,
            publish_event=self._events.publish_event,
            counters=self._counters,
        )
        self._camera_requests = CameraRequests(
            self._sessions, self._camera, self._controls_store, self._events.publish_event
        )

    def _build_status(self, settings: Settings) -> None:
        # The camera part restarts a stalled camera. So long a silence means that it does not.
        self._health = Health(5 * settings.camera.stall_s + settings.camera.open_timeout_s)
        self._watch = CameraWatch(
            self._camera, self._health, self._counters, publish_event=self._events.publish_event, failed=self._failed
        )
        vitals = MachineVitals(self._state_dir)
        self._status_report = StatusReport(
            settings.device.id,
            __version__,
            broker=self._broker,
            camera=self._watch,
            stream=self._desired,
            viewers=self._sessions,
            sender_fault=self._peers.stock_because,
            vitals=lambda: vitals.read(self._camera.pid),
            counts=self._counts,
            clock_known=self._clock.known,
        )
        self._telemetry = TelemetryBeat(
            self._outbox, self._topics, self._status_report.telemetry, settings.mqtt.telemetry_s
        )

    def _build_commands(self, settings: Settings) -> None:
        auth = settings.auth
        keys = TokenKeys(auth.jwks_file) if auth.mode == "required" and auth.jwks_file is not None else None
        if keys is not None and not self._clock.known():
            log.info("clock not known to be set yet; tokens are refused until it is, or until auth.trust_clock is set")
        self._ledger = Ledger(self._state_dir / "once.sqlite", time.time, self._damaged)
        self._commands = Commands(
            self._topics,
            self._sessions,
            self._camera_requests,
            self._outbox,
            authority=Authority(settings.device.id, keys, self._clock.known),
            once=Once(self._ledger),
            rates=CommandRates(auth.commands_per_s, auth.commands_in_all_per_s),
            status=self._status,
            now_s=time.monotonic,
            wall_s=time.time,
            on_refusal=self._status_report.refused,
            counters=self._counters,
        )

    def _build_tuning(self, state: TuningState, trial_s: float) -> None:
        self._tuning = Tuning(
            state,
            self._tuning_store,
            self._camera,
            self._desired,
            self._sessions.camera_in_use,
            check=self._check,
            apply=self._apply,
            on_change=self._tuning_changed,
            publish_event=self._events.publish_event,
            refused=self._settings_refused,
            trial_s=trial_s,
        )
        self._shadow = Shadow(
            self._shadow_topics,
            self._broker,
            self._tuning,
            on_refusal=self._settings_refused,
            on_failure=self._failed,
            counters=self._counters,
        )

    def _build_local_api(self, settings: Settings) -> None:
        app = make_app(self._sessions, self._camera_requests, self._status_report.status, self._fault, self._counters)
        self._local_api = LocalServer(app, settings.api, self._counters)
        self._supervision = Supervision(self._status_report.line, self._fault)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises: the error of a part that crashed, after the others have stopped."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(LoopErrors(self._counters).handle)
        stop_requested = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop_requested.set)
        supervisor = Supervisor(self._failed)
        self._events.publish_event("daemon.started", None, {"version": __version__, "last_end": self._last_end})
        end = "unclean"
        run_writer = StateWriter(self._run_store.write, "run", lambda: {"end": end})
        saved = await run_writer.save()
        if not saved:
            # It must not say that this run ended cleanly if a power cut ends it.
            await self._run_store.remove()
        if not self._desired.known and (saved or not self._desired.running):
            self._desired.begin()
        try:
            for name, part in self._parts:
                await supervisor.start(name, part)
            log.info("daemon ready version=%s device=%s", __version__, self._file_settings.device.id)
            stopping = asyncio.create_task(stop_requested.wait(), name="signals")
            failing = asyncio.create_task(supervisor.wait(), name="parts")
            done, _ = await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if failing in done:
                await failing
            failing.cancel()
            log.info("daemon stopping")
        finally:
            await supervisor.stop()
        end = "clean"
        await run_writer.save()

    # What one part reports to the others.

    def _push(self, unit: AccessUnit) -> None:
        self._watch.unit(unit)
        self._hub.push(unit)

    def _camera_changed(self) -> None:
        self._watch.changed()
        self._sessions.camera_changed(self._camera.error, running=self._camera.state is CameraState.RUNNING)
        self._outbox.status_changed()

    def _sd_failed(self, why: str) -> None:
        self._hub.sd_failed(why)
        if self._sd_events.due(time.monotonic(), why):
            self._events.publish_event("camera.sd_failed", None, {"error": why})
        self._outbox.status_changed()

    def _receive(self, message: Message) -> None:
        receiver = self._commands if message.topic == self._topics.command else self._shadow
        receiver.receive(message)

    def _link_changed(self, up: bool) -> None:
        self._events.link(up)
        self._outbox.link(up)
        self._shadow.link(up)
        if up:
            self._sessions.repeat_camera()

    def _stop_may_be_lost(self) -> str | None:
        if self._stream_store.lost or self._stream_copy.lost:
            return "the stored state of the stream is damaged or unreadable, and nothing says whether it was stopped"
        if self._last_end == "clean" or not self._stream_store.full():
            return None
        return "the disk is full, and nothing says whether the stream was stopped"

    def _failed(self, error: EdgeError) -> None:
        self._status_report.failed(error)
        self._outbox.status_changed()

    # Remote settings.

    def _check(self, desired: SettingsValues) -> SettingsValues:
        return tunable(tuned(self._file_settings, desired))

    def _apply(self, desired: SettingsValues) -> None:
        settings = tuned(self._file_settings, desired)
        set_level(settings.log.level)
        self._sessions.apply_settings(settings.sessions, settings.camera.idle_stop_s)
        self._camera.apply_settings(settings.camera)

    def _tuning_changed(self) -> None:
        self._shadow.changed()
        self._outbox.status_changed()

    def _settings_refused(self, error: EdgeError) -> None:
        if self._status_report.settings_refused(error):
            self._outbox.status_changed()

    # What the status and systemd ask for.

    def _status(self) -> Status:
        return self._status_report.status()

    def _counts(self) -> dict[str, int]:
        return {
            **self._counters,
            "camera_units_dropped": self._camera.dropped,
            "messages_dropped_coming": self._broker.dropped,
            "events_unwritten": self._event_store.unwritten,
            "state_files_damaged": self._damaged.count,
        }

    def _fault(self) -> str | None:
        return self._health.fault(
            time.monotonic(),
            sessions_on_time=self._sessions.on_time(),
            commands_on_time=self._commands.on_time(),
            counters=self._counters,
        )


def run_daemon(settings: Settings) -> None:
    """Run the daemon in this process until a signal ends it.

    Raises: ConfigInvalid: the state directory cannot be made, AWS's client is not installed, or the public keys cannot
    be read.
    """
    set_up_logging(settings.log.level, log_session.get)
    # systemd's watchdog kills a hung daemon with SIGABRT. The journal then shows where it hung.
    faulthandler.enable()
    descriptors.raise_limit()
    if (fault := state_directory.make(settings.state.dir)) is not None:
        raise ConfigInvalid([f"state.dir: {fault}"])
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    await Daemon(settings).run()
