"""What the daemon says of itself: the status, telemetry, a line for systemd, whether it is well."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge import __version__
from edge.camera.lifecycle import HEALTHY_S
from edge.camera.port import CameraState
from edge.contract.messages import (
    BrokerStatus,
    CameraStatus,
    LastError,
    RecoveryStatus,
    SessionFigures,
    Status,
    StreamStatus,
    Telemetry,
    ViewersStatus,
)
from edge.core.access_unit import Quality
from edge.core.camera_trouble import CameraTrouble

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.camera.process import CameraProcess
    from edge.core.access_unit import AccessUnit
    from edge.errors import CameraUnavailable, EdgeError
    from edge.host.event_store import EventStore
    from edge.host.vitals import MachineVitals
    from edge.mqtt.broker import Broker
    from edge.sessions.service import Sessions
    from edge.sessions.wish import StreamWish
    from edge.settings import Settings
    from edge.signalling.commands import Commands
    from edge.streaming.peer import PeerFactory

log = logging.getLogger(__name__)


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


class Report:
    """Looks at the parts and changes none of them. It is told of pictures, of the camera's changes and of failures."""

    def __init__(
        self,
        settings: Settings,
        *,
        broker: Broker,
        camera: CameraProcess,
        commands: Commands,
        counters: Counter[str],
        event_store: EventStore,
        notice: Callable[[str, str | None, dict[str, Any]], None],
        peers: PeerFactory,
        sessions: Sessions,
        vitals: MachineVitals,
        wish: StreamWish,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._camera = camera
        self._commands = commands
        self._counters = counters
        self._event_store = event_store
        self._notice = notice
        self._peers = peers
        self._sessions = sessions
        self._vitals = vitals
        self._wish = wish
        self._started_at = datetime.now(UTC)
        self._started_s = self._unit_s = self._told_s = time.monotonic()
        self._pictures = self._pictures_told = 0
        self._last_error: LastError | None = None
        self._last_camera = _Seen()
        self._trouble: CameraTrouble | None = None
        self._running_s = self._started_s
        self._recovered_at: datetime | None = None

    # What it is told.

    def unit(self, unit: AccessUnit) -> None:
        self._unit_s = time.monotonic()
        if self._trouble is not None and self._unit_s - self._running_s >= HEALTHY_S:
            self._runs(self._trouble, well=True)
            self._trouble = None
        self._counters["access_units"] += 1
        self._pictures += unit.quality is Quality.HD

    def failed(self, error: EdgeError) -> None:
        self._last_error = LastError(code=error.code, message=error.message, at=datetime.now(UTC))

    def camera_changed(self) -> None:
        """Tell events of it."""
        camera, before = self._camera, self._last_camera
        now = self._last_camera = _Seen(camera.state, camera.error, camera.reopens, camera.restarts)
        trouble = self._trouble or CameraTrouble()
        if now.tries > before.tries:
            self._trouble = trouble
            self._recovered_at = datetime.now(UTC)
            remedy, why, _ = camera.recovery
            if trouble.tried(remedy):
                self._notice("camera.recovering", None, {"tried": remedy, "why": why, **now.counts})
        if now.running and not before.running:
            self._unit_s = self._running_s = time.monotonic()
            self._runs(trouble, well=False)
            self._tell_encoder()
        if now.error and now.error is not before.error:
            self._trouble = trouble
            self.failed(now.error)
            if trouble.failed(now.error.code, now.error.message):
                self._notice("camera.lost", None, {"error": now.error.message, "code": now.error.code, **now.counts})

    # What it says.

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
                limit=self._sessions.limit,
                sender="own" if self._peers.stock_because is None else "stock",
                sender_fault=self._peers.stock_because,
            ),
            broker=BrokerStatus(connected=self._broker.connected, error=self._broker.error),
            last_error=self._last_error,
            vitals=self._vitals.read(self._camera.pid),
            counters=self._counts(),
        )

    def telemetry(self) -> Telemetry:
        """Figures since the last call."""
        now_s = time.monotonic()
        pictures, since_s = self._pictures - self._pictures_told, now_s - self._told_s
        self._pictures_told, self._told_s = self._pictures, now_s
        return Telemetry(
            device=self._settings.device.id,
            at=datetime.now(UTC),
            uptime_s=now_s - self._started_s,
            camera=self._camera.state.value,
            fps=round(pictures / max(since_s, 1e-3), 2),
            viewers=self._sessions.count,
            sessions=[SessionFigures.model_validate(info.model_dump()) for info in self._sessions.listing()],
            vitals=self._vitals.read(self._camera.pid),
            counters=self._counts(),
        )

    def line(self) -> str:
        """What is true now, for `systemctl status`."""
        wish = "streaming wanted" if self._wish.running else "stopped"
        camera = f"camera {self._camera.state}" + (f" ({self._camera.error.message})" if self._camera.error else "")
        broker = "broker connected" if self._broker.connected else "no broker"
        broker += f" ({self._broker.error})" if self._broker.error else ""
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

    def _runs(self, trouble: CameraTrouble, *, well: bool) -> None:
        if trouble.runs(well=well):
            self._notice("camera.back", None, self._last_camera.counts)

    def _counts(self) -> dict[str, int]:
        return {
            **self._counters,
            "camera_units_dropped": self._camera.dropped,
            "messages_dropped_coming": self._broker.dropped,
            "events_unwritten": self._event_store.unwritten,
        }

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

    def _tell_encoder(self) -> None:
        if (opening := self._camera.opening) is not None:
            stream = opening.format
            log.info(
                "camera %s, encoder %s: %dx%d at %g fps, %s",
                *(self._camera.source, stream.encoder, stream.width, stream.height, stream.fps),
                stream.profile_level_id,
            )
