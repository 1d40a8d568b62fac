"""The messages of contract version 1. Unknown fields are ignored, so that either side can add some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from edge.contract.codes import Code, EndReason  # noqa: TC001  pydantic reads the annotations at run time

if TYPE_CHECKING:
    from datetime import datetime

VERSION = 1
COMMAND_LIMIT_BYTES = 32 * 1024
PAYLOAD_LIMIT_BYTES = 128 * 1024
PACKET_LIMIT_BYTES = 2 * PAYLOAD_LIMIT_BYTES
"""The largest packet that the device accepts. An MQTT 5 broker does not deliver longer ones."""
LIFETIME_LIMIT_S = 300
CANDIDATES_LIMIT = 32

Id = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Command(_Message):
    """The envelope of every command. The type's own model checks `body`.

    `reply_to` is required without an MQTT 5 response topic. `token` is a JWT that the backend signs; it names the
    viewer.
    """

    v: Literal[1]
    id: Id
    type: Name
    expires_at: AwareDatetime
    reply_to: str | None = None
    token: SecretStr | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class IceServer(_Message):
    """One entry of an ICE server list, as in the browser's RTCIceServer.

    The names in AWS's GetIceServerConfig (`Uris`, `Username`, `Password`) are accepted, too.
    """

    urls: (
        Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=8)]
        | Annotated[str, Field(max_length=256)]
    )
    username: Annotated[str, Field(max_length=512)] | None = None
    credential: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_aws(cls, fields: Any) -> Any:  # noqa: ANN401  anything that a client sent
        if not isinstance(fields, dict) or "Uris" not in fields:
            return fields
        names = {"Uris": "urls", "Username": "username", "Password": "credential"}
        return {names.get(name, name): value for name, value in fields.items()}


class OfferBody(_Message):
    """Open a session with a browser's offer.

    `session`: an id that the sender chooses, so that it can send candidates before the answer; without it the device
    chooses one. `trickle` false: the answer contains all of the device's candidates. `viewer` names the viewer if
    authority is off; otherwise the token's `sub` does.
    """

    sdp: Annotated[str, Field(min_length=1)]
    session: SessionId | None = None
    viewer: Name | None = None
    trickle: bool = True
    quality: Literal["auto", "hd", "sd"] = "auto"
    ice_servers: Annotated[list[IceServer], Field(max_length=8)] = Field(default_factory=list)
    audio: Literal["off", "listen", "talk"] = "off"


class CandidateBody(_Message):
    """An ICE candidate of the sender. `candidate` null is the end of candidates."""

    session: SessionId
    candidate: Annotated[str, Field(max_length=512)] | None
    sdp_mid: Annotated[str, Field(max_length=255)] | None = None


class QualityBody(_Message):
    """Change the quality of a session. `auto` is HD until the device can measure the viewer's path."""

    session: SessionId
    quality: Literal["auto", "hd", "sd"]


class CloseBody(_Message):
    """End a session."""

    session: SessionId


class BitrateRange(_Message):
    """The target bitrates of one quality's encoder, within the range of the settings. Left out: unchanged."""

    min_bps: Annotated[int, Field(gt=0)] | None = None
    max_bps: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_bps and self.max_bps and self.min_bps > self.max_bps:
            raise ValueError("min_bps is greater than max_bps")
        return self


class StreamBody(_Message):
    """Admit viewers, or end all sessions and release the camera. Both survive a restart.

    The ranges are for `stream.start` only. They stay in force until a command changes them.
    """

    reason: Annotated[str, Field(max_length=256)] | None = None
    hd: BitrateRange | None = None
    sd: BitrateRange | None = None


class Zoom(_Message):
    """A region of the field of view, in fractions: 0, 0, 1, 1 is all of it. Equal sides keep the aspect ratio."""

    x: Annotated[float, Field(ge=0, lt=1)]
    y: Annotated[float, Field(ge=0, lt=1)]
    width: Annotated[float, Field(gt=0, le=1)]
    height: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.x + self.width > 1 + 1e-9 or self.y + self.height > 1 + 1e-9:
            raise ValueError("the region exceeds the field of view")
        return self


