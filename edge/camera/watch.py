"""What the device publishes about its camera: its part of the status, and its events."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from edge.camera.lifecycle import HEALTHY_S
from edge.camera.port import CameraState
from edge.contract.messages import CameraStatus, RecoveryStatus
from edge.core.access_unit import Quality
from edge.core.camera_trouble import CameraTrouble

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from edge.camera.process import CameraProcess
    from edge.core.access_unit import AccessUnit
    from edge.core.health import Health
    from edge.errors import CameraUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LastSeen:
    """The camera at the last change."""

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


class CameraWatch:
    """Observes the camera; never controls it. Event loop only.

    `publish_event` publishes an event (type, session, body). `failed` records a failure of the camera.
    """

    def __init__(
        self,
        camera: CameraProcess,
        health: Health,
        counters: Counter[str],
        *,
        publish_event: Callable[[str, str | None, dict[str, Any]], None],
        failed: Callable[[CameraUnavailable], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hd_frames = 0
        """HD access units since the start."""
        self._camera = camera
        self._health = health
        self._counters = counters
        self._publish_event = publish_event
        self._failed = failed
        self._now_s = now_s
        self._last = _LastSeen()
        self._trouble: CameraTrouble | None = None
        self._running_s = now_s()
        self._recovered_at: datetime | None = None

    def unit(self, unit: AccessUnit) -> None:
        """The camera delivered an access unit."""
        now_s = self._now_s()
        self._health.delivered(now_s)
        if self._trouble is not None and now_s - self._running_s >= HEALTHY_S:
            self._report_recovery(self._trouble, healthy=True)
            self._trouble = None
        self._counters["access_units"] += 1
        self.hd_frames += unit.quality is Quality.HD

    def changed(self) -> None:
        """The camera's state, error or counts changed."""
        camera, before = self._camera, self._last
        now = self._last = _LastSeen(camera.state, camera.error, camera.reopens, camera.restarts)
        self._health.camera_changed(self._now_s(), running=now.running)
        trouble = self._trouble or CameraTrouble()
        if now.tries > before.tries:
            self._trouble = trouble
            self._recovered_at = datetime.now(UTC)
            remedy, why, _ = camera.recovery
            if trouble.tried(remedy):
                self._publish_event("camera.recovering", None, {"tried": remedy, "why": why, **now.counts})
        if now.running and not before.running:
            self._running_s = self._now_s()
            self._report_recovery(trouble, healthy=False)
            self._log_stream()
        if before.error and now.error is None and now.state is CameraState.CLOSED:
            # A probe found the camera again.
            self._report_recovery(trouble, healthy=True)
            self._trouble = None
        if now.error and now.error is not before.error:
            self._trouble = trouble
            self._failed(now.error)
            if trouble.failed(now.error.code, now.error.detail):
                self._publish_event(
                    "camera.lost", None, {"error": now.error.detail, "code": now.error.code, **now.counts}
                )

    def status(self) -> CameraStatus:
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
            error=camera.error.detail if camera.error else None,
            code=camera.error.code if camera.error else None,
            sd_error=camera.sd_error,
            controls=camera.values,
        )

    def _report_recovery(self, trouble: CameraTrouble, *, healthy: bool) -> None:
        if trouble.recovered(healthy=healthy):
            self._publish_event("camera.back", None, self._last.counts)

    def _log_stream(self) -> None:
        if (opening := self._camera.opening) is not None:
            stream = opening.format
            log.info(
                "camera running source=%s encoder=%s size=%dx%d fps=%g profile=%s",
                *(self._camera.source, stream.encoder, stream.width, stream.height, stream.fps),
                stream.profile_level_id,
            )
