"""The device's state as messages: the status, telemetry, and one line for systemd."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.contract.messages import (
    BODIES,
    RESERVED,
    BrokerStatus,
    LastError,
    LastRefusal,
    SessionFigures,
    Status,
    StreamStatus,
    Telemetry,
    ViewersStatus,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.messages import Vitals
    from edge.errors import EdgeError
    from edge.mqtt.broker import Broker
    from edge.signalling.ports import CameraStatusSource, StreamState, Viewers

STATUS_VALID_S = 900
"""Three times as long as the outbox waits at most before it publishes the status again."""
_DOCUMENT_FAULTS = {Code.BAD_MESSAGE, Code.TOO_LARGE}


class StatusReport:
    """Composes the status and telemetry. It reads the other parts and changes none. Event loop only.

    `sender_fault`: why aiortc's own sender is in use; None: it is not. `counts`: totals since the daemon started.
    `clock_known`: whether the wall clock is set; while it is not, a status has no `valid_until`.
    """

    def __init__(
        self,
        device: str,
        version: str,
        *,
        broker: Broker,
        camera: CameraStatusSource,
        stream: StreamState,
        viewers: Viewers,
        sender_fault: str | None,
        vitals: Callable[[], Vitals],
        counts: Callable[[], dict[str, int]],
        clock_known: Callable[[], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._version = version
        self._broker = broker
        self._camera = camera
        self._stream = stream
        self._viewers = viewers
        self._sender_fault = sender_fault
        self._vitals = vitals
        self._counts = counts
        self._clock_known = clock_known
        self._now_s = now_s
        self._started_at = datetime.now(UTC)
        self._started_s = self._telemetry_s = now_s()
        self._telemetry_frames = 0
        self._last_error: LastError | None = None
        self._last_refusal: LastRefusal | None = None

    def failed(self, error: EdgeError) -> None:
        """Record a failure of the device itself."""
        self._last_error = LastError(code=error.code, message=error.detail, at=datetime.now(UTC))

    def refused(self, kind: str, error: EdgeError) -> None:
        """Record the refusal of a command. `kind`: its type as received, which may be any text."""
        known = kind if kind in BODIES or kind in RESERVED else None
        self._last_refusal = LastRefusal(code=error.code, type=known, at=datetime.now(UTC))

    def settings_refused(self, error: EdgeError) -> bool:
        """Record why desired settings did not take effect. Returns whether the device is at fault (disk, camera)."""
        if error.code in _DOCUMENT_FAULTS:
            now = datetime.now(UTC)
            self._last_refusal = LastRefusal(code=error.code, type="settings", message=error.message, at=now)
            return False
        self.failed(error)
        return True

    def status(self) -> Status:
        now = datetime.now(UTC)
        return Status(
            device=self._device,
            online=True,
            at=now,
            valid_until=now + timedelta(seconds=STATUS_VALID_S) if self._clock_known() else None,
            version=self._version,
            started_at=self._started_at,
            stream=StreamStatus(wanted="running" if self._stream.running else "stopped", reason=self._stream.reason),
            camera=self._camera.status(),
            viewers=ViewersStatus(
                connected=self._viewers.count,
                limit=self._viewers.limit,
                sender="own" if self._sender_fault is None else "stock",
                sender_fault=self._sender_fault,
            ),
            broker=BrokerStatus(connected=self._broker.connected, error=self._broker.error),
            last_error=self._last_error,
            last_refusal=self._last_refusal,
            vitals=self._vitals(),
            counters=self._counts(),
        )

    def telemetry(self) -> Telemetry:
        """Figures; the frame rate is that since the last call."""
        now_s, frames = self._now_s(), self._camera.hd_frames
        fps = (frames - self._telemetry_frames) / max(now_s - self._telemetry_s, 1e-3)
        self._telemetry_s, self._telemetry_frames = now_s, frames
        return Telemetry(
            device=self._device,
            at=datetime.now(UTC),
            uptime_s=now_s - self._started_s,
            camera=self._camera.status().state,
            fps=round(fps, 2),
            viewers=self._viewers.count,
            sessions=[SessionFigures.model_validate(info.model_dump()) for info in self._viewers.listing()],
            vitals=self._vitals(),
            counters=self._counts(),
        )

    def line(self) -> str:
        """The state in one line, for `systemctl status`."""
        stream = "streaming enabled" if self._stream.running else "stopped"
        status = self._camera.status()
        camera = f"camera {status.state}" + (f" ({status.error})" if status.error else "")
        broker = "broker connected" if self._broker.connected else "no broker"
        broker += f" ({self._broker.error})" if self._broker.error else ""
        return f"{stream}, {camera}, {self._viewers.count} viewers, {broker}"
