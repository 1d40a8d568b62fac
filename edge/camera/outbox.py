"""What waits to be written to the daemon: reports first, then access units, in bounded room."""

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


class Outbox:
    """Any thread puts in, one thread takes. Nothing put in ever waits for the one who takes.

    Holds at most LIMIT_UNITS access units of each quality, then drops to the next keyframe and reports how many;
    reports are as many as the daemon's orders. Access units pass only while it is open, so none goes out before the
    report that the source opened, nor after the one that it closed.
    """

    def __init__(self) -> None:
        self._filled = threading.Condition()
        self._reports: deque[Report] = deque()
        self._lanes: dict[Quality, Lane[AccessUnit]] = {}
        self._told_dropped = 0
        self._open = False
        self._forget()

    def put(self, unit: AccessUnit) -> bool:
        """False: there is no room before the next keyframe, ask the source for one."""
        with self._filled:
            taken = self._lanes[unit.quality].push(unit, keyframe=unit.keyframe)
            self._filled.notify()
        return taken

    def report(self, report: Report, *, opens: bool | None = None) -> None:
        """Put a report in. `opens`: access units pass from here on; or no more, and those that wait are forgotten."""
        with self._filled:
            self._reports.append(report)
            if opens is not None:
                self._open = opens
            if opens is False:
                self._forget()
            self._filled.notify()

    def take(self) -> bytes:
        """The next message to write; waits for one."""
        with self._filled:
            while True:
                if self._reports:
                    return encode(self._reports.popleft())
                for lane in self._lanes.values() if self._open else ():
                    dropped = sum(lane.dropped for lane in self._lanes.values())
                    if len(lane) and dropped > self._told_dropped:
                        missed, self._told_dropped = dropped - self._told_dropped, dropped
                        return encode(Dropped(missed))
                    unit = lane.take()
                    if unit is not None:
                        return encode_unit(unit)
                self._filled.wait()

    def _forget(self) -> None:
        self._lanes = {quality: Lane(LIMIT_UNITS) for quality in Quality}
        self._told_dropped = 0
