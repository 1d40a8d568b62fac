"""Corrects the capture times of an encode whose clock jumps, repeats or stands still."""

from __future__ import annotations

from dataclasses import dataclass

_NEAR_NS = 1_000_000_000
_OLDEST_NS = 10_000_000_000
"""An access unit that waited while this process was held up is at most this old."""
_TICKS, _TICKS_NS = 9, 100_000
"""Nine ticks of the 90 kHz RTP clock last 100,000 ns."""
_STEP_NS = _TICKS_NS // _TICKS + 1
"""The shortest step that always advances the RTP timestamp."""


def rtp_ticks(duration_ns: int) -> int:
    """Convert nanoseconds to ticks of the 90 kHz RTP clock, rounded down."""
    return duration_ns * _TICKS // _TICKS_NS


@dataclass(slots=True)
class CaptureClock:
    """Maps the capture times of one encode to the monotonic clock of this machine.

    Each corrected time is at least one RTP tick after the one before and at most one second ahead of its arrival. A
    capture time that would break this starts a new time base: time continues by the arrival clock, and the capture
    times that follow count from there. The camera's own times are used again when they are within a second of arrival
    and later than the last corrected time; until then, time advances at half the camera's speed.
    A pause (the camera was closed, or stalled) starts no new base, since the capture clock advanced meanwhile.
    """

    jumps: int = 0
    """The number of new time bases."""
    _offset_ns: int = 0
    _last_ns: int | None = None
    _captured_ns: int = 0
    _age_ns: int = 0
    """Time from capture to arrival, when the camera's own time was last used."""

    @property
    def corrected(self) -> bool:
        """Whether the last time differs from the camera's own."""
        return self._offset_ns != 0

    def correct(self, captured_ns: int, now_ns: int) -> int:
        """Return the corrected capture time of an access unit that arrives at `now_ns`."""
        earliest_ns = now_ns - _OLDEST_NS if self._last_ns is None else self._last_ns + _STEP_NS
        step_ns, self._captured_ns = captured_ns - self._captured_ns, captured_ns
        near = abs(now_ns - captured_ns) <= _NEAR_NS
        if near and captured_ns >= earliest_ns:
            self._offset_ns = 0
        elif near and self._last_ns is not None and step_ns > 0 and self._offset_ns > 0:
            time_ns = max(earliest_ns, min(self._last_ns + step_ns // 2, now_ns + _NEAR_NS))
            self._offset_ns = time_ns - captured_ns
        elif not max(earliest_ns, now_ns - _OLDEST_NS) <= captured_ns + self._offset_ns <= now_ns + _NEAR_NS:
            self.jumps += 1
            self._offset_ns = max(earliest_ns, now_ns - self._age_ns) - captured_ns
        if self._offset_ns == 0:
            self._age_ns = max(0, now_ns - captured_ns)
        self._last_ns = captured_ns + self._offset_ns
        return self._last_ns
