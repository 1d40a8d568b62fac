"""The models of contract version 1. Unknown fields are ignored, so that either side can grow."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from edge.contract.codes import Code, EndReason  # noqa: TC001  pydantic reads the annotations at run time

VERSION = 1
COMMAND_LIMIT_BYTES = 32 * 1024
PAYLOAD_LIMIT_BYTES = 128 * 1024
PACKET_LIMIT_BYTES = 2 * PAYLOAD_LIMIT_BYTES
"""The largest packet that the device accepts, where the broker can be told (MQTT 5): it leaves out longer ones."""
LIFETIME_LIMIT_S = 300
CANDIDATES_LIMIT = 32

Id = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Command(_Message):
    """The envelope of every command; `body` is checked by the type's own model.

    `reply_to` is needed where there is no MQTT 5 response topic. `token` says for whom: a JWT that the backend signs.
    """

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
    """Open a session with a browser's offer.

    `session`: an id that the sender chooses, so that candidates can follow at once; else the device does. `trickle`
    false: the answer holds all of the device's candidates. `viewer` counts where authority is off; else the token's
    `sub` is who watches.
    """

    sdp: Annotated[str, Field(min_length=1)]
    session: SessionId | None = None
    viewer: Name | None = None
    trickle: bool = True
    quality: Literal["auto", "hd", "sd"] = "auto"
    ice_servers: Annotated[list[IceServer], Field(max_length=8)] = Field(default_factory=list)
    audio: Literal["off", "listen", "talk"] = "off"


class CandidateBody(_Message):
    """A candidate of one side, for the other. `candidate` null is the end of candidates."""

    session: SessionId
    candidate: Annotated[str, Field(max_length=512)] | None
    sdp_mid: Annotated[str, Field(max_length=64)] | None = None


class QualityBody(_Message):
    """Give a session the other quality. `auto` is HD, while the device does not know the viewer's path."""

    session: SessionId
    quality: Literal["auto", "hd", "sd"]


class CloseBody(_Message):
    """End a session."""

    session: SessionId


class BitrateRange(_Message):
    """What one quality's encoder may aim at, within the settings' range. Left out: as it was."""

    min_bps: Annotated[int, Field(gt=0)] | None = None
    max_bps: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_bps and self.max_bps and self.min_bps > self.max_bps:
            raise ValueError("min_bps is over max_bps")
        return self


class StreamBody(_Message):
    """Let viewers in from now on, or end all sessions and release the camera; either holds over restarts.

    The ranges are for `stream.start` alone, and hold until others are given.
    """

    reason: Annotated[str, Field(max_length=256)] | None = None
    hd: BitrateRange | None = None
    sd: BitrateRange | None = None


class Zoom(_Message):
    """A region of the camera's field, in fractions of it: 0, 0, 1, 1 is the whole. Equal sides keep shapes."""

    x: Annotated[float, Field(ge=0, lt=1)]
    y: Annotated[float, Field(ge=0, lt=1)]
    width: Annotated[float, Field(gt=0, le=1)]
    height: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.x + self.width > 1 + 1e-9 or self.y + self.height > 1 + 1e-9:
            raise ValueError("reaches beyond the field")
        return self


class ControlsBody(_Message):
    """Controls of the camera: what is given is set, null is the camera's own default again, what is left out stays.

    Which of them a camera has, and in which range, it says itself: in its refusal, and in `GET /api/v1/camera`.
    """

    exposure_mode: Literal["normal", "short", "long"] | None = None
    exposure_compensation: Annotated[float | None, Field(description="In EV.")] = None
    gain: Annotated[float | None, Field(description="Analogue gain; null: automatic.")] = None
    white_balance: Literal["auto", "incandescent", "tungsten", "fluorescent", "indoor", "daylight", "cloudy"] | None = (
        None
    )
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    sharpness: float | None = None
    autofocus: Literal["manual", "auto", "continuous"] | None = None
    lens_position: Annotated[float | None, Field(description="In dioptres; with autofocus manual.")] = None
    zoom: Zoom | None = None
    flip_horizontal: bool | None = None
    flip_vertical: bool | None = None
    fps: Annotated[int | None, Field(description="Pictures a second, up to the settings' rate.")] = None

    def given(self) -> dict[str, Any]:
        """Those that the message has, null included."""
        return self.model_dump(exclude_unset=True)


class SnapshotBody(_Message):
    """Take a picture.

    `width` in pixels, at most that of HD; without it 640 over MQTT, HD's own over HTTP. `quality` as of JPEG.
    """

    width: Annotated[int, Field(ge=16, le=1920)] | None = None
    quality: Annotated[int, Field(ge=1, le=95)] = 80


class SnapshotReply(_Message):
    """The picture, a JPEG."""

    jpeg_base64: str


class ControlsReply(_Message):
    """Every control that this camera has, with the value in force; null: its own choice."""

    controls: dict[str, Any]


class EmptyBody(_Message):
    """A question."""


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
    """The device's answer to an offer."""

    session: SessionId
    sdp: str
    limits: Limits


class ClosedBody(_Message):
    """A session has ended, and why."""

    session: SessionId
    reason: EndReason
    code: Code | None = None


class CameraNoticeBody(_Message):
    """The picture of a session stands still (`stalled`, with `code` and why), or moves again."""

    session: SessionId
    state: Literal["stalled", "live"]
    code: Code | None = None
    message: str | None = None