class ControlsBody(_Message):
    """Set controls of the camera. Null resets one to the camera's default. One that is left out is unchanged.

    The camera determines its controls and their ranges. `GET /api/v1/camera` and the error message list them.
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
    lens_position: Annotated[float | None, Field(description="In dioptres; requires autofocus manual.")] = None
    zoom: Zoom | None = None
    flip_horizontal: bool | None = None
    flip_vertical: bool | None = None
    fps: Annotated[int | None, Field(description="Frames per second, up to the rate of the settings.")] = None

    def given(self) -> dict[str, Any]:
        """The controls that the message contains, including null."""
        return self.model_dump(exclude_unset=True)


class SnapshotBody(_Message):
    """Take a picture.

    `width` in pixels, at most that of HD; default: 640 over MQTT, that of HD over HTTP. `quality`: of the JPEG.
    """

    width: Annotated[int, Field(ge=16, le=1920)] | None = None
    quality: Annotated[int, Field(ge=1, le=95)] = 80


class SnapshotReply(_Message):
    """A picture as a JPEG."""

    jpeg_base64: str


class ControlsReply(_Message):
    """Every control of this camera with its present value. Null: the camera chooses the value."""

    controls: dict[str, Any]


class EmptyBody(_Message):
    """Request information; no fields."""


class ErrorInfo(_Message):
    """Why a command was refused."""

    code: Code
    message: str
    retry_after_s: int | None = None


class Reply(_Message):
    """The envelope of every message on a reply topic: an answer, an error, or a message about a session."""

    v: Literal[1] = 1
    id: str
    type: str
    ok: bool
    body: dict[str, Any] | None = None
    error: ErrorInfo | None = None


LeftOutReason = Literal["malformed", "not_allowed", "port_not_allowed", "unsupported", "too_many"]


class IceServerLeftOut(_Message):
    """A URL of `ice_servers` that the device does not use. `server`: its host, or its place in the list."""

    server: str
    reason: LeftOutReason


class Limits(_Message):
    """The limits of a session. `ice_servers_left_out`: the URLs that are not used."""

    viewers: int
    candidates: int = CANDIDATES_LIMIT
    ice_servers_left_out: list[IceServerLeftOut] = Field(default_factory=list)


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
    """The picture of a session is frozen (`stalled`, with `code` and `message`), or moves again (`live`)."""

    session: SessionId
    state: Literal["stalled", "live"]
    code: Code | None = None
    message: str | None = None


class SessionFigures(_Message):
    """One session, without its viewer. Bitrate and loss are those of the latest report interval.

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
    """All sessions, with their viewers."""

    sessions: list[SessionInfo]


class StreamStatus(_Message):
    """The state that an operator requested for the stream, with the reason that was given."""

    wanted: Literal["running", "stopped"]
    reason: str | None = None


class RecoveryStatus(_Message):
    """Attempts to recover the camera, as totals since the daemon started.

    `reopens`: the source was reopened in the same process; `restarts`: in a new process. `why`: the cause of the `last`
    attempt.
    """

    stalls: int = 0
    reopens: int = 0
    restarts: int = 0
    last: Literal["reopen", "restart"] | None = None
    why: str | None = None
    at: AwareDatetime | None = None


class CameraStatus(_Message):
    """The camera. `state` is closed, opening, running, or failed (`error` and `code` give the cause).

    `source` is picamera2, synthetic or file; `encoder` is v4l2 (a Pi's hardware), libx264 or file.
    `sd_error`: why SD is not available. `controls`: the controls that were set.
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
    """Number and limit of viewers. `sender`: own, or aiortc's (stock) if own cannot work (`sender_fault`)."""

    connected: int
    limit: int
    sender: Literal["own", "stock"] | None = None
    sender_fault: str | None = None


class BrokerStatus(_Message):
    """The link to the broker, for the local page. `error` while connected: what the broker did not grant."""

    connected: bool
    error: str | None = None


