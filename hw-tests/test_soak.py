"""Start, join, switch, leave, stop, for hours: nothing may grow. Collected only with `--soak-h`."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from figures import Figure
from house import house
from vitals import Holding

if TYPE_CHECKING:
    from pathlib import Path

    from bounds import Bounds
    from figures import Report
    from house import House

PICTURES = 30
WARM_UP = 0.2
"""Of the run: allocators and caches reach their size first."""
SAMPLES = 5


async def cycle(stage: House, viewers: int) -> None:
    await stage.camera.start("soak")
    for _ in range(viewers):
        await stage.join()
    first, *_ = stage.viewers
    await stage.camera.quality(first.session, "sd")
    for viewer in stage.viewers:
        await viewer.sees(PICTURES)
    await stage.leave()
    # Those that are left are sent away.
    await stage.camera.stop("soak")
    while stage.viewers:
        await stage.viewers.pop().close()
    await stage.until_closed()


async def test_nothing_grows(tmp_path: Path, source: str, bounds: Bounds, report: Report, soak_s: float) -> None:
    taken: list[tuple[float, Holding, Holding]] = []
    async with house(tmp_path, source=source) as stage:
        pids = stage.daemon_pid, stage.camera_pid
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < soak_s:
            await cycle(stage, 1 + len(taken) % 3)
            taken.append((time.monotonic() - begun_s, Holding.of(pids[0]), Holding.of(pids[1])))
        assert (stage.daemon_pid, stage.camera_pid) == pids, "a process was replaced"
    warm = [sample for sample in taken if sample[0] > soak_s * WARM_UP]
    assert len(warm) >= 2, "too short a soak to tell growth"

    def growth(process: int, what: str) -> float:
        values = [float(getattr(sample[process], what)) for sample in warm]
        count = min(SAMPLES, len(values) // 2)
        return statistics.median(values[-count:]) - statistics.median(values[:count])

    figures = [Figure("soak_cycles", len(taken), "cycles")]
    for process, name in ((1, "daemon"), (2, "camera")):
        most_mb, most = bounds.growth_mb, bounds.growth_count
        figures += [
            Figure(f"soak_{name}_rss_growth_mb", growth(process, "rss_mb"), "MB", at_most=most_mb),
            Figure(f"soak_{name}_descriptors_growth", growth(process, "descriptors"), "", at_most=most),
            Figure(f"soak_{name}_threads_growth", growth(process, "threads"), "", at_most=most),
        ]
    report.hold(*figures)
