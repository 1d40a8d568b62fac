"""When the encoder is asked for a keyframe: many wishes, one request per interval, none at the others' cost."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class KeyframeRequests:
    """Coalesces wishes (a join, PLI, FIR, a lane that dropped) to one request per interval.

    A wish inside the interval is remembered and falls due at its end: no wish is lost, since the viewer
    behind it may see nothing until it is granted.
    """

    interval_s: float = 0.5
    join_interval_s: float = 0.15
    """A viewer that joins sees nothing yet, and is waited for by a person."""
    _asked_s: float | None = None
    _pending: bool = False
    _joining: bool = False

    def wish(self, now_s: float, *, joins: bool = False) -> bool:
        """Whether to ask the encoder now."""
        interval_s = self.join_interval_s if joins or self._joining else self.interval_s
        if self._asked_s is not None and now_s - self._asked_s < interval_s:
            self._pending = True
            self._joining |= joins
            return False
        self._asked_s = now_s
        self._pending = self._joining = False
        return True

    def due(self, now_s: float) -> bool:
        """Whether a remembered wish is to be asked now; called with every access unit."""
        return self._pending and self.wish(now_s)

    def came(self) -> None:
        """A keyframe came out of the encoder: it serves every wish that was pending."""
        self._pending = self._joining = False


_FIRST_S, _ALONE_S, _MOST_S, _WELL_S = 0.5, 1.0, 4.0, 10.0


@dataclass(slots=True)
class ViewerWishes:
    """How often one viewer's losses may have a keyframe made, which costs all the others: seldom where it helps little.

    The first wish is granted at once, further ones after 0.5, 1, 2 and then 4 seconds, until it was well for a while;
    1 second at most where there are no others. What is not granted is remembered.
    """

    _from_s: float = float("-inf")
    _wait_s: float = _FIRST_S
    pending: bool = False
    """One is remembered, to be asked again with the next access unit."""

    def wish(self, now_s: float, *, alone: bool) -> bool:
        """Whether it is granted now. `alone`: nobody else gets this encode."""
        if now_s < self._from_s - (max(0.0, self._wait_s - _ALONE_S) if alone else 0.0):
            self.pending = True
            return False
        self._wait_s = _FIRST_S if now_s - self._from_s > _WELL_S else 2 * self._wait_s
        self._wait_s = min(self._wait_s, _ALONE_S if alone else _MOST_S)
        self._from_s = now_s + self._wait_s
        self.pending = False
        return True

    def came(self) -> None:
        """The viewer was given a keyframe."""
        self.pending = False


KEYFRAME_S = 0.5
"""How much of the stream one keyframe may be at most: what a viewer's network has to take at once."""
_QP_LEAST, _QP_FIRST, _QP_MOST, _QP_DOWN = 20, 26, 40, 2
"""The first is what Raspberry Pi's V4L2 driver starts with."""


@dataclass(slots=True)
class KeyframeQp:
    """The least quantizer (H.264's QP) for an encoder that has no rate buffer to keep its keyframes small.

    One that is too large raises it for those after it, six for each halving; small ones let it down again, since it
    holds for all pictures.
    """

    qp: int = _QP_LEAST

    def came(self, size_bytes: int, bitrate_bps: int) -> bool:
        """A keyframe of this size came; whether `qp` changed."""
        most_bytes, before = bitrate_bps / 8 * KEYFRAME_S, self.qp
        if size_bytes > most_bytes:
            self.qp = min(_QP_MOST, max(self.qp, _QP_FIRST) + math.ceil(6 * math.log2(size_bytes / most_bytes)))
        elif size_bytes < most_bytes / 2 and self.qp > _QP_LEAST:
            self.qp = max(_QP_LEAST, self.qp - _QP_DOWN)
        return self.qp != before
