"""The desired state of the stream, as the operator set it. It survives a restart and a reboot."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.core.access_unit import Quality
from edge.errors import Rejected
from edge.sessions.state_writer import StateWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge.core.ports import StateStore

log = logging.getLogger(__name__)

_REASON_LIMIT = 256
_BITRATE_LIMIT_BPS = 1_000_000_000
_State = tuple[bool, str | None, dict[Quality, int]]
"""`running`, `reason` and `bitrates` of `DesiredStream`."""


class DesiredStream:
    """Whether the stream should run, and the bitrate limits that `stream.start` set. Event loop only.

    `running`: True until somebody stops the stream. `bitrates`: the limit in bits per second of each quality that has
    one. `known`: whether the disk held a state at the start. `copy`: a second store, used if the first one holds no
    state. If they differ, the copy is written again. `unsafe`: called if neither holds one; returns why a stop may have
    been lost, so that the stream must not start by itself, or None.
    """

    def __init__(
        self, store: StateStore, copy: StateStore | None = None, unsafe: Callable[[], str | None] = lambda: None
    ) -> None:
        self._store = store
        self._writer = StateWriter(self._write, "stream", self._state)
        self._copy_writer = None if copy is None else StateWriter(copy.write, "stream copy", self._state)
        self._changed = asyncio.Event()
        self.running = True
        self.reason: str | None = None
        self.bitrates: dict[Quality, int] = {}
        stored, copied = self._read(store), None if copy is None else self._read(copy)
        found = stored or copied
        self.known = found is not None
        if found is not None:
            self.running, self.reason, self.bitrates = found
            if self._copy_writer is not None and stored is not None and copied != stored:
                # The previous release writes no copy. An old one must not count if the first store is damaged later.
                self._copy_writer.begin()
        elif (why := unsafe()) is not None:
            log.error("the state of the stream is not known, stopped reason=%s", why)
            self.running, self.reason = False, why

    def change(self, *, running: bool, reason: str | None, bitrates: Mapping[Quality, int]) -> bool:
        """Change the state in memory; `save` writes it. Returns whether `running` changed."""
        changed = running != self.running
        self.running, self.reason = running, reason
        self.bitrates.update(bitrates)
        if changed:
            self._changed.set()
            self._changed = asyncio.Event()
        return changed

    def begin(self) -> None:
        """Write the state in the background, if it is not `known`.

        Otherwise, a disk that is full later would leave it open whether the stream was stopped.
        """
        self._writer.begin()

    async def until(self, *, running: bool) -> None:
        """Wait until `running` has this value."""
        while self.running is not running:
            await self._changed.wait()

    async def save(self) -> bool:
        """Write the present state to disk, then its copy in the background.

        Returns whether the state is there (see `StateWriter.save`).
        """
        return await self._writer.save()

    def not_kept(self) -> Rejected:
        """The error for a change that took effect and is not on disk."""
        state = "running" if self.running else "stopped"
        return Rejected(
            Code.NOT_KEPT, f"the stream is {state}, but the device's disk could not be written: a restart may undo it"
        )

    def _read(self, store: StateStore) -> _State | None:
        """The state that the store holds, if any."""
        fields = store.read()
        if fields is None:
            return None
        try:
            return _checked(fields)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            store.set_aside(f"the state of the stream is not valid: {exc!r}")
            return None

    async def _write(self, fields: dict[str, Any]) -> bool:
        written = await self._store.write(fields)
        if self._copy_writer is not None:
            # Nobody waits for it: a stop takes effect once it is on disk.
            self._copy_writer.begin()
        return written

    def _state(self) -> dict[str, Any]:
        return {"running": self.running, "reason": self.reason, "bitrates": dict(self.bitrates)}


def _checked(fields: Mapping[str, Any]) -> _State:
    """Raises: ValueError, KeyError, TypeError, AttributeError: these are not the fields of a `DesiredStream`."""
    running, reason = fields["running"], fields["reason"]
    if not isinstance(running, bool):
        raise TypeError("running is neither true nor false")
    if not isinstance(reason, str | None) or len(reason or "") > _REASON_LIMIT:
        raise TypeError(f"reason is not text of at most {_REASON_LIMIT} characters")
    bitrates = {Quality(name): bitrate_bps for name, bitrate_bps in fields.get("bitrates", {}).items()}
    if not all(type(bitrate_bps) is int and 0 < bitrate_bps <= _BITRATE_LIMIT_BPS for bitrate_bps in bitrates.values()):
        raise TypeError("a bitrate is out of range")
    return running, reason, bitrates
