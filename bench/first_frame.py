"""Benchmark of the first frame, the latency and the memory with viewers: `./dev bench first-frame [--json FILE]`.

All parts are real and run on this machine: Chromium with the reference page, the reference backend, mosquitto and the
daemon. First frame: from the POST of the page's offer (before its ICE gathering ends) to the first displayed frame.
Latency: from the time encoded in the picture to its display. The table shows this machine's figures and the targets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser.stack import running, wait_for_frames, wait_for_state

if TYPE_CHECKING:
    from playwright.async_api import Page

    from tests.browser.stack import Stack
    from tests.rigs.daemon import Daemon

WARM_STARTS, COLD_STARTS = 20, 8
LATENCY_S = 10
VIEWERS = (0, 1, 5)
TARGETS = {"first_frame_ms": {"p50": 300}, "cold_first_frame_ms": {"p50": 1000}, "latency_ms": {"p50": 70}}

# Read the block code in the callback of each frame, and return the delays until the display.
MEASURE_LATENCY = """async (seconds) => {
  const video = document.querySelector("video"), latencies = [];
  const canvas = new OffscreenCanvas(video.videoWidth, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const block = Math.floor(canvas.width / 40);
  const until = performance.now() + seconds * 1000;
  await new Promise((done) => {
    function frame(now, about) {
      const shown = performance.timeOrigin + about.expectedDisplayTime;
      context.drawImage(video, 0, 8, canvas.width, 1, 0, 0, canvas.width, 1);
      const row = context.getImageData(0, 0, canvas.width, 1).data;
      let bits = "";
      for (let i = 0; i < 40; i++) bits += row[4 * (i * block + (block >> 1)) + 1] > 128 ? "1" : "0";
      const value = parseInt(bits.slice(0, 32), 2), sum = parseInt(bits.slice(32), 2);
      const want = ((value >>> 24) ^ (value >>> 16) ^ (value >>> 8) ^ value ^ 0x5a) & 0xff;
      if (sum === want) latencies.push((Math.round(shown) % 2 ** 32) - value);
      if (performance.now() < until) video.requestVideoFrameCallback(frame); else done();
    }
    video.requestVideoFrameCallback(frame);
  });
  return latencies;
}"""


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(statistics.median(values), 1), "p95": round(cuts[18], 1)}


async def first_frame_ms(page: Page) -> float:
    await wait_for_state(page, "live", 30)
    times = await page.evaluate("window.viewer.times")
    return float(times["firstFrame"] - times["offered"])


async def first_frames(stack: Stack, count: int, *, cold: bool) -> list[float]:
    found = []
    for number in range(count):
        if cold:
            await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: s["camera"]["state"] == "closed", 20)
        page = await stack.page()
        found.append(await first_frame_ms(page))
        await page.close()
        # Wait until the session is closed before the next page starts.
        await asyncio.to_thread(stack.daemon.wait_for_status, lambda s: s["viewers"]["connected"] <= (not cold), 20)
        progress(f"first frame, camera {'closed' if cold else 'open'}: {number + 1} of {count}")
    return found


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024, 1)


def memory(daemon: Daemon) -> tuple[float, float]:
    assert daemon.process is not None
    return rss_mb(daemon.process.pid), rss_mb(daemon.children()[0])


async def measure() -> dict[str, Any]:
    rss: dict[str, dict[str, float]] = {"daemon": {}, "camera": {}}
    with tempfile.TemporaryDirectory() as directory:
        async with running(Path(directory), camera={"idle_stop_s": 1}, sessions={"max_viewers": 10}) as stack:
            rss["daemon"]["0"], rss["camera"]["0"] = memory(stack.daemon)
            cold = await first_frames(stack, COLD_STARTS, cold=True)
            viewer = await stack.live_page()
            warm = await first_frames(stack, WARM_STARTS, cold=False)
            progress(f"latency, {LATENCY_S} s")
            await wait_for_frames(viewer)
            latencies = await viewer.evaluate(MEASURE_LATENCY, LATENCY_S)
            rss["daemon"]["1"], rss["camera"]["1"] = memory(stack.daemon)
            for _ in range(VIEWERS[-1] - 1):
                await stack.live_page()
            await asyncio.sleep(3)
            rss["daemon"]["5"], rss["camera"]["5"] = memory(stack.daemon)
    return {
        "first_frame_ms": percentiles(warm),
        "cold_first_frame_ms": percentiles(cold),
        "latency_ms": percentiles(latencies),
        "rss_mb": rss,
    }


def progress(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def report(figures: dict[str, Any]) -> None:
    print(f"\r\033[K{'':22}{'p50':>8}{'p95':>8}{'target':>8}{'p50 / target':>14}")
    for name, target in TARGETS.items():
        p50, p95 = figures[name]["p50"], figures[name]["p95"]
        print(f"{name:22}{p50:8}{p95:8}{target['p50']:8}{p50 / target['p50']:14.2f}")
    rss = figures["rss_mb"]
    print(f"\n{'rss_mb':22}" + "".join(f"{viewers:>8}" for viewers in VIEWERS) + "   viewers")
    for name in ("daemon", "camera"):
        print(f"{name:22}" + "".join(f"{rss[name][str(viewers)]:8}" for viewers in VIEWERS))
    idle, one, five = (rss["daemon"][str(viewers)] for viewers in VIEWERS)
    print(f"\ndaemon idle {idle} of 90 MB, {(five - one) / 4:.2f} of 1.5 MB per further viewer,")
    print(f"daemon and camera with five viewers {five + rss['camera']['5']:.1f} of 180 MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    figures = asyncio.run(measure())
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
