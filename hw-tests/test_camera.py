"""The camera process alone: its output, and its reaction to requests."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import statistics
import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from camera_recorder import bitrate_bps, frame_rate, missed, open_camera
from edge.camera.settings import CameraSettings
from edge.core.access_unit import Quality
from figures import Figure, p95

if TYPE_CHECKING:
    from bounds import Bounds
    from figures import Report

FPS = 30
SLOWER_FPS = 15
SETTLE_S = 4.0
"""libx264's rate buffer holds half a second. Its bitrate follows a change within a few buffers."""
WINDOW_S = 3.0
KEYFRAMES = 10
SNAPSHOTS = 5


def settings(source: str, **more: Any) -> CameraSettings:
    return CameraSettings.model_validate({"source": source, "open_timeout_s": 15, **more})


async def test_a_minute_of_video_is_within_bounds(source: str, bounds: Bounds, report: Report, minute_s: float) -> None:
    async with open_camera(settings(source)) as recorder:
        report.about["encoder"] = recorder.encoder
        assert recorder.encoder in bounds.encoders
        (arrivals,) = await recorder.record(minute_s)
        latency_ms = [arrival.latency_ms for arrival in arrivals]
        assert min(latency_ms) >= 0, "captured after the arrival: the camera does not use the system's clock"
        report.check(
            Figure("camera_process_start_s", recorder.ready_s, "s"),
            Figure("camera_open_s", recorder.open_s, "s"),
            Figure("frame_rate_fps", frame_rate(arrivals), "fps", at_least=bounds.frame_rate * FPS),
            Figure("missed_percent", 100 * missed(arrivals, FPS) / len(arrivals), "%", at_most=bounds.missed_percent),
            Figure("dropped_units", recorder.camera.dropped, "units", at_most=bounds.dropped_units),
            Figure("encode_latency_p50_ms", statistics.median(latency_ms), "ms", at_most=bounds.latency_p50_ms),
            Figure("encode_latency_p95_ms", p95(latency_ms), "ms", at_most=bounds.latency_p95_ms),
            Figure("bitrate_bps", bitrate_bps(arrivals), "bit/s"),
        )


async def test_hd_with_sd_is_within_bounds(source: str, bounds: Bounds, report: Report, minute_s: float) -> None:
    async with open_camera(settings(source)) as recorder:
        recorder.camera.encode_sd(on=True)
        first = await recorder.next(Quality.SD)
        assert first.keyframe
        hd, sd = await recorder.record(minute_s / 2, Quality.HD, Quality.SD)
        min_fps = bounds.frame_rate * FPS
        assert recorder.camera.sd_error is None
        report.check(
            Figure("both_hd_frame_rate_fps", frame_rate(hd), "fps", at_least=min_fps),
            Figure("both_sd_frame_rate_fps", frame_rate(sd), "fps", at_least=min_fps),
            Figure("both_hd_latency_p95_ms", p95([one.latency_ms for one in hd]), "ms", at_most=bounds.latency_p95_ms),
            Figure("both_sd_latency_p95_ms", p95([one.latency_ms for one in sd]), "ms", at_most=bounds.latency_p95_ms),
        )


async def test_requested_keyframe_arrives_in_time(source: str, bounds: Bounds, report: Report) -> None:
    async with open_camera(settings(source, keyframe_interval_s=60)) as recorder:
        await recorder.record(1)
        capture_intervals, arrival_ms = [], []
        for _ in range(KEYFRAMES):
            requested_ns = time.monotonic_ns()
            recorder.camera.request_keyframe(Quality.HD)
            keyframe = await recorder.next(condition=lambda arrival: arrival.keyframe)
            # The keyframe may be a picture that was captured before the request and is being encoded.
            capture_intervals.append(max(0.0, (keyframe.captured_ns - requested_ns) / 1e9 * FPS))
            arrival_ms.append((keyframe.at_ns - requested_ns) / 1e6)
            # A random pause, so that requests hit every phase of the frame interval.
            await asyncio.sleep(random.uniform(0.2, 0.2 + 1 / FPS))
        keyframes = sum(arrival.keyframe for arrival in recorder.arrived[Quality.HD])
        assert keyframes == KEYFRAMES + 1, "not exactly one keyframe per request"
        most = bounds.keyframe_intervals
        report.check(
            Figure("keyframe_median_intervals", statistics.median(capture_intervals), "intervals", at_most=2),
            Figure("keyframe_worst_intervals", max(capture_intervals), "intervals", at_most=most),
            Figure("keyframe_median_ms", statistics.median(arrival_ms), "ms"),
            Figure("keyframe_worst_ms", max(arrival_ms), "ms"),
        )


