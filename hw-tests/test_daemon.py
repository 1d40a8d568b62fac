"""The whole daemon with viewers on this board: first frames, what viewers cost, and a camera process that is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from typing import TYPE_CHECKING

from figures import Figure
from house import house
from vitals import cpu_s, temperature_c

if TYPE_CHECKING:
    from pathlib import Path

    from bounds import Bounds
    from figures import Report
    from house import House

FPS = 30
COLD, WARM = 3, 5
MOST_VIEWERS = 5
SHORTEST_S = 3.0
"""The kernel counts a process's time in hundredths of a second."""


async def test_first_frames(tmp_path: Path, source: str, bounds: Bounds, report: Report) -> None:
    async with house(tmp_path, source=source, idle_stop_s=0.5) as stage:
        cold_ms, warm_ms = [], []
        for _ in range(COLD):
            await stage.until_closed()
            cold_ms.append(await stage.join())
            await stage.leave()
        await stage.join()
        for _ in range(WARM):
            # A keyframe is asked for twice a second at most: the last viewer's must not be this one's wait.
            await asyncio.sleep(random.uniform(1, 1.1))
            warm_ms.append(await stage.join())
            await stage.leave()
        report.hold(
            Figure("first_frame_cold_ms", statistics.median(cold_ms), "ms", at_most=bounds.cold_ms),
            Figure("first_frame_cold_worst_ms", max(cold_ms), "ms"),
            Figure("first_frame_warm_ms", statistics.median(warm_ms), "ms", at_most=bounds.warm_ms),
            Figure("first_frame_warm_worst_ms", max(warm_ms), "ms"),
        )


async def load(stage: House, seconds: float) -> tuple[float, float]:
    """CPU of the daemon and of the camera process over so many seconds, in percent of one core."""
    pids = stage.daemon_pid, stage.camera_pid
    begun_s, before = time.monotonic(), [cpu_s(pid) for pid in pids]
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - begun_s
    daemon, camera = (100 * (cpu_s(pid) - spent) / took_s for pid, spent in zip(pids, before, strict=True))
    return daemon, camera


async def test_what_viewers_cost(tmp_path: Path, source: str, bounds: Bounds, report: Report, minute_s: float) -> None:
    window_s = max(SHORTEST_S, minute_s / 3)
    most_percent = {0: bounds.cpu_idle_percent, 1: bounds.cpu_one_percent, MOST_VIEWERS: bounds.cpu_five_percent}
    figures = []
    async with house(tmp_path, source=source, idle_stop_s=0.5) as stage:
        for viewers, at_most in most_percent.items():
            while len(stage.viewers) < viewers:
                await stage.join()
            await asyncio.sleep(1)
            begun_ns = time.monotonic_ns()
            daemon, camera = await load(stage, window_s)
            rates = [viewer.frame_rate(begun_ns) for viewer in stage.viewers]
            figures += [
                Figure(f"cpu_{viewers}_viewers_percent", daemon + camera, "% core", at_most=at_most),
                Figure(f"cpu_{viewers}_viewers_daemon_percent", daemon, "% core"),
                Figure(f"cpu_{viewers}_viewers_camera_percent", camera, "% core"),
                Figure(f"temperature_{viewers}_viewers_c", temperature_c(), "C", at_most=bounds.temperature_c),
            ]
            if viewers:
                least_fps = bounds.frame_rate * FPS
                figures.append(Figure(f"viewer_{viewers}_slowest_fps", min(rates), "fps", at_least=least_fps))
        figures.append(
            Figure("viewer_packets_lost", sum([await one.packets_lost() for one in stage.viewers]), "packets")
        )
        assert len(await stage.camera.sessions()) == MOST_VIEWERS
    report.hold(*figures)


async def test_viewers_stay_when_the_camera_process_is_killed(
    tmp_path: Path, source: str, bounds: Bounds, report: Report
) -> None:
    async with house(tmp_path, source=source) as stage:
        for _ in range(2):
            await stage.join()
        sessions = {viewer.session for viewer in stage.viewers}
        begun_ns, killed = time.monotonic_ns(), stage.camera_pid
        os.kill(killed, signal.SIGKILL)
        status = await stage.until_status(lambda status: status.restarts == 1 and status.state == "running")
        for viewer in stage.viewers:
            await viewer.sees(FPS)
        dark_s = max(viewer.longest_gap_s(begun_ns) for viewer in stage.viewers)
        assert all(viewer.connected for viewer in stage.viewers)
        assert {session.session for session in await stage.camera.sessions()} == sessions
        assert status.restarts == 1
        assert stage.camera_pid != killed
        report.hold(Figure("kill_viewer_dark_s", dark_s, "s", at_most=bounds.recovery_s))
