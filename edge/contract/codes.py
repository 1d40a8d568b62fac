"""The one list of codes, for MQTT, HTTP, logs and counters."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why something was refused or failed."""

    BAD_MESSAGE = "bad_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNSUPPORTED = "unsupported"
    BAD_OFFER = "bad_offer"
    NO_COMMON_CODEC = "no_common_codec"
    TOO_LARGE = "too_large"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    CLOCK_UNSET = "clock_unset"
    FORBIDDEN = "forbidden"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_SESSION = "unknown_session"
    BUSY = "busy"
    STOPPED = "stopped"
    CAMERA_UNAVAILABLE = "camera_unavailable"
    CAMERA_STALLED = "camera_stalled"
    AUDIO_UNAVAILABLE = "audio_unavailable"
    TALK_BUSY = "talk_busy"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    INTERNAL = "internal"

    @property
    def http_status(self) -> int:
        return _HTTP_STATUS[self]

    @property
    def when(self) -> str:
        """When it is sent, for the documents."""
        return _DESCRIPTIONS[self][0]

    @property
    def remedy(self) -> str:
        """What the sender does about it, for the documents."""
        return _DESCRIPTIONS[self][1]


_HTTP_STATUS = {
    Code.BAD_MESSAGE: 400,
    Code.UNSUPPORTED_VERSION: 400,
    Code.UNSUPPORTED: 501,
    Code.BAD_OFFER: 400,
    Code.NO_COMMON_CODEC: 406,
    Code.TOO_LARGE: 413,
    Code.EXPIRED: 400,
    Code.REPLAYED: 409,
    Code.CLOCK_UNSET: 503,
    Code.FORBIDDEN: 403,
    Code.UNAUTHORIZED: 401,
    Code.UNKNOWN_SESSION: 404,
    Code.BUSY: 503,
    Code.STOPPED: 503,
    Code.CAMERA_UNAVAILABLE: 503,
    Code.CAMERA_STALLED: 503,
    Code.AUDIO_UNAVAILABLE: 503,
    Code.TALK_BUSY: 503,
    Code.RATE_LIMITED: 429,
    Code.TIMEOUT: 504,
    Code.INTERNAL: 500,
}


_DESCRIPTIONS = {
    Code.BAD_MESSAGE: (
        "the message is not JSON, or a field is missing or wrong; `message` names the field",
        "correct the sender",
    ),
    Code.UNSUPPORTED_VERSION: ("`v` is not 1", "send version 1"),
    Code.UNSUPPORTED: (
        "the command is reserved, or this camera does not offer the quality",
        "do not send the command to this device",
    ),
    Code.BAD_OFFER: ("the SDP cannot be answered", "correct the page, or what changes the SDP on its way"),
    Code.NO_COMMON_CODEC: (
        "the offer has no H.264 format that the camera's stream fits",
        "ask the viewer to use another browser",
    ),
    Code.TOO_LARGE: (
        "the command is larger than 32 KiB, or the picture does not fit into a message",
        "send less, or request a smaller picture",
    ),
    Code.EXPIRED: (
        "the command's `expires_at` or the token's `exp` has passed",
        "make a new command and a new token; if that fails, too, check both clocks",
    ),
    Code.REPLAYED: (
        "the token has already opened a session, or the `id` was used before",
        "use a new token and a new `id`",
    ),
    Code.CLOCK_UNSET: (
        "the device does not know the time yet, so it cannot check tokens",
        "wait and retry; on a device without NTP set `auth.trust_clock`",
    ),
    Code.FORBIDDEN: (
        "the token's scope, `client` or `sub` does not allow this, or an ICE server is not on the device's list",
        "do not retry",
    ),
    Code.UNAUTHORIZED: (
        "there is no token, or it is not valid: signature, `kid`, `aud`, `nbf`, a missing claim, `exp` too far ahead",
        "sign a new token; `message` says what is wrong",
    ),
    Code.UNKNOWN_SESSION: ("the session does not exist, or has ended", "treat it as closed and make a new offer"),
    Code.BUSY: ("the limit of viewers is reached", "inform the viewer, wait, and make a new offer"),
    Code.STOPPED: (
        "the stream was stopped, or the device is shutting down",
        "inform the viewer; `stream.start` admits viewers again",
    ),
    Code.CAMERA_UNAVAILABLE: ("the camera cannot be opened; `message` says why", "wait and retry"),
    Code.CAMERA_STALLED: (
        "the camera stopped delivering pictures",
        "keep the session and show that the picture stands still",
    ),
    Code.AUDIO_UNAVAILABLE: ("this device has no audio", "offer without audio"),
    Code.TALK_BUSY: ("somebody else is talking; reserved until there is audio", "wait and retry"),
    Code.RATE_LIMITED: (
        "too many commands from this reply client or in total, or too many candidates",
        "wait and retry",
    ),
    Code.TIMEOUT: (
        "no answer was ready in time; as the reason of an end: the connection failed",
        "make a new offer, once",
    ),
    Code.INTERNAL: ("the device has a fault, or is shutting down", "retry once"),
}


class EndReason(StrEnum):
    """Why a session ended: on `session.closed`, in events and in logs."""

    VIEWER_CLOSED = "viewer_closed"
    CLOSED_BY_BACKEND = "closed_by_backend"
    CONNECT_TIMEOUT = "connect_timeout"
    ANSWER_TIMEOUT = "answer_timeout"
    CONNECTION_LOST = "connection_lost"
    REFUSED = "refused"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    INTERNAL = "internal"

    @property
    def code(self) -> Code | None:
        """The code that goes with it; None for an end that somebody asked for."""
        return _END_CODE.get(self)

    @property
    def when(self) -> str:
        """When it is sent, for the documents."""
        return _END_DESCRIPTIONS[self]


_END_CODE = {
    EndReason.CONNECT_TIMEOUT: Code.TIMEOUT,
    EndReason.ANSWER_TIMEOUT: Code.TIMEOUT,
    EndReason.CONNECTION_LOST: Code.TIMEOUT,
    EndReason.STOPPED: Code.STOPPED,
    EndReason.SHUTDOWN: Code.STOPPED,
    EndReason.INTERNAL: Code.INTERNAL,
}

_END_DESCRIPTIONS = {
    EndReason.VIEWER_CLOSED: "its owner closed it",
    EndReason.CLOSED_BY_BACKEND: "somebody with the scope `manage` closed it",
    EndReason.CONNECT_TIMEOUT: "the viewer did not connect; its network may need a TURN server",
    EndReason.ANSWER_TIMEOUT: "the camera did not open in time",
    EndReason.CONNECTION_LOST: "the viewer or its network disappeared half a minute before",
    EndReason.REFUSED: "the offer was refused; the error reply is the only message about it",
    EndReason.STOPPED: "the stream was stopped",
    EndReason.SHUTDOWN: "the device is shutting down; make a new offer when it is online again",
    EndReason.INTERNAL: "the device has a fault; make a new offer",
}
