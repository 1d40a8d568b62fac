"""What waits to be written to the daemon: reports first, then access units, in bounded room."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from edge.camera.wire import Dropped, encode, encode_unit
from edge.core.lane import Lane

if TYPE_CHECKING:
    from edge.camera.wire import Report
    from edge.core.access_unit import AccessUnit

LIMIT_UNITS = 30


class Outbox:
    """Any thread puts in, one thread takes. Nothing put in ever waits for the one who takes.

    Holds at most LIMIT_UNITS access units, then drops to the next keyframe and reports how many; reports are as
    many as the daemon's orders. Access units pass only while it is open, so none goes out before the report that
    the source opened, nor after the one that it closed.
    """

    def __init__(self) -> None:
        self._filled = threading.Condition()
        self._reports: deque[Report] = deque()
        self._lane: Lane[AccessUnit] = Lane(LIMIT_UNITS)
        self._told_dropped = 0
        self._open = False

    def put(self, unit: AccessUnit) -> bool:
        """False: there is no room before the next keyframe, ask the source for one."""
        with self._filled:
            taken = self._lane.push(unit, keyframe=unit.keyframe)
            self._filled.notify()
        return taken

    def report(self, report: Report, *, opens: bool = False) -> None:
        """Put a report in; access units pass from here on, or no more and those that wait are forgotten."""
        with self._filled:
            self._reports.append(report)
            self._open = opens
            if not opens:
                self._lane = Lane(LIMIT_UNITS)
                self._told_dropped = 0
            self._filled.notify()

    def take(self) -> bytes:
        """The next message to write; waits for one."""
        with self._filled:
            while True:
                if self._reports:
                    return encode(self._reports.popleft())
                if self._open and len(self._lane):
                    missed = self._lane.dropped - self._told_dropped
                    if missed:
                        self._told_dropped = self._lane.dropped
                        return encode(Dropped(missed))
                    unit = self._lane.take()
                    if unit is not None:
                        return encode_unit(unit)
                self._filled.wait()
