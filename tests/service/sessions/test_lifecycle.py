"""A session from its offer to its end: each way it ends, and who is notified."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code, EndReason
from edge.contract.messages import CandidateBody, IceServerLeftOut
from tests.service.sessions.rig import ANNA, BORIS, CANDIDATE, TECHNICIAN, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.fakes import FakePeer


async def test_session_goes_live_and_ends_when_its_viewer_closes_it(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        answer = await h.open(session="s1")
        assert (answer.session, answer.sdp) == ("s1", "v=0 42c01f")
        assert h.phases() == ["connecting"]
        assert h.cam.wanted
        h.peers.made[0].events.connected()
        await until(lambda: h.phases() == ["live"])
        await h.sessions.close("s1", ANNA)
        await until(lambda: not h.phases())
        assert h.peers.made[0].closed
        assert h.notified == [("s1", "bff-1", EndReason.VIEWER_CLOSED)]
        assert [kind for kind, _ in h.events] == ["session.opened", "session.live", "session.closed"]


async def test_viewer_that_never_connects_is_closed_at_its_deadline(rig: Callable[..., Any]) -> None:
    async with rig(connect_timeout_s=0.05) as h:
        await h.open(session="s1")
        await until(lambda: h.sessions.count == 0)
        assert h.notified == [("s1", "bff-1", EndReason.CONNECT_TIMEOUT)]
        assert h.peers.made[0].closed


async def test_the_answer_names_the_ice_servers_that_are_not_used(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        left_out = IceServerLeftOut(server="evil.example", reason="not_allowed")
        h.peers.prepare = lambda peer: peer.ice_servers_left_out.append(left_out)
        answer = await h.open()
        assert answer.limits.ice_servers_left_out == [left_out]


async def test_a_session_whose_relay_ended_says_so(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        h.peers.made[0].events.connected()
        h.peers.made[0].events.relay_lost()
        await until(lambda: not h.phases())
        assert h.notified == [("s1", "bff-1", EndReason.RELAY_LOST)]


async def test_slow_answer_is_rejected_and_leaves_no_session(rig: Callable[..., Any]) -> None:
    async with rig(answer_timeout_s=0.05) as h:
        h.cam.slow_s = 1
        assert await code_of(h.open()) is Code.TIMEOUT
        await until(lambda: h.sessions.count == 0)
        assert h.peers.made[0].closed


async def test_lost_connection_ends_the_session(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        h.peers.made[0].events.connected()
        h.peers.made[0].events.lost()
        await until(lambda: h.sessions.count == 0)
        assert h.notified == [("s1", "bff-1", EndReason.CONNECTION_LOST)]


async def test_peer_failure_ends_its_session_as_a_fault_of_the_device(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        h.peers.made[0].events.connected()
        h.peers.made[0].events.failed()
        await until(lambda: h.sessions.count == 0)
        assert h.notified == [("s1", "bff-1", EndReason.INTERNAL)]


async def test_duplicate_session_id_is_rejected(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        assert await code_of(h.open(session="s1")) is Code.BAD_MESSAGE
        assert h.sessions.count == 1


async def test_session_of_another_client_is_forbidden(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        assert await code_of(h.sessions.close("s1", BORIS)) is Code.FORBIDDEN
        body = CandidateBody(session="s1", candidate=CANDIDATE)
        assert await code_of(h.sessions.candidate(body, BORIS)) is Code.FORBIDDEN
        assert h.sessions.count == 1
        assert await code_of(h.sessions.close("nobody", ANNA)) is Code.UNKNOWN_SESSION
        await h.sessions.close("s1", TECHNICIAN)
        await until(lambda: h.sessions.count == 0)
        assert h.notified == [("s1", "bff-1", EndReason.CLOSED_BY_BACKEND)]


async def test_bug_in_one_session_ends_only_that_session_and_is_counted(rig: Callable[..., Any]) -> None:
    def with_bug(peer: FakePeer) -> None:
        peer.bug = ZeroDivisionError("a bug")

    async with rig() as h:
        await h.open(session="good")
        h.peers.prepare = with_bug
        await h.open(session="bad")
        await h.sessions.close("bad", ANNA)
        await until(lambda: h.sessions.count == 1)
        assert h.counters["session_bugs"] == 1
        assert ("bad", "bff-1", EndReason.INTERNAL) in h.notified


async def test_bug_in_a_live_session_still_closes_its_peer(
    rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> tuple[int, float | None]:
        raise ZeroDivisionError

    monkeypatch.setattr("edge.sessions.session._SAMPLE_S", 0.01)
    async with rig() as h:
        await h.open(session="s1")
        h.peers.made[0].stats = stats
        h.peers.made[0].events.connected()
        await until(lambda: h.sessions.count == 0)
        assert h.peers.made[0].closed
        assert h.counters["session_bugs"] == 1


async def test_shutdown_notifies_every_viewer(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        await h.open(session="s2")
    assert {notification[2] for notification in h.notified} == {EndReason.SHUTDOWN}
    assert all(peer.closed for peer in h.peers.made)
    assert not h.cam.wanted


@pytest.mark.slow
async def test_hanging_close_ends_at_its_deadline(
    rig: Callable[..., Any],
) -> None:
    def hanging(peer: FakePeer) -> None:
        peer.hangs = True

    async with rig() as h:
        h.peers.prepare = hanging
        await h.open(session="s1")
        started_s = asyncio.get_running_loop().time()
        await h.sessions.stop(None, ANNA)
        assert h.sessions.count == 0
        assert asyncio.get_running_loop().time() - started_s < 5
