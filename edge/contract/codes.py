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


_END_CODE = {
    EndReason.CONNECT_TIMEOUT: Code.TIMEOUT,
    EndReason.ANSWER_TIMEOUT: Code.TIMEOUT,
    EndReason.CONNECTION_LOST: Code.TIMEOUT,
    EndReason.STOPPED: Code.STOPPED,
    EndReason.SHUTDOWN: Code.STOPPED,
    EndReason.INTERNAL: Code.INTERNAL,
}
