"""Who is let in."""

from __future__ import annotations

from edge.contract.codes import Code
from edge.errors import Rejected

_BUSY_RETRY_S = 20


def admit(*, running: bool, sessions: int, max_viewers: int) -> None:
    """Let an offer in.

    Raises: Rejected: `stopped` or `busy`.
    """
    if not running:
        raise Rejected(Code.STOPPED, "the camera was stopped; it starts again with stream.start", retry_after_s=10)
    if sessions >= max_viewers:
        raise Rejected(Code.BUSY, f"{sessions} of {max_viewers} viewers are connected", retry_after_s=_BUSY_RETRY_S)
