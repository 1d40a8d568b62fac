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
        """When it comes, for the documents."""
        return _TOLD[self][0]

    @property
    def remedy(self) -> str:
        """What the asker does about it, for the documents."""
        return _TOLD[self][1]


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


_TOLD = {
    Code.BAD_MESSAGE: ("no JSON, or a field is missing or wrong: the message says which", "a bug of the sender"),
    Code.UNSUPPORTED_VERSION: ("`v` is not 1", "speak version 1"),
    Code.UNSUPPORTED: ("a command that is reserved, or a quality that this camera has not", "do without"),
    Code.BAD_OFFER: ("the SDP cannot be answered", "a bug of the page, or of what changed the SDP on its way"),
    Code.NO_COMMON_CODEC: ("the offer has no H.264 that the camera's stream fits", "tell the viewer: another browser"),
    Code.TOO_LARGE: ("a command of more than 32 KiB, or a picture that fits no message", "send, or ask for, less"),
    Code.EXPIRED: ("the command's `expires_at`, or the token's `exp`, has passed", "new ones; else look at the clocks"),
    Code.REPLAYED: ("the token has opened a session, or the `id` was used before", "a new token and a new `id`"),
    Code.CLOCK_UNSET: ("the device does not know the time yet, and cannot check tokens", "wait, ask again"),
    Code.FORBIDDEN: (
        "the token's scope, `client` or `sub` does not go with this, or an ICE server is none of the allowed",
        "asking again does not help",
    ),
    Code.UNAUTHORIZED: (
        "no token, or none that counts: signature, `kid`, `aud`, `nbf`, a missing claim, `exp` too far ahead",
        "sign another; the message says what is wrong",
    ),
    Code.UNKNOWN_SESSION: ("there is no such session, or no longer", "count it as closed, offer anew"),
    Code.BUSY: ("as many watch as may", "tell the viewer, wait, offer again"),
    Code.STOPPED: ("the stream was stopped, or the device shuts down", "tell the viewer; `stream.start` lets in again"),
    Code.CAMERA_UNAVAILABLE: (
        "the camera cannot be opened: the message says why",
        "wait, ask again",
    ),
    Code.CAMERA_STALLED: ("the camera stopped giving pictures", "keep the session, show that it stands still"),
    Code.AUDIO_UNAVAILABLE: ("this device has no audio", "offer without"),
    Code.TALK_BUSY: ("somebody else talks; reserved until there is audio", "wait, ask again"),
    Code.RATE_LIMITED: ("too many commands, of this reply client or in all, or too many candidates", "wait, ask again"),
    Code.TIMEOUT: ("no answer was ready in time; as the reason of an end: no connection", "offer again, once"),
    Code.INTERNAL: ("a fault of the device, or it shuts down", "ask again, once"),
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
        """When it comes, for the documents."""
        return _END_TOLD[self]


_END_CODE = {
    EndReason.CONNECT_TIMEOUT: Code.TIMEOUT,
    EndReason.ANSWER_TIMEOUT: Code.TIMEOUT,
    EndReason.CONNECTION_LOST: Code.TIMEOUT,
    EndReason.STOPPED: Code.STOPPED,
    EndReason.SHUTDOWN: Code.STOPPED,
    EndReason.INTERNAL: Code.INTERNAL,
}

_END_TOLD = {
    EndReason.VIEWER_CLOSED: "its owner closed it",
    EndReason.CLOSED_BY_BACKEND: "another closed it, who may `manage`",
    EndReason.CONNECT_TIMEOUT: "the viewer did not connect: its network, or no TURN server",
    EndReason.ANSWER_TIMEOUT: "the camera did not open in time",
    EndReason.CONNECTION_LOST: "the viewer went away without a word, or its network, half a minute before",
    EndReason.REFUSED: "the offer was refused; told by its error reply alone",
    EndReason.STOPPED: "the stream was stopped",
    EndReason.SHUTDOWN: "the device shuts down; offer again once it is back",
    EndReason.INTERNAL: "a fault of the device; offer again",
}
