"""The camera for a moment: its controls and its snapshots, whether somebody watches or not."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.core.camera_controls import in_force
from edge.core.principal import Principal, Scope
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.contract.messages import ControlsBody, SnapshotBody
    from edge.core.camera_controls import Offered, Values
    from edge.sessions.ports import Camera, Kept
    from edge.sessions.service import Sessions

log = logging.getLogger(__name__)

_AT_ONCE = 4


class CameraUse:
    """`camera.set` and `camera.snapshot`, for every door. Event loop only.

    A camera that nobody watches is opened for it, and closed again; a few at a time, further ones are `rate_limited`.
    `kept`: where the values survive a restart.
    """

    def __init__(
        self, sessions: Sessions, camera: Camera, kept: Kept, notice: Callable[[str, str | None, dict[str, Any]], None]
    ) -> None:
        self._sessions = sessions
        self._camera = camera
        self._kept = kept
        self._notice = notice
        self._one_by_one = asyncio.Lock()
        self._uses = 0

    async def set(self, body: ControlsBody, caller: Principal) -> Values:
        """Set controls; the values in force of all, afterwards.

        Raises: Rejected: `forbidden`, `stopped`, or `bad_message` with what the camera takes. CameraUnavailable.
        """
        _require(caller, Scope.CONTROL)
        async with self._open(), self._one_by_one:
            values = await self._camera.set_controls(body.given())
            await self._kept.write(self._camera.values)
        log.info("camera set by %s: %s", caller.client, ", ".join(body.given()) or "nothing")
        self._notice("camera.set", None, {"controls": self._camera.values})
        return values

    async def controls(self, caller: Principal) -> tuple[Values, dict[str, Offered]]:
        """The values in force, and what the camera takes. Raises: as `set`."""
        _require(caller, Scope.VIEW)
        async with self._open():
            offered = dict(self._camera.offered)
            return in_force(self._camera.values, offered), offered

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        """One picture as a JPEG. Raises: Rejected: `forbidden`, `stopped`, `rate_limited`. CameraUnavailable."""
        _require(caller, Scope.VIEW)
        async with self._open():
            return await self._camera.snapshot(body.width, body.quality)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        if self._uses >= _AT_ONCE:
            raise Rejected(Code.RATE_LIMITED, f"{self._uses} uses of the camera are under way", retry_after_s=1)
        self._uses += 1
        try:
            with self._sessions.camera_in_use():
                await self._camera.opened()
                yield
        finally:
            self._uses -= 1


def _require(caller: Principal, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise Rejected(Code.FORBIDDEN, f"this needs the scope {scope}")
