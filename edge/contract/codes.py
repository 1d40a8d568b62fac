"""The error codes and end reasons, for MQTT, HTTP, logs and counters."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why a command was refused or something failed."""

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
    NOT_KEPT = "not_kept"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> Code | None:
        """A value of a newer device is read as `internal`, so that its message is not lost."""
        return cls.INTERNAL if isinstance(value, str) else None

    @property
    def http_status(self) -> int:
        return _HTTP_STATUS[self]

    @property
    def when(self) -> str:
        """When it is sent, for the documentation."""
        return _DESCRIPTIONS[self][0]

    @property
    def remedy(self) -> str:
        """What the sender should do, for the documentation."""
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
    Code.NOT_KEPT: 507,
    Code.INTERNAL: 500,
}


_DESCRIPTIONS = {
    Code.BAD_MESSAGE: (
        "the message is not JSON, or a field is missing or invalid; `message` names the field",
        "correct the sender",
    ),
    Code.UNSUPPORTED_VERSION: ("`v` is not 1", "send version 1"),
    Code.UNSUPPORTED: (
        "the command is reserved, or this camera does not offer the quality",
        "do not send the command to this device",
    ),
    Code.BAD_OFFER: ("the SDP cannot be answered", "correct the page, or the software that changes the SDP in between"),
    Code.NO_COMMON_CODEC: (
        "the offer has no H.264 format whose decoders play the camera's stream",
        "ask the viewer to use another browser",
    ),
    Code.TOO_LARGE: (
        "the command is larger than 32 KiB, or the picture does not fit in a message",
        "send less, or request a smaller picture",
    ),
    Code.EXPIRED: (
        "the command's `expires_at` or the token's `exp` has passed",
        "send a new command with a new token; if that fails, check both clocks",
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
    Code.BUSY: (
        "the limit of viewers is reached, or that of this viewer's sessions",
        "inform the viewer, wait, and make a new offer",
    ),
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
    Code.TALK_BUSY: ("another viewer is talking; reserved until audio is implemented", "wait and retry"),
    Code.RATE_LIMITED: (
        (
            "too many commands from this viewer or in total, too many candidates or requests to the camera; for "
            "`session.quality`: a later change replaced this one"
        ),
        "wait and retry; do not repeat a replaced change",
    ),
    Code.TIMEOUT: (
        "there was no answer in time; in `session.closed`: the connection failed",
        "make a new offer, once",
    ),
    Code.NOT_KEPT: (
        "the stream was started or stopped, but the device's disk could not be written: a restart may undo it",
        "tell the operator; free space on the device or replace its card, then repeat the command with a new `id`",
    ),
    Code.INTERNAL: ("the device has a fault, or is shutting down", "retry once"),
}


class EndReason(StrEnum):
    """Why a session ended: in `session.closed`, in events and in logs."""

    VIEWER_CLOSED = "viewer_closed"
    CLOSED_BY_BACKEND = "closed_by_backend"
    CONNECT_TIMEOUT = "connect_timeout"
    ANSWER_TIMEOUT = "answer_timeout"
    CONNECTION_LOST = "connection_lost"
    RELAY_LOST = "relay_lost"
    REFUSED = "refused"
    REPLACED = "replaced"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> EndReason | None:
        """A value of a newer device is read as `internal`, so that its message is not lost."""
        return cls.INTERNAL if isinstance(value, str) else None

    @property
    def code(self) -> Code | None:
        """The matching code. None: a client requested the end."""
        return _END_CODE.get(self)

    @property
    def when(self) -> str:
        """When it is sent, for the documentation."""
        return _END_DESCRIPTIONS[self]


_END_CODE = {
    EndReason.CONNECT_TIMEOUT: Code.TIMEOUT,
    EndReason.ANSWER_TIMEOUT: Code.TIMEOUT,
    EndReason.CONNECTION_LOST: Code.TIMEOUT,
    EndReason.RELAY_LOST: Code.TIMEOUT,
    EndReason.REPLACED: Code.BUSY,
    EndReason.STOPPED: Code.STOPPED,
    EndReason.SHUTDOWN: Code.STOPPED,
    EndReason.INTERNAL: Code.INTERNAL,
}

_END_DESCRIPTIONS = {
    EndReason.VIEWER_CLOSED: "its owner closed it",
    EndReason.CLOSED_BY_BACKEND: "a client with the scope `manage` closed it",
    EndReason.CONNECT_TIMEOUT: "the viewer did not connect; its network may need a TURN server",
    EndReason.ANSWER_TIMEOUT: "the camera did not open in time",
    EndReason.CONNECTION_LOST: "the viewer's connection was lost (no ICE consent for 30 s)",
    EndReason.RELAY_LOST: "the TURN server ended the device's relay, for example because its credentials expired; "
    "make a new offer with new ones",
    EndReason.REFUSED: "the offer was refused; the error reply is the only message about the session",
    EndReason.REPLACED: "it was not connected yet, and gave way to another offer of its viewer, or to another viewer",
    EndReason.STOPPED: "the stream was stopped",
    EndReason.SHUTDOWN: "the device is shutting down; make a new offer when it is online again",
    EndReason.INTERNAL: "the device has a fault; make a new offer",
}
