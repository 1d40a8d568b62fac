"""The project's errors, one kind for each way to handle them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.contract.codes import Code

if TYPE_CHECKING:
    from collections.abc import Sequence


class EdgeError(Exception):
    """The base of all errors. `code` is the same on the wire, in HTTP, in logs and in counters.

    Viewers read `message`. The log, the status and the technician's page show `detail`, which is `message` by default.
    """

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, code: Code | None = None, detail: str | None = None) -> None:
        self.message = message
        self.detail = detail or message
        super().__init__(self.detail)
        if code is not None:
            self.code = code


class ConfigInvalid(EdgeError):
    """Faults of the settings, all at once, each with its key path. Exit code 78; systemd does not restart."""

    code = Code.BAD_MESSAGE

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class Unavailable(EdgeError):
    """A failure that may heal, such as a stalled camera or a lost broker: back off, then retry."""


class CameraUnavailable(Unavailable):
    """The camera cannot be opened, or delivers no frames. The message says why."""

    code = Code.CAMERA_UNAVAILABLE
    retry_after_s = 5


class BrokerLost(Unavailable):
    """The broker cannot be reached, or the link to it broke. `retry_after_s`: the shortest wait before a retry."""

    retry_after_s: float = 0.0


class Rejected(EdgeError):
    """A request that is refused: the peer gets a reply with the code, and nothing else changes."""

    def __init__(self, code: Code, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
