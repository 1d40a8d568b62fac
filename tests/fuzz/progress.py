"""Report the progress and the memory use of a stage as JSON lines on standard output."""

from __future__ import annotations

import gc
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPORT_INTERVAL_S = 1.0
INPUT_TIMEOUT_S = 30


class Progress:
    """Count inputs. Memory growth is measured after the first tenth of the inputs, when everything is loaded.

    `on_hang`: called by a signal handler when an input takes `INPUT_TIMEOUT_S`.
    """

    def __init__(self, inputs: int, on_hang: Callable[[], None] | None = None) -> None:
        self.inputs = inputs
        self._on_hang = on_hang
        if on_hang is not None:
            signal.signal(signal.SIGALRM, lambda *_: on_hang())
        self.done = 0
        self.latest = b""
        self._warm = inputs // 10
        self._started_s = self._reported_s = time.monotonic()
        self._before: tuple[float, int] | None = None

    def begin(self, data: bytes) -> None:
        """An input is about to be run."""
        self.latest = data
        if self._on_hang is not None:
            signal.alarm(INPUT_TIMEOUT_S)

    def one(self, outcomes: Mapping[str, int]) -> None:
        """Count a finished input. `outcomes`: of all inputs so far."""
        self.done += 1
        if self.done == self._warm:
            self._before = _memory()
        now_s = time.monotonic()
        if self.done == self.inputs or now_s - self._reported_s >= REPORT_INTERVAL_S:
            self._reported_s = now_s
            self._report(now_s, outcomes)

    def _report(self, now_s: float, outcomes: Mapping[str, int]) -> None:
        report: dict[str, object] = {
            "inputs": self.done,
            "per_s": round(self.done / max(now_s - self._started_s, 1e-3)),
        }
        if self.done == self.inputs:
            rss_mb, objects = _memory()
            before_mb, objects_before = self._before or (rss_mb, objects)
            report |= {"rss_mb": [before_mb, rss_mb], "objects": [objects_before, objects], "outcomes": dict(outcomes)}
        print(json.dumps(report), flush=True)


def _memory() -> tuple[float, int]:
    """Resident memory in MB, and the number of objects that the garbage collector tracks."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return round(kb / 1024, 1), len(gc.get_objects())
