"""How many sessions there may be, and which of them gives way to a new offer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code, EndReason
from edge.contract.messages import OfferBody
from edge.core.access_unit import Quality
from edge.errors import Rejected
from edge.sessions.settings import SessionSettings
from tests.service.sessions.rig import ANNA, BORIS, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.fakes import FakePeer


async def test_offer_above_the_viewer_limit_is_busy_and_does_not_disturb_the_others(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=2) as h:
        await h.open()
        await h.open()
        with pytest.raises(Rejected) as caught:
            await h.open()
        assert caught.value.code is Code.BUSY
        assert caught.value.retry_after_s
        assert h.sessions.count == 2
        assert len(h.peers.made) == 2


async def test_one_viewer_cannot_hold_all_places_by_offers_that_never_connect(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=3) as h:
        hostile = replace(ANNA, subject="hostile", token="t-1")
        for number in range(20):
            await h.open(hostile, session=f"h{number}")
            await until(lambda: h.sessions.count <= 2)
        assert [info.session for info in h.sessions.listing()] == ["h18", "h19"]
        assert ("h0", "bff-1", EndReason.REPLACED) in h.notified
        assert h.peers.made[0].closed
        await h.open(replace(ANNA, token="t-2"), session="a1")
        await h.open(replace(BORIS, token="t-3"), session="b1")
        await until(lambda: h.sessions.count == 3)
        assert [info.session for info in h.sessions.listing()] == ["h19", "a1", "b1"]


async def test_closing_sessions_of_one_viewer_are_limited(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=5) as h:
        hostile = replace(ANNA, token="t-1")
        outcomes: list[Code | None] = []
        for number in range(6):
            try:
                await h.open(hostile, session=f"h{number}")
                h.peers.made[-1].close_s = 1
                outcomes.append(None)
            except Rejected as exc:
                outcomes.append(exc.code)
        assert outcomes == [None] * 4 + [Code.BUSY] * 2
        assert h.sessions.count == 4


async def test_live_sessions_of_a_viewer_are_not_replaced(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=5) as h:
        anna = replace(ANNA, token="t-1")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
            h.peers.made[number].events.connected()
        assert await code_of(h.open(anna)) is Code.BUSY
        assert h.phases() == ["live", "live"]


async def test_without_tokens_a_viewer_has_any_number_of_places(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=5) as h:
        for _ in range(5):
            await h.open()
        assert h.sessions.count == 5


async def test_an_invalid_offer_replaces_nothing(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        anna = replace(ANNA, token="t-1")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
        assert await code_of(h.sessions.open(OfferBody(sdp="hello"), anna, h)) is Code.BAD_OFFER
        assert h.phases() == ["connecting", "connecting"]


@pytest.mark.parametrize("fault", ["ICE servers", "quality", "camera"])
async def test_an_offer_that_is_refused_replaces_nothing(rig: Callable[..., Any], fault: str) -> None:
    def no_server(_: FakePeer) -> None:
        raise Rejected(Code.BAD_MESSAGE, "no ICE server is allowed")

    async with rig(max_viewers=3) as h:
        anna, boris = replace(ANNA, token="t-1"), replace(BORIS, token="t-2")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
        await h.open(boris, session="b0")
        match fault:
            case "ICE servers":
                h.peers.prepare = no_server
            case "quality":
                h.cam.qualities = (Quality.HD,)
            case _:
                h.cam.fault = "the camera is not connected"
        for owner in (anna, replace(ANNA, subject="carla", token="t-3")):
            await code_of(h.open(owner, quality="sd"))
            await until(lambda: h.sessions.count <= 3)
        assert h.phases() == ["connecting"] * 3
        assert not h.notified


async def test_offers_that_wait_for_the_camera_end_one_session_each_at_most(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=4) as h:
        anna = replace(ANNA, token="t-1")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
        h.cam.slow_s = 0.1
        waiting = asyncio.create_task(h.open(anna, session="a2"))
        await until(lambda: h.sessions.count == 3)
        assert await code_of(h.open(anna)) is Code.BUSY
        h.peers.made[0].events.connected()  # a session that is live by now does not give way
        await waiting
        await until(lambda: h.sessions.count == 2)
        assert [info.session for info in h.sessions.listing()] == ["a0", "a2"]


async def test_changed_limits_apply_at_once_and_end_no_session(rig: Callable[..., Any]) -> None:
    async with rig(max_viewers=2, idle_stop_s=60) as h:
        await h.open(session="s1")
        await h.open(session="s2")
        h.sessions.apply_settings(SessionSettings(max_viewers=1), 60)
        assert h.sessions.count == 2
        assert await code_of(h.open()) is Code.BUSY
        await h.sessions.close("s1", ANNA)
        await h.sessions.close("s2", ANNA)
        await until(lambda: h.sessions.count == 0)
        assert h.cam.wanted
        h.sessions.apply_settings(SessionSettings(max_viewers=1), 0)
        await until(lambda: not h.cam.wanted)
