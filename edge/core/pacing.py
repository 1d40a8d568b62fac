"""How fast one viewer's packets leave: a rule over bytes and time."""

from __future__ import annotations

BURST_BYTES = 24_000
"""What may leave at once: a Wi-Fi link takes as much in one turn; an ordinary picture is less."""
_CHUNK_S, _CHUNK_BYTES = 0.005, 3_600
_OF_A_FRAME = 0.7
"""On a good path a picture has left when this much of its frame's time has passed."""
_OVER_ESTIMATE = 2.0
_LEAST_BPS = 300_000.0


class EncodeRate:
    """What an encode makes, in bit/s over the last seconds; keyframes are left out, their rate is not the encode's."""

    _OVER_S = 2.0

    def __init__(self) -> None:
        self.bps = 0.0
        self._bytes, self._since_s = 0, float("-inf")

    def made(self, size_bytes: int, now_s: float) -> None:
        """An access unit of this size."""
        passed_s = now_s - self._since_s
        if passed_s >= self._OVER_S:
            if passed_s < 2 * self._OVER_S:  # else nobody looked for a while
                self.bps = 8 * self._bytes / passed_s
            self._bytes, self._since_s = 0, now_s
        self._bytes += size_bytes


class PathEstimate:
    """What a viewer's path carries, by its own estimates (REMB), where they tell something of the path.

    A receiver that gets little cannot know that there is room for more: its estimate grows slowly from there, and a
    scene that becomes busy is over it at once, on the best of paths. But it lowers an estimate only where packets come
    ever later; and where a full queue loses them, it stays below what is sent. So one is heeded from when it fell to
    about what was sent, or is below that and packets are lost; and let go when it is well over what the encode makes,
    when neither was so for a while (a longer one each time that this was too early), or when the viewer says nothing
    any more.
    """

    _FELL, _ABOUT, _BELOW, _AMPLE = 0.97, 1.1, 0.8, 1.2
    _LOSS = 0.1
    _HOLD_S, _HOLD_MOST_S = 5.0, 40.0
    _SILENT_S = 3.0
    _SENT_OVER_S = 1.0

    def __init__(self) -> None:
        self._heeded_bps: float | None = None
        self._last_bps = self._loss = 0.0
        self._told_s = self._fell_s = float("-inf")
        self._hold_s = self._HOLD_S
        self._before = self._since = (float("-inf"), 0)

    def lost(self, share: float) -> None:
        """The viewer reports what share of the packets was lost of late."""
        self._loss = share

    def told(self, estimate_bps: float, *, sent_bytes: int, encode_bps: float, now_s: float) -> None:
        """The viewer tells an estimate. `sent_bytes`: to it so far; `encode_bps`: of the encode that it is to get."""
        if now_s - self._since[0] >= self._SENT_OVER_S:
            self._before, self._since = self._since, (now_s, sent_bytes)
        before_s, before_bytes = self._before
        sent_bps = 8 * (sent_bytes - before_bytes) / (now_s - before_s)
        fell = estimate_bps < self._FELL * self._last_bps and estimate_bps < self._ABOUT * sent_bps
        if fell or (self._loss > self._LOSS and estimate_bps < self._BELOW * sent_bps):
            if self._heeded_bps is None:
                too_early = now_s - self._fell_s < 2 * self._hold_s
                self._hold_s = min(2 * self._hold_s, self._HOLD_MOST_S) if too_early else self._HOLD_S
            self._heeded_bps, self._fell_s = estimate_bps, now_s
        elif self._heeded_bps is not None:
            let_go = now_s - self._fell_s > self._hold_s or estimate_bps > self._AMPLE * encode_bps
            self._heeded_bps = None if let_go else estimate_bps
        self._last_bps, self._told_s = estimate_bps, now_s

    def bps(self, now_s: float) -> float | None:
        """What the path carries; None: no less than what is sent, or not known."""
        if now_s - self._told_s > self._SILENT_S:
            self._heeded_bps = None
        return self._heeded_bps


class Pacer:
    """A bucket that fills with time, for one viewer.

    Without an estimate of its path that matters, a picture leaves within its frame's time, a large one in chunks. With
    one, at about twice the estimate, over several frames' time where it must.
    """

    def __init__(self, frame_s: float) -> None:
        self._frame_s = frame_s
        self._path_bytes_s = float("inf")
        self._wanted_bytes_s = 0.0
        self._most_bytes: float = BURST_BYTES
        self._filled: float = BURST_BYTES
        self._at_s = 0.0

    def path(self, path_bps: float | None) -> None:
        """What the viewer's path carries; None: not known. Holds for the picture under way, too."""
        if path_bps is None:
            self._path_bytes_s, self._most_bytes = float("inf"), float(BURST_BYTES)
        else:
            self._path_bytes_s = max(_LEAST_BPS, path_bps * _OVER_ESTIMATE) / 8
            # A viewer on a narrow path gets no burst that would fill its router's queue.
            self._most_bytes = min(BURST_BYTES, self._path_bytes_s * self._frame_s)

    def begin(self, size_bytes: int, now_s: float) -> None:
        """A picture of this size is next."""
        self.room_bytes(now_s)
        self._wanted_bytes_s = max(size_bytes / _OF_A_FRAME, BURST_BYTES) / self._frame_s

    def room_bytes(self, now_s: float) -> float:
        """What may leave now; where it is more than nothing, one packet that is larger may leave too."""
        filled = self._filled + self._rate_bytes_s * max(0.0, now_s - self._at_s)
        self._filled = filled = min(filled, self._most_bytes)
        self._at_s = now_s
        return filled

    def may_resend(self, now_s: float) -> bool:
        """Whether a packet may be sent again, before what is new: the bucket may be overdrawn for it once."""
        return self.room_bytes(now_s) > -self._most_bytes

    def sent(self, size_bytes: int) -> None:
        """So much left. The bucket may be overdrawn."""
        self._filled -= size_bytes

    def wait_s(self) -> float:
        """How long until the next chunk may leave, after `begin`."""
        rate = self._rate_bytes_s
        chunk_bytes = min(self._most_bytes, max(rate * _CHUNK_S, _CHUNK_BYTES))
        return max(0.0, (chunk_bytes - self._filled) / rate)

    @property
    def _rate_bytes_s(self) -> float:
        return min(self._wanted_bytes_s, self._path_bytes_s)
