"""A device's status, for tests that need one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from edge.contract.messages import BrokerStatus, CameraStatus, Status, StreamStatus, ViewersStatus, Vitals


def make_status(device: str = "cam-1", **changes: Any) -> Status:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "online": True,
        "at": now,
        "version": "0.1.0",
        "started_at": now,
        "stream": StreamStatus(wanted="running"),
        "camera": CameraStatus(state="closed"),
        "viewers": ViewersStatus(connected=0, limit=5),
        "broker": BrokerStatus(connected=True),
        "vitals": Vitals(),
        "counters": {},
    }
    return Status(device=device, **{**fields, **changes})
