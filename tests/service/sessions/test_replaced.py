"""An earlier session gives way only to one whose offer the engine accepted, and then at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.contract.codes import Code, EndReason
from edge.errors import Rejected
from tests.service.sessions.rig import ANNA, BORIS, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.service.fakes import FakePeer


async def test_an_offer_that_the_engine_rejects_replaces_nothing(rig: Callable[..., Any]) -> None:
    def reject(peer: FakePeer) -> None:
        peer.refusal = Rejected(Code.BAD_OFFER, "the offer cannot be answered")

    async with rig() as h:
        anna = replace(ANNA, token="t-1")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
        h.peers.prepare = reject
        assert await code_of(h.open(anna)) is Code.BAD_OFFER
        await until(lambda: h.sessions.count <= 2)
        assert h.phases() == ["connecting", "connecting"]
        assert not h.notified


async def test_a_session_that_ends_before_its_offer_is_accepted_replaces_nothing(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        anna = replace(ANNA, token="t-1")
        for number in range(2):
            await h.open(anna, session=f"a{number}")
        h.peers.prepare = lambda peer: peer.accepts.clear()
        opening = asyncio.create_task(h.open(anna, session="a2"))
        await until(lambda: h.sessions.count == 3)
        h.peers.made[2].events.finish(EndReason.REPLACED)
        h.peers.made[2].accepts.set()
        assert await code_of(opening) is EndReason.REPLACED.code
        await until(lambda: h.sessions.count == 2)
        assert [info.session for info in h.sessions.listing()] == ["a0", "a1"]


async def until_open(h: Any, *sessions: str) -> None:
    await until(lambda: [info.session for info in h.sessions.listing()] == list(sessions))


async def test_quick_offers_that_still_gather_leave_the_newest(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        anna, boris = replace(ANNA, token="t-1"), replace(BORIS, token="t-2")
        h.peers.prepare = lambda peer: peer.gathers.clear()
        opening = [asyncio.create_task(h.open(boris, session="b0"))]
        names = [f"a{number}" for number in range(5)]
        for number, name in enumerate(names, 1):
            opening.append(asyncio.create_task(h.open(anna, session=name)))
            await until_open(h, "b0", *names[max(0, number - 2) : number])
        assert not any(task.done() for task in opening)
        for peer in h.peers.made:
            peer.gathers.set()
        outcomes = await asyncio.gather(*opening, return_exceptions=True)
        await until_open(h, "b0", "a3", "a4")
        codes = [outcome.code if isinstance(outcome, Rejected) else None for outcome in outcomes]
        assert codes == [None, *[EndReason.REPLACED.code] * 3, None, None]
        assert [reason for _, _, reason in h.notified] == [EndReason.REPLACED] * 3