class SessionFigures(_Message):
    """One session, without who watches. Bitrate and loss are those of the last report interval.

    `state` is answering, connecting, live or closing.
    """

    session: SessionId
    state: str
    quality: Literal["hd", "sd"]
    path: str | None = None
    bitrate_bps: int | None = None
    loss: float | None = None
    since: AwareDatetime


class SessionInfo(SessionFigures):
    """One entry of `session.list`."""

    viewer: str


class SessionList(_Message):
    """Who watches."""

    sessions: list[SessionInfo]


class StreamStatus(_Message):
    """The operator's wish."""

    wanted: Literal["running", "stopped"]
    reason: str | None = None


class RecoveryStatus(_Message):
    """What was tried to bring the camera back, and how often.

    `reopens`: closed and opened again in its process; `restarts`: with a new one. `why` the `last` of them was tried.
    """

    stalls: int = 0
    reopens: int = 0
    restarts: int = 0
    last: Literal["reopen", "restart"] | None = None
    why: str | None = None
    at: AwareDatetime | None = None


class CameraStatus(_Message):
    """`state` is closed, opening, running, or failed (then `error` and `code` say why).

    `source` is picamera2, synthetic or file; `encoder` is v4l2 (a Pi's hardware), libx264 or file.
    `sd_error`: why there is no SD. `controls`: those that are set.
    """

    state: Literal["closed", "opening", "running", "failed"]
    source: str | None = None
    encoder: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    profile_level_id: str | None = None
    restarts: int = 0
    recovery: RecoveryStatus = RecoveryStatus()
    error: str | None = None
    code: Code | None = None
    sd_error: str | None = None
    controls: dict[str, Any] = Field(default_factory=dict)


class ViewersStatus(_Message):
    """How many watch, and may. `sender` is own, or stock where something for it is missing (`sender_fault`)."""

    connected: int
    limit: int
    sender: Literal["own", "stock"] | None = None
    sender_fault: str | None = None


class BrokerStatus(_Message):
    """The link to the broker, as the local page sees it. `error` while connected: what the broker does not grant."""

    connected: bool
    error: str | None = None


class LastError(_Message):
    """The latest refusal or failure."""

    code: Code
    message: str
    at: AwareDatetime


class Vitals(_Message):
    """The machine and the daemon's two processes. Null: the machine does not have it."""

    cpu_celsius: Annotated[float | None, Field(description="Of the processor; a Pi slows down from 80 on.")] = None
    under_voltage: Annotated[bool | None, Field(description="The supply was too weak in the last seconds.")] = None
    load_1min: Annotated[float | None, Field(description="The machine's load average of the last minute.")] = None
    memory_available_bytes: Annotated[int | None, Field(description="What programs can still get.")] = None
    memory_total_bytes: Annotated[int | None, Field(description="The machine's memory.")] = None
    disk_free_bytes: Annotated[int | None, Field(description="Free where the state is kept.")] = None
    uptime_s: Annotated[float | None, Field(description="Since the machine started.")] = None
    daemon_memory_bytes: Annotated[int | None, Field(description="What the daemon holds in memory.")] = None
    daemon_cpu_s: Annotated[float | None, Field(description="Processor time of the daemon so far.")] = None
    camera_memory_bytes: Annotated[int | None, Field(description="What the camera process holds in memory.")] = None
    camera_cpu_s: Annotated[float | None, Field(description="Processor time of the camera process so far.")] = None


class Status(_Message):
    """What is true now; retained. `counters` are totals since the daemon started.

    It is sent when something changed, but not for `vitals` and `counters` alone: they are as old as `at`.
    """

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
    vitals: Vitals | None = None
    counters: dict[str, int] = Field(default_factory=dict)


class Telemetry(_Message):
    """Figures, every `telemetry_s`. `fps`: HD pictures a second since the one before. `counters` as in `Status`."""

    v: Literal[1] = 1
    device: str
    at: AwareDatetime
    uptime_s: Annotated[float, Field(description="Since the daemon started.")]
    camera: Literal["closed", "opening", "running", "failed"]
    fps: float
    viewers: int
    sessions: list[SessionFigures]
    vitals: Vitals
    counters: dict[str, int]


class Event(_Message):
    """What happened. `session.*`, `camera.*`, `stream.*`, `daemon.*`, with `at` the device's wall clock.

    It comes at least once, in order, however long the link was away; one that came before has the same `id`.
    """

    v: Literal[1] = 1
    id: Id
    type: str
    at: AwareDatetime
    session: SessionId | None = None
    body: dict[str, Any] = Field(default_factory=dict)


BODIES: dict[str, type[BaseModel]] = {
    "session.offer": OfferBody,
    "session.candidate": CandidateBody,
    "session.quality": QualityBody,
    "session.close": CloseBody,
    "session.list": EmptyBody,
    "stream.start": StreamBody,
    "stream.stop": StreamBody,
    "camera.set": ControlsBody,
    "camera.snapshot": SnapshotBody,
    "status.get": EmptyBody,
}
"""The commands that are built."""

RESERVED = frozenset(
    {
        "session.request_offer",
        "session.answer",
        "publish.start",
        "publish.stop",
    },
)
"""Commands of the contract that answer `unsupported` until they are built."""
