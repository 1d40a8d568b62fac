"""The operator's wish, running or stopped, and the bitrates that came with it: it survives a restart and a reboot."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edge.core.access_unit import Quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge.sessions.ports import Kept

log = logging.getLogger(__name__)

_STORE_TIMEOUT_S = 5.0


class StreamWish:
    """`running` until somebody stopped the stream. `bitrates`: the most each quality may take, where that was said."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._storing: asyncio.Task[None] | None = None
        self._stored = True
        self._changed = asyncio.Event()
        self.running = True
        self.reason: str | None = None
        self.bitrates: dict[Quality, int] = {}
        fields = kept.read()
        if fields is None:
            return
        try:
            running, reason, bitrates = fields["running"], fields["reason"], fields.get("bitrates", {})
            if not isinstance(reason, str | None):
                raise TypeError("reason is no text")
            self.bitrates = {Quality(name): int(bitrate_bps) for name, bitrate_bps in bitrates.items()}
            self.running, self.reason = bool(running), reason
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as exc:
            log.warning("the wish that was kept cannot be read (%s): the stream counts as wanted", exc)

    def change(self, *, running: bool, reason: str | None, bitrates: Mapping[Quality, int]) -> bool:
        """Change it, for now; whether it is another one than before."""
        changed = running != self.running
        self._stored = False
        self.running, self.reason = running, reason
        self.bitrates.update(bitrates)
        if changed:
            self._changed.set()
            self._changed = asyncio.Event()
        return changed

    async def until(self, *, running: bool) -> None:
        """Wait until it is this."""
        while self.running is not running:
            await self._changed.wait()

    async def keep(self) -> None:
        """Write the present state to disk. Returns when it is there, or after `_STORE_TIMEOUT_S` on a slow disk.

        Callers share one writer, which writes the latest state: none queues behind another's write.
        """
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store(), name="stream-state")
        done, _ = await asyncio.wait({self._storing}, timeout=_STORE_TIMEOUT_S)
        if not done:
            log.warning("stream state not on disk yet after_s=%.0f", _STORE_TIMEOUT_S)
        for task in done:
            task.result()

    async def _store(self) -> None:
        while not self._stored:
            self._stored = True
            fields = {"running": self.running, "reason": self.reason, "bitrates": dict(self.bitrates)}
            await self._kept.write(fields)
