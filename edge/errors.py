"""The project's errors, split by what the one who catches them can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.contract.codes import Code

if TYPE_CHECKING:
    from collections.abc import Sequence


class EdgeError(Exception):
    """Base of all; `code` is the same on the wire, in HTTP, in logs and in counters."""

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, code: Code | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class ConfigInvalid(EdgeError):
    """The operator's fault: every fault at once, each with its key path. Exit 78, no restart."""

    code = Code.BAD_MESSAGE

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class Unavailable(EdgeError):
    """May heal (camera stalled, broker lost): back off, then again."""


class CameraUnavailable(Unavailable):
    """The camera cannot be opened, or stopped delivering; the message is the cause in words."""

    code = Code.CAMERA_UNAVAILABLE
    retry_after_s = 5


class BrokerLost(Unavailable):
    """The broker cannot be reached, or the link to it broke. `retry_after_s`: a new try waits at least this."""

    retry_after_s: float = 0.0


class Rejected(EdgeError):
    """The peer's fault, or not now: a reply with the code, nothing else changes."""

    def __init__(self, code: Code, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
