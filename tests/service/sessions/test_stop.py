"""Stop and start of the stream: what they do to sessions, and when they are on disk."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code, EndReason
from edge.contract.messages import StreamBody
from edge.sessions import state_writer
from edge.sessions.desired_stream import DesiredStream
from tests.service.fakes import FakeStateStore
from tests.service.sessions.rig import ANNA, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.service.fakes import FakePeer


async def test_stop_ends_all_sessions_and_survives_a_restart(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        await h.open(session="s1")
        await h.sessions.stop("maintenance", ANNA)
        assert h.sessions.count == 0
        assert not h.cam.wanted
        assert h.notified == [("s1", "bff-1", EndReason.STOPPED)]
        assert await code_of(h.open()) is Code.STOPPED
        await h.sessions.stop("again", ANNA)
        assert [kind for kind, _ in h.events].count("stream.stopped") == 1
    async with rig() as h:
        assert await code_of(h.open()) is Code.STOPPED
        await h.sessions.start(StreamBody(), ANNA)
        await h.open()


async def test_stop_is_on_disk_before_a_session_ends(rig: Callable[..., Any]) -> None:
    """A power cut meanwhile must not turn the camera on again."""
    file = FakeStateStore()
    async with rig(stream_file=file) as h:
        await h.open(session="s1")
        file.gate.clear()
        stopping = asyncio.create_task(h.sessions.stop("night", ANNA))
        await until(lambda: not h.cam.wanted)
        await asyncio.sleep(0.05)
        assert (file.fields, h.sessions.count, h.notified) == (None, 1, [])
        assert await code_of(h.open()) is Code.STOPPED
        file.gate.set()
        await stopping
        assert file.fields == {"running": False, "reason": "night", "bitrates": {}}
        assert h.notified == [("s1", "bff-1", EndReason.STOPPED)]


async def test_stops_on_a_slow_disk_do_not_queue_and_the_last_one_is_stored(rig: Callable[..., Any]) -> None:
    class SlowFile(FakeStateStore):
        writes = 0

        async def write(self, fields: dict[str, Any]) -> bool:
            self.writes += 1
            return await super().write(fields)

    file = SlowFile()
    async with rig(stream_file=file) as h:
        file.gate.clear()
        stops = [asyncio.create_task(h.sessions.stop(f"reason {number}", ANNA)) for number in range(64)]
        await asyncio.sleep(0.05)
        file.gate.set()
        await asyncio.gather(*stops)
        assert file.writes <= 2
        assert file.fields == {"running": False, "reason": "reason 63", "bitrates": {}}


async def test_stop_does_not_wait_for_a_hanging_disk(rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "_TIMEOUT_S", 0.1)
    file = FakeStateStore()
    async with rig(stream_file=file) as h:
        await h.open(session="s1")
        file.gate.clear()
        assert await code_of(h.sessions.stop("night", ANNA)) is Code.NOT_KEPT
        assert h.sessions.count == 0
        file.gate.set()


async def test_stop_on_a_full_disk_takes_effect_and_is_reported_as_not_kept(rig: Callable[..., Any]) -> None:
    file = FakeStateStore()
    file.full = True
    async with rig(stream_file=file) as h:
        await h.open(session="s1")
        assert await code_of(h.sessions.stop("night", ANNA)) is Code.NOT_KEPT
        assert (h.sessions.count, h.cam.wanted) == (0, False)
        assert await code_of(h.open()) is Code.STOPPED
        assert await code_of(h.sessions.start(StreamBody(), ANNA)) is Code.NOT_KEPT
        await h.open()
        file.full = False
        await h.sessions.stop("night", ANNA)
        assert not DesiredStream(file).running


async def test_start_during_a_slow_stop_is_the_state_on_disk(rig: Callable[..., Any]) -> None:
    file = FakeStateStore()
    async with rig(stream_file=file) as h:
        file.gate.clear()
        stopping = asyncio.create_task(h.sessions.stop("night", ANNA))
        await asyncio.sleep(0.02)
        starting = asyncio.create_task(h.sessions.start(StreamBody(reason="day"), ANNA))
        await asyncio.sleep(0.02)
        file.gate.set()
        await asyncio.gather(stopping, starting)
        assert file.fields == {"running": True, "reason": "day", "bitrates": {}}


async def test_stop_while_an_offer_waits_for_the_camera_is_reported_as_stopped(rig: Callable[..., Any]) -> None:
    file = FakeStateStore()
    async with rig(stream_file=file) as h:
        h.cam.slow_s = 0.1
        offering = asyncio.create_task(h.open())
        await until(lambda: h.sessions.count == 1)
        file.gate.clear()
        stopping = asyncio.create_task(h.sessions.stop("night", ANNA))
        assert await code_of(offering) is Code.STOPPED
        file.gate.set()
        await stopping


async def test_start_during_a_stop_wins_and_new_sessions_stay(rig: Callable[..., Any]) -> None:
    def slow(peer: FakePeer) -> None:
        peer.close_s = 0.3

    async with rig() as h:
        h.peers.prepare = slow
        await h.open(session="s1")
        stopping = asyncio.create_task(h.sessions.stop("night", ANNA))
        await until(lambda: h.phases() == ["closing"])
        await h.sessions.start(StreamBody(), ANNA)
        await h.open(session="s2")
        async with asyncio.timeout(2):
            await stopping
        assert [info.session for info in h.sessions.listing()] == ["s2"]
        assert h.cam.wanted


async def test_stop_rejects_the_offer_that_is_being_answered(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        h.cam.slow_s = 0.1
        offering = asyncio.create_task(h.open())
        await until(lambda: h.sessions.count == 1)
        await h.sessions.stop(None, ANNA)
        assert await code_of(offering) is Code.STOPPED
        await until(lambda: h.sessions.count == 0)
        assert h.peers.made[0].closed
