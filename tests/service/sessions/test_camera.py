"""The camera as sessions and requests use it: opened, closed when idle, missing, frozen, and busy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from edge.contract.codes import Code
from edge.contract.messages import ControlsBody, SnapshotBody
from edge.core.principal import Interface, Principal, Scope
from edge.errors import CameraUnavailable, Rejected
from edge.sessions import state_writer
from tests.service.sessions.rig import ANNA, TECHNICIAN, code_of, until

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_missing_camera_is_reported_and_leaves_no_session(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        h.cam.fault = "no camera number 0 found"
        with pytest.raises(CameraUnavailable, match="no camera number 0") as caught:
            await h.open()
        assert caught.value.code is Code.CAMERA_UNAVAILABLE
        await until(lambda: h.sessions.count == 0)
        assert h.notified == [], "the error reply is enough"


async def test_hanging_disk_does_not_hold_up_camera_controls(
    rig: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_TIMEOUT_S", 0.1)
    async with rig(idle_stop_s=60) as h:
        h.store.gate.clear()
        assert (await h.requests.set(ControlsBody(gain=2.0), ANNA))["gain"] == 2.0
        assert (await h.requests.set(ControlsBody(gain=3.0), ANNA))["gain"] == 3.0
        h.store.gate.set()
        await until(lambda: h.store.fields == {"gain": 3.0})


async def test_camera_closes_after_the_idle_time_but_not_during_a_page_refresh(rig: Callable[..., Any]) -> None:
    async with rig(idle_stop_s=0.3) as h:
        await h.open(session="s1")
        await h.sessions.close("s1", ANNA)
        await until(lambda: h.sessions.count == 0)
        assert h.cam.wanted
        await h.open(session="s2")
        await asyncio.sleep(0.4)
        assert h.cam.wants == [True]
        await h.sessions.close("s2", ANNA)
        await until(lambda: not h.cam.wanted)
        await h.open(session="s3")
        assert h.cam.wants == [True, False, True]


async def test_each_live_session_is_notified_once_when_the_picture_freezes(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        for name in ("s1", "s2"):
            await h.open(session=name)
        h.peers.made[0].events.connected()
        h.sessions.camera_changed(CameraUnavailable("no picture for 2 s"), running=False)
        h.sessions.camera_changed(CameraUnavailable("it did not close"), running=False)
        assert h.notified == [("s1", "bff-1", "no picture for 2 s")]
        # A viewer that joins meanwhile is notified, too.
        h.peers.made[1].events.connected()
        assert h.notified[1:] == [("s2", "bff-1", "it did not close")]
        h.sessions.camera_changed(None, running=False)
        assert len(h.notified) == 2, "an opening camera gives no picture yet"
        h.sessions.camera_changed(None, running=True)
        h.sessions.camera_changed(None, running=True)
        assert h.notified[2:] == [("s1", "bff-1", "live"), ("s2", "bff-1", "live")]
        # When the link is up again, every session that was ever notified gets the present state.
        await h.open(session="s3")
        h.peers.made[2].events.connected()
        h.sessions.repeat_camera()
        assert h.notified[4:] == [("s1", "bff-1", "live"), ("s2", "bff-1", "live")]
        h.sessions.camera_changed(CameraUnavailable("it ended"), running=False)
        h.sessions.repeat_camera()
        assert h.notified[-3:] == [(name, "bff-1", "it ended") for name in ("s1", "s2", "s3")]
        assert h.sessions.count == 3


async def test_idle_camera_is_opened_for_a_request(rig: Callable[..., Any]) -> None:
    async with rig(idle_stop_s=60) as h:
        assert await h.requests.snapshot(SnapshotBody(width=320), ANNA) == b"JPEG 320 80"
        assert h.cam.wants == [True, False]
        assert await h.requests.set(ControlsBody(gain=2.0), ANNA) == {"gain": 2.0, "flip_vertical": False}
        assert h.cam.wants == [True, False, True, False]
        assert h.store.fields == {"gain": 2.0}
        values, offered = await h.requests.controls(ANNA)
        assert (values["gain"], offered["gain"].highest) == (2.0, 16.0)
        assert ("camera.set", None) in h.events


async def test_controls_are_checked_against_what_the_camera_accepts(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        with pytest.raises(Rejected, match=r"gain: 1 to 16; sharpness: this camera has no such control"):
            await h.requests.set(ControlsBody(gain=99, sharpness=1, flip_vertical=True), ANNA)
        assert h.store.fields is None
        await h.requests.set(ControlsBody(gain=3.0, flip_vertical=True), ANNA)
        assert await h.requests.set(ControlsBody(gain=None), ANNA) == {"gain": None, "flip_vertical": True}
        assert h.store.fields == {"flip_vertical": True}


async def test_camera_requests_need_their_scopes(rig: Callable[..., Any]) -> None:
    viewer = Principal("anna", "bff-1", Interface.MQTT, frozenset({Scope.VIEW}))
    listener = Principal("anna", "bff-1", Interface.MQTT, frozenset({Scope.LISTEN}))
    async with rig() as h:
        assert await code_of(h.requests.set(ControlsBody(gain=2.0), viewer)) is Code.FORBIDDEN
        assert await code_of(h.requests.snapshot(SnapshotBody(), listener)) is Code.FORBIDDEN
        assert await h.requests.snapshot(SnapshotBody(), viewer)


async def test_snapshot_of_a_stopped_or_broken_camera_is_rejected(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        h.cam.fault = "the camera is in use by rpicam-vid (312)"
        assert await code_of(h.requests.snapshot(SnapshotBody(), ANNA)) is Code.CAMERA_UNAVAILABLE
        assert h.cam.wants == [True, False]
        await h.sessions.stop(None, ANNA)
        assert await code_of(h.requests.snapshot(SnapshotBody(), ANNA)) is Code.STOPPED


async def test_requests_do_not_queue_for_a_camera_that_hangs_while_opening(rig: Callable[..., Any]) -> None:
    async with rig() as h:
        h.cam.slow_s = 0.3
        h.cam.fault = "the camera did not open within 5 s"
        started_s = asyncio.get_running_loop().time()
        requests = [code_of(h.requests.set(ControlsBody(gain=2.0), ANNA)) for _ in range(20)]
        codes = await asyncio.gather(*requests)
        assert asyncio.get_running_loop().time() - started_s < 1
        assert sorted(set(codes)) == [Code.CAMERA_UNAVAILABLE, Code.RATE_LIMITED]


async def test_snapshot_in_progress_at_the_end_of_the_idle_time_does_not_spin_the_loop(rig: Callable[..., Any]) -> None:
    async with rig(idle_stop_s=0.05) as h:
        await h.open(session="s1")
        calls = 0
        want = h.cam.want

        def counted(wanted: bool) -> None:
            nonlocal calls
            calls += 1
            want(wanted)

        h.cam.want = counted
        h.cam.gate.clear()
        snapshot = asyncio.create_task(h.requests.snapshot(SnapshotBody(), ANNA))
        await h.sessions.close("s1", ANNA)
        await asyncio.sleep(0.3)
        assert calls < 10
        assert h.cam.wanted
        h.cam.gate.set()
        await snapshot
        await until(lambda: not h.cam.wanted)


async def test_snapshots_in_progress_are_bounded_for_each_interface(rig: Callable[..., Any]) -> None:
    taken: list[asyncio.Task[bytes]] = []
    async with rig() as h:
        h.cam.gate.clear()
        # Eight requests of the local page do not refuse the camera to MQTT.
        for caller, refused in ((TECHNICIAN, 6), (ANNA, 1)):
            requests = [asyncio.create_task(h.requests.snapshot(SnapshotBody(), caller)) for _ in range(2)]
            await asyncio.sleep(0.01)
            for _ in range(refused):
                assert await code_of(h.requests.snapshot(SnapshotBody(), caller)) is Code.RATE_LIMITED
            taken += requests
        h.cam.gate.set()
        assert await asyncio.gather(*taken) == 4 * [b"JPEG None 80"]
