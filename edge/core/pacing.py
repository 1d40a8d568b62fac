"""How fast one viewer's packets leave: a rule over bytes and time."""

from __future__ import annotations

from dataclasses import dataclass

BURST_BYTES = 24_000
"""What may leave at once: a Wi-Fi link takes as much in one turn; an ordinary picture is less."""
_CHUNK_S = 0.005
_OF_A_FRAME = 0.7
"""On a good path a picture has left when this much of its frame's time has passed."""
_OVER_ESTIMATE = 2.0
_LEAST_BPS = 300_000.0
_TELLING = 1.2


def heeded(estimate_bps: float, sending_bps: float) -> float | None:
    """The estimate where it tells something of the path; None where it is only a multiple of what is sent.

    A receiver that gets little cannot know that there is room for more, and says little.
    """
    return estimate_bps if estimate_bps < _TELLING * sending_bps else None


@dataclass(slots=True)
class Pacer:
    """A bucket that fills with time. `estimate_bps`: what the viewer's path carries, as it says; None: not known.

    Without an estimate that matters, a picture leaves within its frame's time, a large one in chunks. With one, at
    about twice the estimate, over several frames' time where it must.
    """

    frame_s: float
    estimate_bps: float | None = None
    _rate_bytes_s: float = 0.0
    _filled: float = BURST_BYTES
    _at_s: float = 0.0

    def begin(self, size_bytes: int, now_s: float) -> None:
        """A picture of this size is next."""
        self._fill(now_s)
        self._rate_bytes_s = max(size_bytes / _OF_A_FRAME, BURST_BYTES) / self.frame_s
        if (path := self._path_bytes_s) is not None:
            self._rate_bytes_s = min(self._rate_bytes_s, path)

    def may_send(self, now_s: float) -> bool:
        """Whether another packet may leave now."""
        self._fill(now_s)
        return self._filled > 0

    def sent(self, size_bytes: int) -> None:
        """So much left. The bucket may be overdrawn by one packet, or by one run of them."""
        self._filled -= size_bytes

    @property
    def room_bytes(self) -> int:
        """What may leave now, at least."""
        return max(0, int(self._filled))

    def wait_s(self) -> float:
        """How long until the next chunk may leave, after `begin`."""
        chunk_bytes = min(self._most_bytes, self._rate_bytes_s * _CHUNK_S)
        return max(0.0, (chunk_bytes - self._filled) / self._rate_bytes_s)

    @property
    def _path_bytes_s(self) -> float | None:
        if self.estimate_bps is None:
            return None
        return max(_LEAST_BPS, self.estimate_bps * _OVER_ESTIMATE) / 8

    @property
    def _most_bytes(self) -> float:
        """A viewer on a narrow path gets no burst that would fill its router's queue."""
        path = self._path_bytes_s
        return BURST_BYTES if path is None else min(BURST_BYTES, path * self.frame_s)

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._filled = min(self._most_bytes, self._filled + self._rate_bytes_s * passed_s)
        self._at_s = now_s
