"""The health verdict: whether the daemon is in a state that only a restart repairs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# A command that fails before its sender is known (`intake_bugs`) is left out: anyone can send it. So are `session_bugs`
# and `sender_bugs`: each ends one viewer's session, which what this viewer sent may have caused. A command that is
# refused before its handler runs is no success: it does not show that any handler works.
_ENTRY_POINTS = {"commands": ("command_bugs", "commands_executed"), "the local API": ("request_bugs", "requests")}
"""By entry point: the counter of requests that failed because of a bug, and the one of those that did not."""
_BUGS = 5
_BUGS_S = 10.0
"""How long others have time to show that it works for them."""
_FORGOTTEN_S = 60.0
"""After this time, a bug says nothing about the present state."""


class _EntryPoint:
    """Whether an entry point fails at every request: so many recent bugs, with no success since the first."""

    def __init__(self) -> None:
        self._bugs = self._successes = 0
        self._recent: deque[tuple[float, int]] = deque()
        """When bugs were seen, and how many."""

    def broken(self, now_s: float, bugs: int, successes: int) -> bool:
        """`bugs`, `successes`: totals since the start."""
        if successes != self._successes:
            self._recent.clear()
        elif bugs != self._bugs:
            self._recent.append((now_s, bugs - self._bugs))
        self._bugs, self._successes = bugs, successes
        while self._recent and now_s - self._recent[0][0] > _FORGOTTEN_S:
            self._recent.popleft()
        return sum(count for _, count in self._recent) >= _BUGS and now_s - self._recent[0][0] >= _BUGS_S


class Health:
    """Decides from the camera's deliveries, overdue work and bugs. `now_s`: monotonic seconds.

    Healthy are: a stopped stream, an idle or failed camera, no broker. `silence_limit_s`: how long a running camera may
    deliver nothing. It is far beyond the time at which the camera process should have noticed the stall itself.
    """

    def __init__(self, silence_limit_s: float) -> None:
        self._silence_limit_s = silence_limit_s
        self._running = False
        self._delivered_s = 0.0
        self._entry_points = {name: _EntryPoint() for name in _ENTRY_POINTS}

    def camera_changed(self, now_s: float, *, running: bool) -> None:
        """The camera started or stopped running; the silence of an earlier run does not count."""
        if running and not self._running:
            self._delivered_s = now_s
        self._running = running

    def delivered(self, now_s: float) -> None:
        """The camera delivered an access unit."""
        self._delivered_s = now_s

    def fault(
        self, now_s: float, *, sessions_on_time: bool, commands_on_time: bool, counters: Mapping[str, int]
    ) -> str | None:
        """What is wrong; None: healthy. `counters`: totals since the start, as in the status."""
        if not sessions_on_time:
            return "a session is stuck"
        if not commands_on_time:
            return "a command is stuck"
        if self._running and now_s - self._delivered_s > self._silence_limit_s:
            return "the camera is reported as running but delivers nothing"
        for name, (bugs, successes) in _ENTRY_POINTS.items():
            if self._entry_points[name].broken(now_s, counters.get(bugs, 0), counters.get(successes, 0)):
                return f"{name}: every request fails because of a bug"
        return None
