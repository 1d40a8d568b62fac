"""Requests that use the camera for a moment: controls and snapshots. They need no viewer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from edge.contract.codes import Code
from edge.core.camera_controls import in_force
from edge.core.principal import Interface, Principal, Scope
from edge.errors import Rejected
from edge.sessions.state_writer import StateWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from edge.contract.messages import ControlsBody, SnapshotBody
    from edge.core.camera_controls import ControlValues, Offered
    from edge.core.ports import StateStore
    from edge.sessions.ports import SharedCamera
    from edge.sessions.service import SessionService

log = logging.getLogger(__name__)

_AT_ONCE = 2


class CameraRequests:
    """`camera.set` and `camera.snapshot`, for every interface. Event loop only.

    Opens an idle camera for the request. A third request of the same interface at the same time is `rate_limited`: one
    interface cannot keep the other from using the camera.
    `store`: keeps the control values across a restart.
    """

    def __init__(
        self,
        sessions: SessionService,
        camera: SharedCamera,
        store: StateStore,
        publish_event: Callable[[str, str | None, dict[str, Any]], None],
    ) -> None:
        self._sessions = sessions
        self._camera = camera
        self._writer = StateWriter(store.write, "controls", lambda: dict(camera.values))
        self._publish_event = publish_event
        self._one_by_one = asyncio.Lock()
        self._in_progress: Counter[Interface] = Counter()

    async def set(self, body: ControlsBody, caller: Principal) -> ControlValues:
        """Set controls. Returns the values of all controls afterwards.

        Raises: Rejected: `forbidden`, `stopped`, or `bad_message` with the accepted values. CameraUnavailable.
        """
        _require(caller, Scope.CONTROL)
        async with self._open_camera(caller), self._one_by_one:
            values = await self._camera.set_controls(body.given())
            await self._writer.save()
        log.info("camera controls set client=%r controls=%s", caller.client, ",".join(body.given()))
        self._publish_event("camera.set", None, {"controls": self._camera.values})
        return values

    async def controls(self, caller: Principal) -> tuple[ControlValues, dict[str, Offered]]:
        """Return the values of all controls, and what the camera accepts. Raises: as `set`."""
        _require(caller, Scope.VIEW)
        async with self._open_camera(caller):
            offered = dict(self._camera.offered)
            return in_force(self._camera.values, offered), offered

    async def snapshot(self, body: SnapshotBody, caller: Principal) -> bytes:
        """Take one picture as a JPEG. Raises: Rejected: `forbidden`, `stopped`, `rate_limited`. CameraUnavailable."""
        _require(caller, Scope.VIEW)
        async with self._open_camera(caller):
            return await self._camera.snapshot(body.width, body.quality)

    @asynccontextmanager
    async def _open_camera(self, caller: Principal) -> AsyncIterator[None]:
        if self._in_progress[caller.interface] >= _AT_ONCE:
            message = f"too many requests to the camera; at most {_AT_ONCE} at a time"
            raise Rejected(Code.RATE_LIMITED, message, retry_after_s=1)
        self._in_progress[caller.interface] += 1
        try:
            with self._sessions.camera_in_use():
                await self._camera.opened()
                yield
        finally:
            self._in_progress[caller.interface] -= 1


def _require(caller: Principal, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise Rejected(Code.FORBIDDEN, f"this needs the scope {scope}")
