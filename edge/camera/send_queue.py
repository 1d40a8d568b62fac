"""What waits to be sent to the daemon: reports first, then access units. Bounded."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from edge.camera.wire import Dropped, encode, encode_unit
from edge.core.access_unit import Quality
from edge.core.lane import Lane

if TYPE_CHECKING:
    from edge.camera.wire import Report
    from edge.core.access_unit import AccessUnit

LIMIT_UNITS = 30


class SendQueue:
    """Any thread puts messages in, one thread takes them. `put` and `report` never block.

    Holds at most LIMIT_UNITS access units of each quality. When full, it drops to the next keyframe and reports how
    many it dropped. There are at most as many reports as the daemon sent orders. Access units pass only while the queue
    is open, so that none precedes Opened or follows Closed.
    """

    def __init__(self) -> None:
        self._filled = threading.Condition()
        self._reports: deque[Report] = deque()
        self._lanes: dict[Quality, Lane[AccessUnit]] = {}
        self._dropped_reported = 0
        self._open = False
        self._clear()

    def put(self, unit: AccessUnit) -> bool:
        """Queue an access unit. False: it was dropped, and so are all before the next keyframe; request one."""
        with self._filled:
            queued = self._lanes[unit.quality].push(unit, keyframe=unit.keyframe)
            self._filled.notify()
        return queued

    def report(self, report: Report, *, opens: bool | None = None) -> None:
        """Queue a report. `opens`: access units pass after it. False: they do not, and queued ones are dropped."""
        with self._filled:
            self._reports.append(report)
            if opens is not None:
                self._open = opens
            if opens is False:
                self._clear()
            self._filled.notify()

    def take(self) -> bytes:
        """The next message to send; waits for one."""
        with self._filled:
            while True:
                if self._reports:
                    return encode(self._reports.popleft())
                for lane in self._lanes.values() if self._open else ():
                    dropped = sum(lane.dropped for lane in self._lanes.values())
                    if len(lane) and dropped > self._dropped_reported:
                        new, self._dropped_reported = dropped - self._dropped_reported, dropped
                        return encode(Dropped(new))
                    unit = lane.take()
                    if unit is not None:
                        return encode_unit(unit)
                self._filled.wait()

    def _clear(self) -> None:
        self._lanes = {quality: Lane(LIMIT_UNITS) for quality in Quality}
        self._dropped_reported = 0
