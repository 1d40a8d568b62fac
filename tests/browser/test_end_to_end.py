"""From a browser's offer to running video, with real parts only."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.demo.backend import BackendSettings
from edge.errors import Rejected
from tests.browser.stack import READ_CODE, frames, running, until, wait_for_frames, wait_for_state
from tests.contract.test_source import RECORDED_PICTURES, record
from tests.rigs.coturn import Coturn

if TYPE_CHECKING:
    from playwright.async_api import Page


pytestmark = [pytest.mark.timeout(180)]


async def codec(page: Page) -> str:
    name: str = await page.evaluate(
        """async () => {
          const reports = [...(await window.viewer.pc.getStats()).values()];
          const video = reports.find((r) => r.type === "inbound-rtp" && r.kind === "video");
          return reports.find((r) => r.id === video.codecId).mimeType;
        }""",
    )
    return name


async def test_two_viewers_get_h264_from_one_encoder(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        first = await stack.live_page()
        assert await codec(first) == "video/H264"
        children = stack.daemon.children()
        assert len(children) == 1, "only the camera process, which contains the encoder"

        second = await stack.live_page()
        await wait_for_frames(first)
        assert stack.daemon.children() == children
        # One encoder: access units arrive at the camera's frame rate, whatever the number of viewers.
        before, started_s = stack.daemon.status(), time.monotonic()
        await wait_for_frames(second, 40)
        after, took_s = stack.daemon.status(), time.monotonic() - started_s
        assert before is not None
        assert after is not None
        assert after["viewers"]["connected"] == 2
        units = after["counters"]["access_units"] - before["counters"]["access_units"]
        assert units / took_s < 45
        # The daemon itself has no encoder threads.
        assert stack.daemon.process is not None
        threads = list(Path(f"/proc/{stack.daemon.process.pid}/task").iterdir())
        names = {(thread / "comm").read_text().strip() for thread in threads}
        assert not [name for name in names if "264" in name or name.startswith("av:")]

        shown = await first.evaluate(READ_CODE)
        await asyncio.sleep(0.2)
        later = await first.evaluate(READ_CODE)
        assert shown is not None
        assert later is not None
        assert later["value"] > shown["value"], "the clock in the picture advances"
        assert 0 <= later["late"] < 2000


@pytest.mark.slow
async def test_page_recovers_after_reload_and_after_stop_and_start(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        page = await stack.live_page()
        pid = stack.daemon.children()
        await page.reload()
        await wait_for_state(page, "live")
        await wait_for_frames(page)
        assert stack.daemon.children() == pid
        # The session of the previous page ends soon.
        await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: s["viewers"]["connected"] == 1, 10)

        await stack.camera.stop("night", token=stack.token("manage"))
        await wait_for_state(page, "stopped")
        status = stack.daemon.status()
        assert status is not None
        assert (status["stream"]["wanted"], status["camera"]["state"]) == ("stopped", "closed")
        assert status["viewers"]["connected"] == 0

        # The stop survives a restart of the daemon.
        assert await asyncio.to_thread(stack.daemon.stop) == 0
        await asyncio.to_thread(stack.daemon.start)
        status = stack.daemon.status()
        assert status is not None
        assert status["stream"]["wanted"] == "stopped"

        await asyncio.to_thread(stack.daemon.post, "/api/v1/stream/start")
        await wait_for_state(page, "live", 30)
        await wait_for_frames(page)


@pytest.mark.slow
async def test_video_resumes_on_the_same_connection_after_a_kill_of_the_camera_process(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        pages = [await stack.live_page(), await stack.live_page()]
        for page in pages:
            await page.evaluate("window.first = window.viewer.pc")
        for _ in range(2):
            (pid,) = stack.daemon.children()
            os.kill(pid, signal.SIGKILL)
            killed_s = time.monotonic()
            before = [await frames(page) for page in pages]
            for page, count in zip(pages, before, strict=True):
                # A few frames may still be in transit.
                while await frames(page) < count + 10:
                    await asyncio.sleep(0.05)
            assert time.monotonic() - killed_s < 3 + 1, "3 s, plus one second for ten frames on a slow machine"
        for page in pages:
            assert await page.evaluate("window.first === window.viewer.pc")
            assert await page.evaluate("window.viewer.pc.connectionState") == "connected"
        status = stack.daemon.status()
        assert status is not None
        assert status["camera"]["restarts"] == 2
        assert status["viewers"]["connected"] == 2


@pytest.mark.slow
async def test_frozen_picture_is_shown_and_recovers_on_the_same_connection(tmp_path: Path) -> None:
    async with running(tmp_path, camera={"stall_s": 1}) as stack:
        page = await stack.live_page()
        await page.evaluate("window.first = window.viewer.pc")
        (pid,) = stack.daemon.children()
        os.kill(pid, signal.SIGSTOP)
        await wait_for_state(page, "stalled")
        assert "The camera has stalled" in await page.inner_text("body")
        assert "delivered no picture for 1 s" in await page.inner_text("body")
        await wait_for_state(page, "live")
        await wait_for_frames(page)
        assert await page.evaluate("window.first === window.viewer.pc")
        status = stack.daemon.status()
        assert status is not None
        recovery = status["camera"]["recovery"]
        assert (recovery["stalls"], recovery["restarts"], recovery["last"]) == (1, 1, "restart")
        assert status["last_error"]["code"] in {"camera_stalled", "camera_unavailable"}


@pytest.mark.slow
async def test_quality_changes_on_the_same_connection_while_live(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        page = await stack.live_page()
        other = await stack.live_page()
        await page.evaluate("window.first = window.viewer.pc")
        for width in (640, 1280):
            await page.click("#quality")
            await page.wait_for_function(f"document.getElementById('video').videoWidth === {width}", timeout=15_000)
            assert await page.inner_text("#quality") == ("SD" if width == 640 else "HD")
            assert await page.evaluate("document.body.dataset.state") == "live"
            await wait_for_frames(page)
        assert await page.evaluate("window.first === window.viewer.pc")
        assert await other.evaluate("document.getElementById('video').videoWidth") == 1280


@pytest.mark.slow
async def test_snapshots_and_controls_work_while_a_viewer_watches(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        page = await stack.live_page()

        async def upright() -> bool:
            """Whether the time code is in the top rows."""
            return await page.evaluate(READ_CODE) is not None

        async def turned() -> bool:
            return not await upright()

        control = stack.token("control")
        assert await upright()
        assert (await stack.camera.set_controls({"flip_vertical": True}, token=control))["flip_vertical"] is True
        await until(turned)
        assert (await stack.camera.snapshot(640, token=stack.token()))[:2] == b"\xff\xd8"
        await stack.camera.set_controls({"flip_vertical": None}, token=control)
        await until(upright)
        await wait_for_frames(page)


@pytest.mark.slow
async def test_bad_messages_and_a_lost_broker_do_not_disturb_a_viewer(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        page = await stack.live_page()
        for sdp in ("", "hello", "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n", "v=0\r\n" + "x" * 40_000):
            with pytest.raises(Rejected):
                await stack.camera.offer(sdp, token=stack.token())
        for token, code in ((None, "unauthorized"), (stack.token(), "unknown_session")):
            with pytest.raises(Rejected) as caught:
                await stack.camera.close("of-another-client", token=token)
            assert caught.value.code == code
        await wait_for_frames(page)

        await asyncio.to_thread(stack.broker.kill)
        await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: not s["broker"]["connected"])
        status = stack.daemon.status()
        assert status is not None
        assert status["broker"]["error"]
        await wait_for_frames(page, 30)
        await asyncio.to_thread(stack.broker.start)
        await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: s["broker"]["connected"], 15)
        await wait_for_frames(page)

        async def answers() -> object:
            return (await stack.camera.status(token=stack.token())).online

        await until(answers)
        other = await stack.live_page()
        await other.close()


@pytest.mark.slow
async def test_viewer_above_the_limit_waits_and_joins_when_another_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, sessions={"max_viewers": 1}) as stack:
        page = await stack.live_page()
        other = await stack.page()
        await wait_for_state(other, "busy")
        assert "1 of 1" in await other.inner_text("body")
        await wait_for_frames(page)
        await page.close()
        await wait_for_state(other, "live", 40)


@pytest.mark.slow
async def test_page_shows_why_the_camera_cannot_be_opened(tmp_path: Path) -> None:
    missing = {"source": "file", "path": str(tmp_path / "missing.ts")}
    async with running(tmp_path, camera=missing) as stack:
        page = await stack.page()
        await wait_for_state(page, "unavailable")
        # Viewers read that there is no camera, and the technician reads why.
        text = await page.inner_text("body")
        assert "The camera is not connected" in text
        assert "missing.ts" not in text
        status = stack.daemon.status()
        assert status is not None
        assert "missing.ts" in status["camera"]["error"]


@pytest.mark.slow
async def test_technicians_page_shows_the_status_and_stops_and_starts(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        viewer = await stack.live_page()
        page = await stack.browser.new_page()
        await page.goto(f"http://127.0.0.1:{stack.daemon.api_port}/")

        async def shows(element: str, text: str) -> None:
            await page.wait_for_function(
                "([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[element, text]
            )

        await shows("state", "live")
        await shows("viewers", "1 of 5")
        await shows("camera", "1280 × 720")  # noqa: RUF001  the multiplication sign is intended
        await shows("broker", "connected")
        await shows("error", "none")
        refusal = await page.evaluate(
            """async () => {
              const status = await (await fetch("/api/v1/status")).json();
              show({ ...status, last_refusal: { code: "busy", type: "session.offer", message: null, at: status.at } });
              return document.getElementById("refusal").textContent;
            }"""
        )
        assert refusal.startswith("session.offer: the viewer limit was reached (")
        await page.click("#stop")
        await shows("state", "stopped")
        await wait_for_state(viewer, "stopped")
        assert await page.is_disabled("#stop")
        await page.click("#start")
        await shows("state", "live")
        await wait_for_state(viewer, "live")
        assert await asyncio.to_thread(stack.daemon.stop) == 0
        await shows("state", "does not answer")


@pytest.mark.slow
async def test_recording_plays_on_after_its_end(tmp_path: Path) -> None:
    recording = record(tmp_path / "loop.mp4")
    async with running(tmp_path, camera={"source": "file", "path": str(recording)}) as stack:
        page = await stack.live_page()
        await wait_for_frames(page, 3 * RECORDED_PICTURES)
        status = stack.daemon.status()
        assert status is not None
        assert (status["camera"]["source"], status["camera"]["restarts"]) == ("file", 0)


@pytest.mark.slow
async def test_plain_page_without_trickle_plays_video(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        page = await stack.page("/plain")
        await page.wait_for_function("document.querySelector('video').videoWidth > 0", timeout=20_000)

        async def advances() -> bool:
            before = await page.evaluate("document.querySelector('video').currentTime")
            await asyncio.sleep(0.3)
            return bool(await page.evaluate("document.querySelector('video').currentTime") > before)

        await until(advances)


@pytest.mark.slow
async def test_browser_connects_through_a_turn_relay(tmp_path: Path) -> None:
    coturn = Coturn("u", "p")
    coturn.start()
    try:
        url = f"turn:{coturn.host}:{coturn.port}?transport=udp"
        ice = {"servers": [{"urls": [url], "username": "u", "credential": "p"}]}
        settings = BackendSettings.model_validate({"ice": ice})
        async with running(
            tmp_path, backend=settings, ice={"allowed_hosts": [coturn.host], "allowed_ports": [coturn.port]}
        ) as stack:
            await stack.browser.add_init_script(
                """const Real = RTCPeerConnection;
                window.RTCPeerConnection = class extends Real {
                  setConfiguration(c) { super.setConfiguration({...c, iceTransportPolicy: "relay"}); }
                };""",
            )
            page = await stack.page()
            await wait_for_state(page, "live", 30)
            await wait_for_frames(page)
            (session,) = await stack.camera.sessions(token=stack.token("manage"))
            assert session.path
            assert "relay" in session.path or "prflx" in session.path
    finally:
        coturn.stop()


@pytest.mark.slow
async def test_watchdog_is_fed_while_idle_and_without_a_broker(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.setblocking(False)
        notifications: list[tuple[float, str]] = []
        # Read all the time, like systemd: the kernel queues ten messages only, and the next one would block the daemon.
        asyncio.get_running_loop().add_reader(
            notify, lambda: notifications.append((time.monotonic(), notify.recv(4096).decode()))
        )
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}
        async with running(tmp_path, environment=environment, camera={"idle_stop_s": 1}) as stack:
            page = await stack.live_page()
            await page.close()
            await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: s["camera"]["state"] == "closed", 20)
            await asyncio.to_thread(stack.broker.stop)
            assert stack.daemon.process is not None
            pid = stack.daemon.process.pid
            started_s = time.monotonic()
            await asyncio.sleep(6)
            feeds = [at_s for at_s, message in notifications if message == "WATCHDOG=1" and at_s > started_s]
            gaps = [later - earlier for earlier, later in itertools.pairwise(feeds)]
            assert len(feeds) >= 4
            assert max(gaps) < 2, "systemd would have killed the daemon"
            assert stack.daemon.process.pid == pid
            assert stack.daemon.process.poll() is None
            assert any("no broker" in message for _, message in notifications)
            await asyncio.to_thread(stack.broker.start)
        asyncio.get_running_loop().remove_reader(notify)


@pytest.mark.slow
async def test_video_continues_after_a_step_of_the_wall_clock(tmp_path: Path) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    clock = tmp_path / "clock"
    clock.write_text("+0s\n")
    environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    async with running(tmp_path, environment=environment) as stack:
        page = await stack.live_page()
        for step in ("+3h", "-2d"):
            clock.write_text(step + "\n")

            async def stepped(step: str = step) -> bool:
                shown = await page.evaluate(READ_CODE)
                return shown is not None and (shown["late"] < -3600_000) == step.startswith("+")

            await wait_for_frames(page, 60)
            await until(stepped)
            status = stack.daemon.status()
            assert status is not None
            assert status["camera"]["restarts"] == 0
            assert status["viewers"]["connected"] == 1
        clock.write_text("+0s\n")
        other = await stack.live_page()
        await wait_for_frames(other)
        await wait_for_frames(page)
