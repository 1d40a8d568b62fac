"""What the daemon requests of the two encodes, HD and SD. It holds over restarts of the camera."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edge.camera.sd_encode import SdEncode
from edge.camera.wire import MakeKeyframe, SetBitrate
from edge.core.access_unit import Quality
from edge.core.log_limit import LogLimit
from edge.errors import CameraUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.camera.settings import CameraSettings
    from edge.camera.wire import Order

log = logging.getLogger(__name__)


class Encodes:
    """Event loop only.

    `order` sends an order to the camera while it runs, else drops it. `current`: whether the camera runs with the
    settings in force. `on_sd_failed` gets the reason when SD was requested and failed; SD then stays off until it is
    requested again.
    """

    def __init__(
        self,
        settings: CameraSettings,
        order: Callable[[Order], None],
        current: Callable[[], bool],
        on_sd_failed: Callable[[str], None],
        now_s: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._order = order
        self._current = current
        self._on_sd_failed = on_sd_failed
        self._now_s = now_s
        self._sd = SdEncode()
        self._log_limit = LogLimit()
        self._bitrates: dict[Quality, int] = {}
        self._unseen = set(Quality)
        """Qualities without a picture since the settings changed."""
        self._changed = asyncio.Event()

    @property
    def sd_error(self) -> str | None:
        """Why SD failed last; None once it has delivered a picture again."""
        return self._sd.error

    def bitrate_range(self, quality: Quality) -> tuple[int, int]:
        """What the settings allow, in bits per second."""
        plan = self._settings.hd if quality is Quality.HD else self._settings.sd
        return plan.min_bps, plan.max_bps

    def apply_settings(self, settings: CameraSettings) -> bool:
        """Set other settings. Returns whether the camera has to be opened again for them."""
        before, self._settings = self._settings, settings
        if (before.hd, before.sd) == (settings.hd, settings.sd):
            return False
        self._unseen = set(Quality)
        return True

    def request_keyframe(self, quality: Quality) -> None:
        self._order(MakeKeyframe(quality))

    def set_bitrate(self, quality: Quality, bitrate_bps: int) -> None:
        """Aim at this bitrate, within the range of the settings."""
        lowest, highest = self.bitrate_range(quality)
        self._bitrates[quality] = bitrate_bps
        self._order(SetBitrate(quality, min(highest, max(lowest, bitrate_bps))))

    def encode_sd(self, *, on: bool) -> None:
        """Say whether viewers need SD; idempotent."""
        self._sd.set_viewers(on=on)
        self._update_sd()

    async def picture(self, *, sd: bool) -> None:
        """Wait for a picture that was encoded with the current settings. `sd`: also for an SD picture, if there is SD.

        Raises: CameraUnavailable: SD failed.
        """
        self._sd.set_trial(on=sd)
        self._update_sd()
        try:
            while Quality.HD in self._unseen or (sd and self._sd.offered and Quality.SD in self._unseen):
                if sd and not self._sd.tried:
                    raise CameraUnavailable(f"SD cannot be encoded: {self._sd.error}")
                await self._changed.wait()
        finally:
            self._sd.set_trial(on=False)
            self._update_sd()

    def opened(self, *, sd_offered: bool) -> None:
        """The camera is open: order again what was requested before."""
        self._sd.opened(offered=sd_offered)
        self._update_sd()
        for quality, bitrate_bps in self._bitrates.items():
            self.set_bitrate(quality, bitrate_bps)
        self._announce()

    def delivered(self, quality: Quality, stall_s: float) -> None:
        """The running camera has delivered an access unit. `stall_s`: after so long without one, SD has failed."""
        now_s = self._now_s()
        if quality is Quality.SD:
            self._sd.picture(now_s)
        elif self._sd.overdue(now_s, stall_s):
            self._fail_sd(f"SD delivered no picture for {stall_s:g} s")
        if quality in self._unseen and self._current():
            self._unseen.discard(quality)
            self._announce()

    def sd_failed(self, reason: str, number: int) -> None:
        """The camera process reports that the SD encode of the order of this number has failed."""
        if self._sd.reported(number):
            self._fail_sd(reason)

    def _fail_sd(self, reason: str) -> None:
        if count := self._log_limit.due(self._now_s(), reason):
            log.warning("SD failed, its viewers get HD error=%r count=%d", reason, count)
        self._sd.failed(reason, self._now_s(), outdated=not self._current())
        self._update_sd()
        self._announce()
        self._on_sd_failed(reason)

    def _update_sd(self) -> None:
        if self._current() and (order := self._sd.step(self._now_s())) is not None:
            self._order(order)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
