"""The daemon with viewers on this board: first frames, the load of viewers, and a killed camera process."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from typing import TYPE_CHECKING

from daemon_stack import daemon_stack
from figures import Figure
from vitals import cpu_s, temperature_c

if TYPE_CHECKING:
    from pathlib import Path

    from bounds import Bounds
    from daemon_stack import DaemonStack
    from figures import Report

FPS = 30
COLD_STARTS, WARM_STARTS = 3, 5
MAX_VIEWERS = 5
MIN_WINDOW_S = 3.0
"""Shortest window for the processor time, which the kernel counts in hundredths of a second."""


async def test_first_frame_arrives_in_time(tmp_path: Path, source: str, bounds: Bounds, report: Report) -> None:
    async with daemon_stack(tmp_path, source=source, idle_stop_s=0.5) as stack:
        cold_ms, warm_ms = [], []
        for _ in range(COLD_STARTS):
            await stack.wait_until_closed()
            cold_ms.append(await stack.join())
            await stack.leave()
        await stack.join()
        for _ in range(WARM_STARTS):
            # Keyframe requests are limited to two per second: do not wait because of the previous viewer.
            await asyncio.sleep(random.uniform(1, 1.1))
            warm_ms.append(await stack.join())
            await stack.leave()
        report.check(
            Figure("first_frame_cold_ms", statistics.median(cold_ms), "ms", at_most=bounds.cold_ms),
            Figure("first_frame_cold_worst_ms", max(cold_ms), "ms"),
            Figure("first_frame_warm_ms", statistics.median(warm_ms), "ms", at_most=bounds.warm_ms),
            Figure("first_frame_warm_worst_ms", max(warm_ms), "ms"),
        )


async def load(stack: DaemonStack, seconds: float) -> tuple[float, float]:
    """CPU of the daemon and of the camera process over `seconds`, in percent of one core."""
    pids = stack.daemon_pid, stack.camera_pid
    started_s, before = time.monotonic(), [cpu_s(pid) for pid in pids]
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - started_s
    daemon, camera = (100 * (cpu_s(pid) - start_s) / took_s for pid, start_s in zip(pids, before, strict=True))
    return daemon, camera


async def test_load_of_viewers_is_within_bounds(
    tmp_path: Path, source: str, bounds: Bounds, report: Report, minute_s: float
) -> None:
    window_s = max(MIN_WINDOW_S, minute_s / 3)
    max_percent = {0: bounds.cpu_idle_percent, 1: bounds.cpu_one_percent, MAX_VIEWERS: bounds.cpu_five_percent}
    figures = []
    async with daemon_stack(tmp_path, source=source, idle_stop_s=0.5) as stack:
        for viewers, at_most in max_percent.items():
            while len(stack.viewers) < viewers:
                await stack.join()
            await asyncio.sleep(1)
            started_ns = time.monotonic_ns()
            daemon, camera = await load(stack, window_s)
            rates = [viewer.frame_rate(started_ns) for viewer in stack.viewers]
            figures += [
                Figure(f"cpu_{viewers}_viewers_percent", daemon + camera, "% core", at_most=at_most),
                Figure(f"cpu_{viewers}_viewers_daemon_percent", daemon, "% core"),
                Figure(f"cpu_{viewers}_viewers_camera_percent", camera, "% core"),
                Figure(f"temperature_{viewers}_viewers_c", temperature_c(), "C", at_most=bounds.temperature_c),
            ]
            if viewers:
                min_fps = bounds.frame_rate * FPS
                figures.append(Figure(f"viewer_{viewers}_slowest_fps", min(rates), "fps", at_least=min_fps))
        figures.append(
            Figure("viewer_packets_lost", sum([await one.packets_lost() for one in stack.viewers]), "packets")
        )
        assert len(await stack.camera.sessions()) == MAX_VIEWERS
    report.check(*figures)


async def test_viewers_stay_connected_when_the_camera_process_is_killed(
    tmp_path: Path, source: str, bounds: Bounds, report: Report
) -> None:
    async with daemon_stack(tmp_path, source=source) as stack:
        for _ in range(2):
            await stack.join()
        sessions = {viewer.session for viewer in stack.viewers}
        started_ns, killed = time.monotonic_ns(), stack.camera_pid
        os.kill(killed, signal.SIGKILL)
        status = await stack.wait_for_status(lambda status: status.restarts == 1 and status.state == "running")
        for viewer in stack.viewers:
            await viewer.wait_for_pictures(FPS)
        gap_s = max(viewer.longest_gap_s(started_ns) for viewer in stack.viewers)
        assert all(viewer.connected for viewer in stack.viewers)
        assert {session.session for session in await stack.camera.sessions()} == sessions
        assert status.restarts == 1
        assert stack.camera_pid != killed
        report.check(Figure("kill_viewer_dark_s", gap_s, "s", at_most=bounds.recovery_s))
