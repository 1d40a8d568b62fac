"""How fast one viewer's packets are sent: rules over bytes and time."""

from __future__ import annotations

BURST_BYTES = 24_000
"""Bytes that may be sent at once. A Wi-Fi link sends as much in one turn; an ordinary picture is smaller."""
_CHUNK_S, _CHUNK_BYTES = 0.005, 3_600
_FRAME_SHARE = 0.7
"""On a good path, a picture is sent within this share of its frame time."""
_OVER_ESTIMATE = 2.0
_MIN_BPS = 300_000.0


class EncodeRate:
    """Measures the bitrate of an encode over the last seconds, without keyframes, which are far above its rate."""

    _OVER_S = 2.0

    def __init__(self) -> None:
        self.bps = 0.0
        self._bytes, self._since_s = 0, float("-inf")

    def add(self, size_bytes: int, now_s: float) -> None:
        """Count one access unit."""
        elapsed_s = now_s - self._since_s
        if elapsed_s >= self._OVER_S:
            if elapsed_s < 2 * self._OVER_S:  # longer: there was a pause
                self.bps = 8 * self._bytes / elapsed_s
            self._bytes, self._since_s = 0, now_s
        self._bytes += size_bytes


class PathEstimate:
    """Decides when a viewer's bandwidth estimates (REMB) say something about its path.

    A receiver that gets little cannot know that the path carries more. Its estimate grows slowly from there, so a scene
    that becomes busy exceeds it even on the best path. But a receiver lowers its estimate only when packets arrive ever
    later, and when a full queue loses packets, the estimate stays below what is sent.

    So an estimate is used from the moment when it fell to about the sent rate, or is below that rate while packets are
    lost. It is dropped when it is well above the encode's rate, when neither condition held for a while (longer each
    time that dropping it was too early), or when no estimates arrive.
    """

    _FALL, _NEAR, _BELOW, _AMPLE = 0.97, 1.1, 0.8, 1.2
    _LOSS = 0.1
    _HOLD_S, _MAX_HOLD_S = 5.0, 40.0
    _EXPIRE_S = 3.0
    _SENT_OVER_S = 1.0

    def __init__(self) -> None:
        self._used_bps: float | None = None
        self._last_bps = self._loss = 0.0
        self._updated_s = self._fell_s = float("-inf")
        self._hold_s = self._HOLD_S
        self._previous = self._current = (float("-inf"), 0)
        """Time and sent bytes at the start of the previous and of the current measurement of the sent rate."""

    def report_loss(self, fraction: float) -> None:
        """Take the fraction of packets that the viewer last reported as lost (0..1)."""
        self._loss = fraction

    def update(self, estimate_bps: float, *, sent_bytes: int, encode_bps: float, now_s: float) -> None:
        """Take an estimate of the viewer's.

        `sent_bytes`: all that was sent to it so far. `encode_bps`: the rate of the encode that it gets.
        """
        if now_s - self._current[0] >= self._SENT_OVER_S:
            self._previous, self._current = self._current, (now_s, sent_bytes)
        since_s, since_bytes = self._previous
        sent_bps = 8 * (sent_bytes - since_bytes) / (now_s - since_s)
        fell = estimate_bps < self._FALL * self._last_bps and estimate_bps < self._NEAR * sent_bps
        if fell or (self._loss > self._LOSS and estimate_bps < self._BELOW * sent_bps):
            if self._used_bps is None:
                too_early = now_s - self._fell_s < 2 * self._hold_s
                self._hold_s = min(2 * self._hold_s, self._MAX_HOLD_S) if too_early else self._HOLD_S
            self._used_bps, self._fell_s = estimate_bps, now_s
        elif self._used_bps is not None:
            drop = now_s - self._fell_s > self._hold_s or estimate_bps > self._AMPLE * encode_bps
            self._used_bps = None if drop else estimate_bps
        self._last_bps, self._updated_s = estimate_bps, now_s

    def bps(self, now_s: float) -> float | None:
        """Return the rate of the path; None: unknown, or no limit at what is sent now."""
        if now_s - self._updated_s > self._EXPIRE_S:
            self._used_bps = None
        return self._used_bps


class Pacer:
    """A token bucket for one viewer.

    Without an estimate of the path, a picture is sent within its frame time, a large one in chunks. With an estimate,
    at about twice the estimated rate, over several frame times if needed.
    """

    def __init__(self, frame_s: float) -> None:
        self._frame_s = frame_s
        self._path_bytes_s = float("inf")
        self._picture_bytes_s = 0.0
        self._burst_bytes: float = BURST_BYTES
        self._tokens_bytes: float = BURST_BYTES
        self._at_s = 0.0

    def set_path(self, path_bps: float | None) -> None:
        """Set the rate of the viewer's path; None: unknown. It applies to the current picture, too."""
        if path_bps is None:
            self._path_bytes_s, self._burst_bytes = float("inf"), float(BURST_BYTES)
        else:
            self._path_bytes_s = max(_MIN_BPS, path_bps * _OVER_ESTIMATE) / 8
            # A full burst would fill the router's queue of a narrow path.
            self._burst_bytes = min(BURST_BYTES, self._path_bytes_s * self._frame_s)

    def begin(self, size_bytes: int, now_s: float) -> None:
        """Begin a picture of this size."""
        self.room_bytes(now_s)
        self._picture_bytes_s = max(size_bytes / _FRAME_SHARE, BURST_BYTES) / self._frame_s

    def room_bytes(self, now_s: float) -> float:
        """Return how many bytes may be sent now. If it is more than zero, one larger packet may be sent, too."""
        tokens = self._tokens_bytes + self._rate_bytes_s * max(0.0, now_s - self._at_s)
        self._tokens_bytes = tokens = min(tokens, self._burst_bytes)
        self._at_s = now_s
        return tokens

    def may_resend(self, now_s: float) -> bool:
        """Return whether a lost packet may be sent again, ahead of new ones; one burst may be overdrawn for that."""
        return self.room_bytes(now_s) > -self._burst_bytes

    def sent(self, size_bytes: int) -> None:
        """Count sent bytes; the bucket may be overdrawn."""
        self._tokens_bytes -= size_bytes

    def wait_s(self) -> float:
        """Return the time until the next chunk may be sent; after `begin`."""
        rate = self._rate_bytes_s
        chunk_bytes = min(self._burst_bytes, max(rate * _CHUNK_S, _CHUNK_BYTES))
        return max(0.0, (chunk_bytes - self._tokens_bytes) / rate)

    @property
    def _rate_bytes_s(self) -> float:
        return min(self._picture_bytes_s, self._path_bytes_s)
