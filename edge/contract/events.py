"""The bodies of events, by the event's type."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edge.contract.codes import Code, EndReason  # noqa: TC001  pydantic reads the annotations at run time


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DaemonStartedEvent(_Body):
    """The daemon was started. `last_end`: how its previous run ended. Null: there was none."""

    version: str
    last_end: Literal["clean", "unclean"] | None


class SessionEvent(_Body):
    """An offer was answered (`session.opened`); the viewer is connected (`session.live`)."""

    viewer: str


class SessionClosedEvent(_Body):
    """A session has ended, and why."""

    viewer: str
    reason: EndReason
    code: Code | None = None


class StreamEvent(_Body):
    """An operator started or stopped the stream, with the reason that was given."""

    reason: str | None = None


class CameraBackEvent(_Body):
    """The camera delivers pictures again. The counts are totals since the daemon started."""

    reopens: int
    restarts: int


class CameraRecoveringEvent(CameraBackEvent):
    """The camera is reopened, in the same process (`reopen`) or in a new one (`restart`), because of `why`."""

    tried: Literal["reopen", "restart"] | None
    why: str


class CameraLostEvent(CameraBackEvent):
    """The camera delivers no pictures, because of `error`."""

    error: str
    code: Code


class SdFailedEvent(_Body):
    """SD is not encoded, because of `error`; its viewers get HD. SD is tried again when a viewer requests it."""

    error: str


class ControlsEvent(_Body):
    """A client or technician set controls. `controls`: all that are set now."""

    controls: dict[str, Any]


class SettingsEvent(_Body):
    """The desired settings of a shadow version were applied, refused or rolled back, because of `reasons`."""

    version: int | None
    reasons: list[str]


EVENTS: dict[str, type[BaseModel]] = {
    "daemon.started": DaemonStartedEvent,
    "session.opened": SessionEvent,
    "session.live": SessionEvent,
    "session.closed": SessionClosedEvent,
    "stream.started": StreamEvent,
    "stream.stopped": StreamEvent,
    "camera.lost": CameraLostEvent,
    "camera.recovering": CameraRecoveringEvent,
    "camera.back": CameraBackEvent,
    "camera.sd_failed": SdFailedEvent,
    "camera.set": ControlsEvent,
    "settings.applied": SettingsEvent,
    "settings.refused": SettingsEvent,
    "settings.rolled_back": SettingsEvent,
}
"""All events. Those of a session contain its id in the envelope, as `session`."""
