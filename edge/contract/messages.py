"""The models of contract version 1. Unknown fields are ignored, so that either side can grow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from edge.contract.codes import Code, EndReason  # noqa: TC001  pydantic reads the annotations at run time

VERSION = 1
COMMAND_LIMIT_BYTES = 32 * 1024
PAYLOAD_LIMIT_BYTES = 128 * 1024
LIFETIME_LIMIT_S = 300
CANDIDATES_LIMIT = 32

Id = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Command(_Message):
    """The envelope of every command; `body` is checked by the type's own model."""

    v: Literal[1]
    id: Id
    type: Name
    expires_at: AwareDatetime
    reply_to: str | None = None
    token: SecretStr | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class IceServer(_Message):
    """One entry of an ICE server list, as in the browser's RTCIceServer."""

    urls: (
        Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=8)]
        | Annotated[str, Field(max_length=256)]
    )
    username: Annotated[str, Field(max_length=512)] | None = None
    credential: SecretStr | None = None


class OfferBody(_Message):
    """`session.offer`."""

    sdp: Annotated[str, Field(min_length=1)]
    session: SessionId | None = None
    viewer: Name | None = None
    trickle: bool = True
    quality: Literal["auto", "hd", "sd"] = "auto"
    ice_servers: Annotated[list[IceServer], Field(max_length=8)] = Field(default_factory=list)
    audio: Literal["off", "listen", "talk"] = "off"


class CandidateBody(_Message):
    """`session.candidate`, both ways. `candidate` null is the end of candidates."""

    session: SessionId
    candidate: Annotated[str, Field(max_length=512)] | None
    sdp_mid: Annotated[str, Field(max_length=64)] | None = None


class CloseBody(_Message):
    """`session.close`."""

    session: SessionId


class StreamBody(_Message):
    """`stream.start` and `stream.stop`."""

    reason: Annotated[str, Field(max_length=256)] | None = None


class EmptyBody(_Message):
    """Commands that take nothing."""


class ErrorInfo(_Message):
    """Why a command was refused."""

    code: Code
    message: str
    retry_after_s: int | None = None


class Reply(_Message):
    """What the device sends to a reply topic: an answer, an error, or a message about a session."""

    v: Literal[1] = 1
    id: str
    type: str
    ok: bool
    body: dict[str, Any] | None = None
    error: ErrorInfo | None = None


class Limits(_Message):
    """What the viewer of a session has to keep to."""

    viewers: int
    candidates: int = CANDIDATES_LIMIT


class AnswerBody(_Message):
    """The reply to `session.offer`."""

    session: SessionId
    sdp: str
    limits: Limits


class ClosedBody(_Message):
    """`session.closed`: the device ended the session, or says that it is gone."""

    session: SessionId
    reason: EndReason
    code: Code | None = None


class SessionInfo(_Message):
    """One entry of `session.list`. Bitrate and loss are those of the last report interval."""

    session: SessionId
    viewer: str
    state: str
    quality: Literal["hd", "sd"]
    path: str | None = None
    bitrate_bps: int | None = None
    loss: float | None = None
    since: AwareDatetime


class StreamStatus(_Message):
    """The operator's wish."""

    wanted: Literal["running", "stopped"]
    reason: str | None = None


class CameraStatus(_Message):
    """`state` is closed, opening, running, or failed (then `error` says why, in words)."""

    state: Literal["closed", "opening", "running", "failed"]
    source: str
    encoder: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    profile_level_id: str | None = None
    restarts: int = 0
    error: str | None = None


class ViewersStatus(_Message):
    """How many watch, and may."""

    connected: int
    limit: int


class BrokerStatus(_Message):
    """The link to the broker, as the local page sees it."""

    connected: bool
    error: str | None = None


class LastError(_Message):
    """The latest refusal or failure."""

    code: Code
    message: str
    at: AwareDatetime


class Status(_Message):
    """What is true now; retained. `counters` are totals since the daemon started."""

    v: Literal[1] = 1
    device: str
    online: bool
    at: AwareDatetime
    version: str | None = None
    started_at: AwareDatetime | None = None
    stream: StreamStatus | None = None
    camera: CameraStatus | None = None
    viewers: ViewersStatus | None = None
    broker: BrokerStatus | None = None
    last_error: LastError | None = None
    counters: dict[str, int] = Field(default_factory=dict)


class Event(_Message):
    """What happened. `session.*`, `camera.*`, `stream.*`, with `at` the device's wall clock."""

    v: Literal[1] = 1
    id: Id
    type: str
    at: AwareDatetime
    session: SessionId | None = None
    body: dict[str, Any] = Field(default_factory=dict)


BODIES: dict[str, type[BaseModel]] = {
    "session.offer": OfferBody,
    "session.candidate": CandidateBody,
    "session.close": CloseBody,
    "session.list": EmptyBody,
    "stream.start": StreamBody,
    "stream.stop": StreamBody,
    "status.get": EmptyBody,
}
"""The commands that are built."""

RESERVED = frozenset(
    {
        "session.request_offer",
        "session.answer",
        "session.quality",
        "camera.set",
        "camera.snapshot",
        "publish.start",
        "publish.stop",
    },
)
"""Commands of the contract that answer `unsupported` until they are built."""
