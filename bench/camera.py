"""Benchmark of the camera process with the real picamera2: `./dev bench camera [--json FILE]`.

Compares this project's HD and SD streams together with picamera2's stock H.264 encoder, which encodes HD only. Both
use the same camera in turns. Latency is measured from the sensor timestamp until the encoded picture arrives at the
reader of the camera process. Without picamera2, the benchmark runs in the tests' camera root with libcamera's virtual
camera.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edge.core.access_unit import AccessUnit, Quality
from tests.rigs.camera import Daemon, running
from tests.rigs.camera_root import CameraRoot

SECONDS, TURNS, KEYFRAMES = 5, 3, 10
FPS = 30
TARGETS = {"latency_p50_ms": 12, "keyframe_frames": 2, "stall_recovery_s": 1}


def stock() -> dict[str, float]:
    from picamera2 import Picamera2  # noqa: PLC0415  installed on some machines only
    from picamera2.encoders import LibavH264Encoder  # noqa: PLC0415

    latencies_ms: list[float] = []

    class Timed(LibavH264Encoder):  # type: ignore[misc]
        def outputframe(self, frame: object, *arguments: Any, timestamp: int = 0, **_: object) -> None:  # noqa: ARG002
            latencies_ms.append(time.monotonic_ns() / 1e6 - (self.firsttimestamp + timestamp) / 1e3)

    camera = Picamera2()
    limits = {"FrameDurationLimits": (33_333, 33_333)}
    camera.configure(camera.create_video_configuration({"size": (1280, 720), "format": "YUV420"}, controls=limits))
    camera.start_encoder(Timed(bitrate=2_000_000), name="main")
    camera.start()
    time.sleep(SECONDS)
    camera.stop()
    camera.stop_encoder()
    camera.close()
    return latency(latencies_ms)


def latency(latencies_ms: list[float]) -> dict[str, float]:
    settled = latencies_ms[FPS:]
    cuts = statistics.quantiles(settled, n=20)
    return {"latency_p50_ms": round(statistics.median(settled), 1), "latency_p95_ms": round(cuts[18], 1)}


async def ours() -> dict[str, float]:
    latencies_ms: list[float] = []
    captured: dict[Quality, list[int]] = {quality: [] for quality in Quality}

    def tap(unit: AccessUnit) -> None:
        captured[unit.quality].append(unit.captured_ns)
        if unit.quality is Quality.HD:
            latencies_ms.append((time.monotonic_ns() - unit.captured_ns) / 1e6)

    async with running(source="picamera2", hd={}, sd={}, open_timeout_s=15, tap=tap) as daemon:
        daemon.camera.want(wanted=True)
        await daemon.camera.opened()
        daemon.camera.encode_sd(on=True)
        await asyncio.sleep(SECONDS)
        found = latency(latencies_ms)
        for quality, stamps in captured.items():
            settled = stamps[FPS:]
            found[f"{quality}_fps"] = round((len(settled) - 1) * 1e9 / (settled[-1] - settled[0]), 2)
        found["keyframe_frames"] = statistics.median([await keyframe_frames(daemon) for _ in range(KEYFRAMES)])
    return found


async def keyframe_frames(daemon: Daemon) -> float:
    """The number of pictures from the request to the keyframe, including the keyframe."""
    await asyncio.sleep(0.2)
    hd = [unit for unit in daemon.units if unit.quality is Quality.HD]
    daemon.camera.request_keyframe(Quality.HD)
    count = len(hd)

    def since() -> list[bool]:
        return [unit.keyframe for unit in daemon.units if unit.quality is Quality.HD][count:]

    await daemon.until(lambda: any(since()))
    return since().index(True) + 1


async def stall_recovery_s(directory: Path) -> float:
    """Seconds from the detection of a stall, `stall_s` after the last picture, to the first picture after reopening."""
    os.environ["EDGE_RIG_FAULTS"] = str(directory)
    stall_s = 2.0
    async with running(source="picamera2", hd={}, sd={}, open_timeout_s=15, stall_s=stall_s) as daemon:
        daemon.camera.want(wanted=True)
        await daemon.camera.opened()
        await daemon.more_units(FPS)
        (directory / "stalled").touch()
        await daemon.until(lambda: daemon.camera.error is not None)
        before_ns = daemon.units[-1].captured_ns
        count = len(daemon.units)
        await daemon.until(lambda: len(daemon.units) > count)
        return round((daemon.units[count].captured_ns - before_ns) / 1e9 - stall_s, 2)


async def measure() -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "stock": []}
    for turn in range(TURNS):
        print(f"turn {turn + 1} of {TURNS}", file=sys.stderr, flush=True)
        turns["ours"].append(await ours())
        turns["stock"].append(await asyncio.to_thread(stock))
    found: dict[str, Any] = {
        encoder: {name: statistics.median(each[name] for each in rows) for name in rows[0]}
        for encoder, rows in turns.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        found["ours"]["stall_recovery_s"] = await stall_recovery_s(Path(directory))
    return found


def report(found: dict[str, Any]) -> None:
    ours_, stock_ = found["ours"], found["stock"]
    print(f"{'':20}{'ours':>10}{'picamera2':>11}{'ratio':>8}{'target':>8}")
    for name, value in ours_.items():
        theirs = stock_.get(name)
        ratio = f"{value / theirs:8.2f}" if theirs else f"{'':8}"
        print(f"{name:20}{value:10}{theirs if theirs is not None else '':>11}{ratio}{TARGETS.get(name, ''):>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if importlib.util.find_spec("picamera2"):
        found = asyncio.run(measure())
        print(json.dumps(found))
        return
    root = CameraRoot()
    root.build()
    result = root.python("-m", "bench.camera", timeout_s=300)
    lines = result.stdout.splitlines()
    if result.returncode:
        sys.exit(result.stdout)
    found = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    missed = [name for name, target in TARGETS.items() if found["ours"][name] > target]
    if missed:
        sys.exit(f"target missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