async def test_bitrate_follows_a_request(source: str, bounds: Bounds, report: Report) -> None:
    lowest_bps = 50_000
    hd = {"width": 1280, "height": 720, "min_bps": lowest_bps, "max_bps": 2_000_000}
    async with open_camera(settings(source, keyframe_interval_s=60, hd=hd)) as recorder:
        await recorder.record(SETTLE_S)
        (before,) = await recorder.record(WINDOW_S)
        # A third of the measured bitrate: in a dark room, it is below the configured limit.
        requested_bps = max(lowest_bps, int(bitrate_bps(before) / 3))
        recorder.camera.set_bitrate(Quality.HD, requested_bps)
        (settling,) = await recorder.record(SETTLE_S)
        (after,) = await recorder.record(WINDOW_S)
        keyframes = sum(arrival.keyframe for arrival in [*settling, *after])
        # The bound does not apply to hardware encoders until one has been measured.
        bounded = recorder.encoder == "libx264"
        share = bitrate_bps(after) / bitrate_bps(before)
        assert frame_rate(after) >= bounds.frame_rate * FPS
        report.check(
            Figure("bitrate_before_bps", bitrate_bps(before), "bit/s"),
            Figure("bitrate_ordered_bps", requested_bps, "bit/s"),
            Figure("bitrate_after_bps", bitrate_bps(after), "bit/s"),
            Figure("bitrate_after_share", share, "", at_most=bounds.bitrate_share if bounded else None),
            Figure("bitrate_change_keyframes", keyframes, "keyframes", at_most=0 if bounded else None),
        )


async def test_frame_rate_follows_a_request(source: str, bounds: Bounds, report: Report) -> None:
    async with open_camera(settings(source)) as recorder:
        controls = await recorder.camera.set_controls({"fps": SLOWER_FPS})
        assert controls["fps"] == SLOWER_FPS
        await recorder.record(1)  # pictures in progress
        (slower,) = await recorder.record(WINDOW_S)
        await recorder.camera.set_controls({"fps": None})
        await recorder.record(1)
        (restored,) = await recorder.record(WINDOW_S)
        share = bounds.frame_rate
        report.check(
            Figure(
                "slowed_frame_rate_fps",
                frame_rate(slower),
                "fps",
                at_most=SLOWER_FPS / share,
                at_least=SLOWER_FPS * share,
            ),
            Figure("restored_frame_rate_fps", frame_rate(restored), "fps", at_least=FPS * share),
        )


async def test_snapshots_do_not_slow_the_video_down(source: str, bounds: Bounds, report: Report) -> None:
    async with open_camera(settings(source)) as recorder:
        took_ms = []
        recording = asyncio.create_task(recorder.record(WINDOW_S))
        for _ in range(SNAPSHOTS):
            started_s = time.monotonic()
            jpeg = await recorder.camera.snapshot(None, 80)
            took_ms.append((time.monotonic() - started_s) * 1000)
            with Image.open(io.BytesIO(jpeg)) as picture:
                picture.load()
                assert (picture.format, picture.size) == ("JPEG", (1280, 720))
        (arrivals,) = await recording
        report.check(
            Figure("snapshot_median_ms", statistics.median(took_ms), "ms", at_most=bounds.snapshot_ms),
            Figure("snapshot_frame_rate_fps", frame_rate(arrivals), "fps", at_least=bounds.snapshot_frame_rate * FPS),
        )


async def test_video_resumes_after_a_kill(source: str, bounds: Bounds, report: Report) -> None:
    async with open_camera(settings(source)) as recorder:
        killed = recorder.camera.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        started_ns = time.monotonic_ns()
        first = await recorder.next(condition=lambda arrival: arrival.captured_ns > started_ns)
        assert first.keyframe
        (arrivals,) = await recorder.record(WINDOW_S)
        assert recorder.camera.restarts == 1
        assert recorder.camera.pid != killed
        report.check(
            Figure("kill_recovery_s", (first.at_ns - started_ns) / 1e9, "s", at_most=bounds.recovery_s),
            Figure("kill_frame_rate_fps", frame_rate(arrivals), "fps", at_least=bounds.frame_rate * FPS),
        )
