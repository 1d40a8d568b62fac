"""Logs the failures of the camera, repeated ones at growing intervals."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge.core.log_limit import LogLimit

if TYPE_CHECKING:
    from edge.errors import CameraUnavailable

log = logging.getLogger(__name__)


class FailureLog:
    """Logs the failures of each reason (see `LogLimit`), and the recovery from a logged failure."""

    def __init__(self) -> None:
        self._log_limit = LogLimit()
        self._logged: str | None = None

    def changed(self, error: CameraUnavailable | None, now_s: float) -> None:
        """The camera has failed. None: it is available again."""
        if error is None:
            if self._logged is not None:
                log.info("camera available again previous_error=%r", self._logged)
                self._logged = None
        elif count := self._log_limit.due(now_s, error.detail):
            log.warning("camera failed error=%r count=%d", error.detail, count)
            self._logged = error.detail
