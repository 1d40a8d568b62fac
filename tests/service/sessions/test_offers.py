"""What an offer must contain, and the quality that a viewer gets and changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.contract.messages import OfferBody, QualityBody
from edge.core.access_unit import Quality
from tests.service.sessions.rig import ANNA, BORIS, OFFER, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("sdp", "code"), [("hello", Code.BAD_OFFER), (OFFER.replace("H264", "VP8"), Code.NO_COMMON_CODEC)]
)
async def test_bad_offer_leaves_no_session(rig: Callable[..., Any], sdp: str, code: Code) -> None:
    async with rig() as h:
        await h.open()
        assert await code_of(h.sessions.open(OfferBody(sdp=sdp), BORIS, h)) is code
        await until(lambda: h.sessions.count == 1)


@pytest.mark.parametrize(
    "sdp", [OFFER.replace("H264", "VP8"), OFFER.replace("packetization-mode=1", "packetization-mode=0")]
)
async def test_offer_without_usable_h264_is_rejected_before_the_camera_opens(rig: Callable[..., Any], sdp: str) -> None:
    async with rig() as h:
        assert await code_of(h.sessions.open(OfferBody(sdp=sdp), ANNA, h)) is Code.NO_COMMON_CODEC
        await asyncio.sleep(0)
        assert h.cam.wants == []


@pytest.mark.parametrize(
    ("sd_level_idc", "quality", "profile", "got"),
    [
        (21, "auto", "42c015", Quality.SD),
        (30, "auto", "42e015", Quality.HD),
        (21, "hd", "42e015", Quality.HD),
        (21, "sd", "42c015", Quality.SD),
        (30, "sd", "42e015", Quality.SD),
    ],
)
async def test_viewer_whose_level_is_below_hd_gets_sd_where_sd_fits(
    rig: Callable[..., Any], sd_level_idc: int, quality: str, profile: str, got: Quality
) -> None:
    low = OFFER.replace("level-asymmetry-allowed=1;", "").replace("42e01f", "42e015")
    async with rig() as h:
        h.cam.sd_level_idc = sd_level_idc
        body = OfferBody.model_validate({"sdp": low, "quality": quality})
        answer = await h.sessions.open(body, ANNA, h)
        assert (answer.sdp, h.peers.made[0].quality) == (f"v=0 {profile}", got)


async def test_camera_without_sd_sends_hd_above_the_offered_level(rig: Callable[..., Any]) -> None:
    low = OFFER.replace("level-asymmetry-allowed=1;", "").replace("42e01f", "42e015")
    async with rig() as h:
        h.cam.qualities = (Quality.HD,)
        h.cam.sd_level_idc = 21
        answer = await h.sessions.open(OfferBody(sdp=low), ANNA, h)
        assert (answer.sdp, h.peers.made[0].quality) == ("v=0 42e015", Quality.HD)


async def test_viewer_changes_the_quality_of_its_own_session_only(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1", quality="sd")
        assert h.sessions.listing()[0].quality == "sd"
        await h.sessions.quality(QualityBody(session="s1", quality="auto"), ANNA)
        assert h.sessions.listing()[0].quality == "hd"
        body = QualityBody(session="s1", quality="sd")
        assert await code_of(h.sessions.quality(body, BORIS)) is Code.FORBIDDEN
        assert await code_of(h.sessions.quality(QualityBody(session="s2", quality="sd"), ANNA)) is Code.UNKNOWN_SESSION
        h.peers.made[0].no_switch = "no sd picture arrived in time"
        assert await code_of(h.sessions.quality(body, ANNA)) is Code.CAMERA_UNAVAILABLE
        assert h.sessions.listing()[0].quality == "hd"


async def test_sd_is_unsupported_on_a_camera_with_one_quality(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        h.cam.qualities = (Quality.HD,)
        assert await code_of(h.open(quality="sd")) is Code.UNSUPPORTED
        await h.open(session="s1", quality="auto")
        assert await code_of(h.sessions.quality(QualityBody(session="s1", quality="sd"), ANNA)) is Code.UNSUPPORTED


async def test_quality_change_while_the_camera_restarts_is_camera_unavailable(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        h.cam.qualities = ()
        body = QualityBody(session="s1", quality="sd")
        assert await code_of(h.sessions.quality(body, ANNA)) is Code.CAMERA_UNAVAILABLE