class LastError(_Message):
    """The device's own latest failure. Commands that it refused are in `LastRefusal`."""

    code: Code
    message: str
    at: AwareDatetime


class LastRefusal(_Message):
    """The latest command or settings document that the device refused; `counters` has the totals (`refused_...`).

    `type`: the command's type, or `settings`; null: not a type of this contract. `message` is null for commands: every
    subscriber reads the status, and the message may name what one client sent.
    """

    code: Code
    type: str | None
    message: str | None = None
    at: AwareDatetime


class Vitals(_Message):
    """The machine and the daemon's two processes. Null: the machine does not provide the value."""

    cpu_celsius: Annotated[float | None, Field(description="CPU temperature; a Pi throttles from 80 on.")] = None
    under_voltage: Annotated[bool | None, Field(description="The supply voltage was too low in the last seconds.")] = (
        None
    )
    load_1min: Annotated[float | None, Field(description="The machine's load average of the last minute.")] = None
    memory_available_bytes: Annotated[int | None, Field(description="Memory that programs can still allocate.")] = None
    memory_total_bytes: Annotated[int | None, Field(description="The machine's memory.")] = None
    disk_free_bytes: Annotated[int | None, Field(description="Free space on the disk of the state directory.")] = None
    uptime_s: Annotated[float | None, Field(description="Since the machine started.")] = None
    daemon_memory_bytes: Annotated[int | None, Field(description="Resident memory of the daemon.")] = None
    daemon_cpu_s: Annotated[float | None, Field(description="CPU time of the daemon since it started.")] = None
    camera_memory_bytes: Annotated[int | None, Field(description="Resident memory of the camera process.")] = None
    camera_cpu_s: Annotated[float | None, Field(description="CPU time of the camera process since it started.")] = None


class Status(_Message):
    """The device's state; retained. `counters` are totals since the daemon started.

    It is sent on every change and every few minutes, but not for `vitals`, `counters` and `last_refusal` alone: they
    are as old as `at`. After `valid_until` the device's state is unknown; null: it never expires.
    """

    v: Literal[1] = 1
    device: str
    online: bool
    at: AwareDatetime
    valid_until: AwareDatetime | None = None
    version: str
    started_at: AwareDatetime
    stream: StreamStatus
    camera: CameraStatus
    viewers: ViewersStatus
    broker: BrokerStatus
    last_error: LastError | None = None
    last_refusal: LastRefusal | None = None
    vitals: Vitals
    counters: dict[str, int]

    def expired(self, now: datetime) -> bool:
        """Whether the device's state is unknown at `now`."""
        return self.valid_until is not None and now >= self.valid_until


class Offline(_Message):
    """The last will, on the status topic; retained. The broker sends it when the link breaks.

    `at` is the time at which the daemon started. It never expires. What a last will cannot know is null.
    """

    v: Literal[1] = 1
    device: str
    online: Literal[False] = False
    at: AwareDatetime
    version: str
    started_at: None = None
    stream: None = None
    camera: None = None
    viewers: None = None
    broker: None = None
    last_error: None = None
    vitals: None = None
    counters: dict[str, int] = Field(default_factory=dict)


def read_status(payload: bytes) -> Status | Offline:
    """Read a message of the status topic. Raises: ValidationError: it is neither."""
    return _STATUS_TOPIC.validate_json(payload)


_STATUS_TOPIC: TypeAdapter[Status | Offline] = TypeAdapter(
    Annotated[Status | Offline, Field(union_mode="left_to_right")]
)


class Telemetry(_Message):
    """Figures, every `telemetry_s`. `fps`: HD frames per second since the last message. `counters` as in `Status`."""

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
    """Something happened: `session.*`, `camera.*`, `stream.*`, `settings.*`, `daemon.*`. `at`: the device's clock.

    Events are delivered at least once and in order, also after a lost link. A repeated event has the same `id`.
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
"""The implemented commands."""

RESERVED = frozenset(
    {
        "session.request_offer",
        "session.answer",
        "publish.start",
        "publish.stop",
    },
)
"""Commands that are rejected as `unsupported` until they are implemented."""
