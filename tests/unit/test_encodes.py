"""What the daemon requests of the two encodes, HD and SD, over restarts of the camera."""

from __future__ import annotations

import asyncio

from edge.camera.encodes import Encodes
from edge.camera.settings import CameraSettings
from edge.camera.wire import EncodeSd
from edge.core.access_unit import Quality


class Camera:
    """It takes the orders. `current`: it runs with the settings in force."""

    def __init__(self) -> None:
        self.orders: list[object] = []
        self.current = True
        self.failures: list[str] = []
        settings = CameraSettings()
        self.encodes = Encodes(settings, self.orders.append, lambda: self.current, self.failures.append, lambda: 0.0)

    def apply(self) -> None:
        """Other settings are in force; the camera still runs with the earlier ones."""
        assert self.encodes.apply_settings(CameraSettings.model_validate({"hd": {"width": 640, "height": 360}}))
        self.current = False

    def reopen(self) -> None:
        self.current = True
        self.encodes.opened(sd_offered=True)


async def test_a_trial_outlives_a_failure_of_sd_with_the_settings_before_it() -> None:
    camera = Camera()
    camera.encodes.opened(sd_offered=True)
    camera.encodes.encode_sd(on=True)
    camera.apply()
    trial = asyncio.create_task(camera.encodes.picture(sd=True))
    await asyncio.sleep(0)
    camera.encodes.sd_failed("no memory", 1)
    assert camera.failures == ["no memory"]
    camera.reopen()
    assert camera.orders[-1] == EncodeSd(on=True, number=2)
    for quality in Quality:
        assert not trial.done()
        camera.encodes.delivered(quality, 2.0)
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await trial
    assert camera.encodes.sd_error is None
