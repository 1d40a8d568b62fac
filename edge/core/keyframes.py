"""When to request a keyframe from the encoder, and how large a keyframe may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

_INTERVAL_S = 0.5
_JOIN_INTERVAL_S = 0.15
"""A viewer that joins sees nothing until its first keyframe, and a person is waiting."""


@dataclass(slots=True)
class KeyframeRequests:
    """Coalesces the requests for one encode (a join, PLI, FIR, a full lane) to one per interval.

    A request inside the interval stays pending until the interval ends, since its viewer may see nothing before.
    """

    _sent_s: float | None = None
    _pending: bool = False
    _joining: bool = False

    def request(self, now_s: float, *, joins: bool = False) -> bool:
        """Request a keyframe. Returns whether to ask the encoder now."""
        interval_s = _JOIN_INTERVAL_S if joins or self._joining else _INTERVAL_S
        if self._sent_s is not None and now_s - self._sent_s < interval_s:
            self._pending = True
            self._joining |= joins
            return False
        self._sent_s = now_s
        self._pending = self._joining = False
        return True

    def due(self, now_s: float) -> bool:
        """Return whether to ask the encoder now for a pending request; called with every access unit."""
        return self._pending and self.request(now_s)

    def delivered(self) -> None:
        """The encoder made a keyframe, which serves every pending request."""
        self._pending = self._joining = False


_FIRST_WAIT_S, _SOLE_WAIT_S, _MAX_WAIT_S, _RECOVERED_S = 0.5, 1.0, 4.0, 10.0


@dataclass(slots=True)
class ViewerRequests:
    """Limits the keyframe requests of one viewer, since each keyframe costs every viewer of the encode.

    The first request is granted at once. Repeated requests back off: 0.5, 1, 2, then 4 seconds; at most 1 second for
    the sole viewer of an encode. After ten seconds without a request, the next one counts as the first.
    """

    _granted_from_s: float = float("-inf")
    _wait_s: float = _FIRST_WAIT_S
    pending: bool = False
    """A request was not granted; repeat it with the next access unit."""

    def request(self, now_s: float, *, sole: bool) -> bool:
        """Return whether the request is granted now. `sole`: no other viewer gets this encode."""
        if now_s < self._granted_from_s - (max(0.0, self._wait_s - _SOLE_WAIT_S) if sole else 0.0):
            self.pending = True
            return False
        self._wait_s = _FIRST_WAIT_S if now_s - self._granted_from_s > _RECOVERED_S else 2 * self._wait_s
        self._wait_s = min(self._wait_s, _SOLE_WAIT_S if sole else _MAX_WAIT_S)
        self._granted_from_s = now_s + self._wait_s
        self.pending = False
        return True

    def delivered(self) -> None:
        """The viewer was sent a keyframe."""
        self.pending = False


KEYFRAME_S = 0.5
"""The size limit of a keyframe, in seconds of the stream's bitrate: a viewer's network gets it at once."""
_MIN_QP, _FIRST_QP, _MAX_QP, _QP_STEP_DOWN = 20, 26, 40, 2
"""26 is the start value of Raspberry Pi's V4L2 driver."""


@dataclass(slots=True)
class KeyframeQp:
    """Chooses the lowest quantizer (H.264 QP) for an encoder without a rate buffer, to keep its keyframes small.

    A keyframe over the limit raises the QP for the following ones, by six for each halving that is needed. Small
    keyframes lower it again, since it applies to all pictures.
    """

    qp: int = _MIN_QP

    def update(self, size_bytes: int, bitrate_bps: int) -> bool:
        """Consider a keyframe of this size. Returns whether `qp` changed."""
        limit_bytes, before = bitrate_bps / 8 * KEYFRAME_S, self.qp
        if size_bytes > limit_bytes:
            self.qp = min(_MAX_QP, max(self.qp, _FIRST_QP) + math.ceil(6 * math.log2(size_bytes / limit_bytes)))
        elif size_bytes < limit_bytes / 2 and self.qp > _MIN_QP:
            self.qp = max(_MIN_QP, self.qp - _QP_STEP_DOWN)
        return self.qp != before
