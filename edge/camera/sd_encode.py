"""When SD is encoded, and when it counts as failed: a rule over time, without I/O. HD never depends on SD."""

from __future__ import annotations

from dataclasses import dataclass

from edge.camera.wire import EncodeSd


@dataclass(slots=True)
class SdEncode:
    """Viewers and a trial of new settings each request SD. Report each event; send the order that `step` returns."""

    error: str | None = None
    """Why SD failed last. None: it has delivered a picture since."""
    offered: bool = True
    """Whether the source has SD, as of the last time it was open. A trial of a source without SD does not need it."""
    _viewers: bool = False
    _trial: bool = False
    _ordered: bool = False
    _number: int = 0
    _waiting_since_s: float = 0.0

    @property
    def requested(self) -> bool:
        return self._viewers or (self._trial and self.offered)

    @property
    def tried(self) -> bool:
        """Whether a trial still requests SD. A failure of SD ends that."""
        return self._trial

    def set_viewers(self, *, on: bool) -> None:
        self._viewers = on

    def set_trial(self, *, on: bool) -> None:
        self._trial = on

    def opened(self, *, offered: bool) -> None:
        """The source is open, and encodes HD alone."""
        self.offered = offered
        self._ordered = False

    def step(self, now_s: float) -> EncodeSd | None:
        """The order to send to the open source now; None: it does already what is requested."""
        if self.requested == self._ordered:
            return None
        self._ordered = self.requested
        self._number += self._ordered
        self._waiting_since_s = now_s
        return EncodeSd(self._ordered, self._number)

    def picture(self, now_s: float) -> None:
        """SD has delivered an access unit."""
        self._waiting_since_s = now_s
        self.error = None

    def overdue(self, now_s: float, stall_s: float) -> bool:
        """Whether SD was ordered and has delivered nothing for `stall_s`."""
        return self._ordered and self.requested and now_s - self._waiting_since_s > stall_s

    def reported(self, number: int) -> bool:
        """The source reports that the SD encode of this order has failed, and has ended it. False: an older one."""
        if number != self._number or not self._ordered:
            return False
        self._ordered = False
        return True

    def failed(self, reason: str, now_s: float, *, outdated: bool) -> None:
        """SD has failed, which ends all requests for it. Request it again to retry.

        `outdated`: the source runs with other settings than those on trial, so the trial has not failed.
        """
        self.error = reason
        self._viewers = False
        self._trial = self._trial and outdated
        self._waiting_since_s = now_s
