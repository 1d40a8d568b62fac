"""Start, join, switch quality, leave and stop for hours: memory and descriptors must not grow. Needs `--soak-h`."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from daemon_stack import daemon_stack
from figures import Figure
from vitals import Resources

if TYPE_CHECKING:
    from pathlib import Path

    from bounds import Bounds
    from daemon_stack import DaemonStack
    from figures import Report

PICTURES = 30
WARM_UP_SHARE = 0.2
"""Share of the run in which allocators and caches reach their size."""
SAMPLES = 5


async def cycle(stack: DaemonStack, viewers: int) -> None:
    await stack.camera.start("soak")
    for _ in range(viewers):
        await stack.join()
    first, *_ = stack.viewers
    await stack.camera.quality(first.session, "sd")
    for viewer in stack.viewers:
        await viewer.wait_for_pictures(PICTURES)
    await stack.leave()
    # This ends the remaining sessions.
    await stack.camera.stop("soak")
    while stack.viewers:
        await stack.viewers.pop().close()
    await stack.wait_until_closed()


async def test_no_resource_use_grows(
    tmp_path: Path, source: str, bounds: Bounds, report: Report, soak_s: float
) -> None:
    samples: list[tuple[float, Resources, Resources]] = []
    async with daemon_stack(tmp_path, source=source) as stack:
        pids = stack.daemon_pid, stack.camera_pid
        started_s = time.monotonic()
        while time.monotonic() - started_s < soak_s:
            await cycle(stack, 1 + len(samples) % 3)
            samples.append((time.monotonic() - started_s, Resources.of(pids[0]), Resources.of(pids[1])))
        assert (stack.daemon_pid, stack.camera_pid) == pids, "a process was replaced"
    warm = [sample for sample in samples if sample[0] > soak_s * WARM_UP_SHARE]
    assert len(warm) >= 2, "the soak is too short to measure growth"

    def growth(process: int, what: str) -> float:
        values = [float(getattr(sample[process], what)) for sample in warm]
        count = min(SAMPLES, len(values) // 2)
        return statistics.median(values[-count:]) - statistics.median(values[:count])

    figures = [Figure("soak_cycles", len(samples), "cycles")]
    for process, name in ((1, "daemon"), (2, "camera")):
        max_mb, max_count = bounds.growth_mb, bounds.growth_count
        figures += [
            Figure(f"soak_{name}_rss_growth_mb", growth(process, "rss_mb"), "MB", at_most=max_mb),
            Figure(f"soak_{name}_descriptors_growth", growth(process, "descriptors"), "", at_most=max_count),
            Figure(f"soak_{name}_threads_growth", growth(process, "threads"), "", at_most=max_count),
        ]
    report.check(*figures)
