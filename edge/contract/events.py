"""The bodies of events, by the event's type."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edge.contract.codes import Code, EndReason  # noqa: TC001  pydantic reads the annotations at run time


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DaemonStartedEvent(_Body):
    """The daemon was started; and how its run before ended. Null: there was none."""

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
    """The operator's wish has changed; with the reason that was given."""

    reason: str | None = None


class CameraBackEvent(_Body):
    """Pictures come again. The counts are totals since the daemon started."""

    reopens: int
    restarts: int


class CameraRecoveringEvent(CameraBackEvent):
    """The camera is opened again, in its process or with a new one; `why`."""

    tried: Literal["reopen", "restart"] | None
    why: str


class CameraLostEvent(CameraBackEvent):
    """No pictures come, and why."""

    error: str
    code: Code


class SdFailedEvent(_Body):
    """There is no SD until the camera is opened anew, and why."""

    error: str


class ControlsEvent(_Body):
    """The controls that are set now, by whomever."""

    controls: dict[str, Any]


class SettingsEvent(_Body):
    """Settings that were desired in the shadow, in a version of it, are applied, refused or put back; and why."""

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
"""All events. Those of a session carry it in the envelope, as `session`."""
