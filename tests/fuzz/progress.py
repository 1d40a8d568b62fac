"""How far a stage is, and what memory it takes: a line of JSON on standard output now and then, for who started it."""

from __future__ import annotations

import gc
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EVERY_S = 1.0
HUNG_S = 30


class Progress:
    """Counts inputs. Memory is compared from a tenth of the way on: by then all is loaded that ever is.

    `hung`: called when one takes `HUNG_S`, in the midst of it.
    """

    def __init__(self, inputs: int, hung: Callable[[], None] | None = None) -> None:
        self.inputs = inputs
        self._hung = hung
        if hung is not None:
            signal.signal(signal.SIGALRM, lambda *_: hung())
        self.done = 0
        self.latest = b""
        self._warm = inputs // 10
        self._began_s = self._told_s = time.monotonic()
        self._before: tuple[float, int] | None = None

    def begin(self, data: bytes) -> None:
        """An input is about to be run."""
        self.latest = data
        if self._hung is not None:
            signal.alarm(HUNG_S)

    def one(self, outcomes: Mapping[str, int]) -> None:
        """One more is done. `outcomes`: of all so far."""
        self.done += 1
        if self.done == self._warm:
            self._before = _memory()
        now_s = time.monotonic()
        if self.done == self.inputs or now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            self._tell(now_s, outcomes)

    def _tell(self, now_s: float, outcomes: Mapping[str, int]) -> None:
        told: dict[str, object] = {"inputs": self.done, "per_s": round(self.done / max(now_s - self._began_s, 1e-3))}
        if self.done == self.inputs:
            rss_mb, objects = _memory()
            before_mb, objects_before = self._before or (rss_mb, objects)
            told |= {"rss_mb": [before_mb, rss_mb], "objects": [objects_before, objects], "outcomes": dict(outcomes)}
        print(json.dumps(told), flush=True)


def _memory() -> tuple[float, int]:
    """MB in use, and objects that the collector knows."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return round(kb / 1024, 1), len(gc.get_objects())
