"""ICE candidates of both sides: early, unusable, too many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.contract.messages import CANDIDATES_LIMIT, CandidateBody
from edge.core.candidate import LOCAL_NAMES_LIMIT
from tests.service.sessions.rig import ANNA, BORIS, CANDIDATE, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_candidate_before_its_offer_waits_for_the_offer(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        early = asyncio.create_task(h.sessions.candidate(CandidateBody(session="s1", candidate=CANDIDATE), ANNA))
        await asyncio.sleep(0.02)
        await h.open(session="s1")
        await early
        await until(lambda: len(h.peers.made[0].candidates) == 1)


async def test_early_candidates_of_one_client_leave_room_for_others(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        flood = [
            asyncio.create_task(h.sessions.candidate(CandidateBody(session=f"x{number}", candidate=CANDIDATE), BORIS))
            for number in range(40)
        ]
        await asyncio.sleep(0.02)
        refused = [task for task in flood if task.done()]
        assert len(refused) == 40 - CANDIDATES_LIMIT - 1
        assert {await code_of(task) for task in refused} == {Code.UNKNOWN_SESSION}
        early = asyncio.create_task(h.sessions.candidate(CandidateBody(session="s1", candidate=CANDIDATE), ANNA))
        await asyncio.sleep(0.02)
        await h.open(session="s1")
        await early
        assert len(h.peers.made[0].candidates) == 1
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_candidates_are_capped(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        body = CandidateBody(session="s1", candidate=CANDIDATE)
        for _ in range(CANDIDATES_LIMIT):
            await h.sessions.candidate(body, ANNA)
        assert await code_of(h.sessions.candidate(body, ANNA)) is Code.RATE_LIMITED
        # The end of candidates does not count as a candidate.
        await h.sessions.candidate(CandidateBody(session="s1", candidate=None), ANNA)


@pytest.mark.parametrize(
    "unusable",
    [
        "candidate:1 1 tcp 1518280447 192.0.2.9 9 typ host tcptype active",
        "candidate:1 1 udp 2122260223 3f38b151-cd53-4d7b-b969-8d0a935376f3.local 50000 typ host",
        "candidate:1 2 udp 2122260222 192.0.2.9 50001 typ host",
        "candidate:1 1 udp 2122260222 224.0.0.1 50001 typ host",
        "candidate:1 1 udp 2122260222 127.0.0.1 50001 typ host",
    ],
)
async def test_unusable_candidates_do_not_count(rig: Callable[..., Any], unusable: str) -> None:
    async with rig() as h:
        await h.open(session="s1")
        for _ in range(2 * CANDIDATES_LIMIT):
            await h.sessions.candidate(CandidateBody(session="s1", candidate=unusable), ANNA)
        relay = "candidate:2 1 udp 41885439 203.0.113.9 50000 typ relay raddr 0.0.0.0 rport 0"
        await h.sessions.candidate(CandidateBody(session="s1", candidate=relay), ANNA)
        assert [candidate.type for candidate in h.peers.made[0].candidates] == ["relay"]


async def test_names_are_passed_on_before_and_after_the_answer_within_their_own_limit(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        line = "candidate:1 1 udp 2122260223 {}.local 50000 typ host"
        names = [CandidateBody(session="s1", candidate=line.format(number)) for number in range(6)]
        early = asyncio.create_task(h.sessions.candidate(names[0], ANNA))
        await asyncio.sleep(0)
        await h.open(session="s1")
        await early
        for name in names[1:]:
            await h.sessions.candidate(name, ANNA)
        await until(lambda: len(h.peers.made[0].names) == LOCAL_NAMES_LIMIT)
        assert [one.name for one in h.peers.made[0].names] == ["0.local", "1.local", "2.local", "3.local"]


async def test_local_candidates_are_sent_to_the_owner(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        h.peers.made[0].events.local_candidate(CANDIDATE)
        h.peers.made[0].events.local_candidate(None)
        assert h.notified == [("s1", "bff-1", CANDIDATE), ("s1", "bff-1", None)]
