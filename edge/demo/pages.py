"""Tracks pages by their event streams, and closes the session of a page that disconnected."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from edge.contract.codes import Code
from edge.errors import EdgeError, Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from edge.client import RemoteCamera

log = logging.getLogger(__name__)

_PAGES_LIMIT = 200


@dataclass(slots=True)
class _Page:
    streams: int = 0
    ended: bool = False
    closer: asyncio.Task[None] | None = None


class Pages:
    """The open event streams by session. A page may reconnect its stream within `grace_s`.

    An async context manager; event loop only. Leaving the context closes no session.
    """

    def __init__(self, camera: RemoteCamera, grace_s: float) -> None:
        self._camera = camera
        self._grace_s = grace_s
        self._pages: dict[str, _Page] = {}
        self._group: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        for page in self._pages.values():
            if page.closer is not None:
                page.closer.cancel()
        if group is not None:
            await group.__aexit__(kind, exc, traceback)

    @contextmanager
    def stream(self, session: str) -> Iterator[None]:
        """A context around one event stream of a page.

        Raises: Rejected: `rate_limited`, too many pages are open.
        """
        page = self._pages.get(session)
        if page is None:
            if len(self._pages) >= _PAGES_LIMIT:
                raise Rejected(Code.RATE_LIMITED, "too many pages are open", retry_after_s=10)
            page = self._pages[session] = _Page()
        if page.closer is not None:
            page.closer.cancel()
            page.closer = None
        page.streams += 1
        try:
            yield
        finally:
            page.streams -= 1
            if page.streams == 0:
                self._stream_ended(session, page)

    def ended(self, session: str) -> None:
        """Note that the session has ended, so that it need not be closed."""
        page = self._pages.get(session)
        if page is None:
            return
        page.ended = True
        if page.streams == 0:
            self._stream_ended(session, page)

    def _stream_ended(self, session: str, page: _Page) -> None:
        # After the context was left, nothing can close the session any more.
        if page.ended or self._group is None:
            if page.closer is not None:
                page.closer.cancel()
            self._pages.pop(session, None)
        else:
            page.closer = self._group.create_task(self._close(session), name=f"close:{session}")

    async def _close(self, session: str) -> None:
        await asyncio.sleep(self._grace_s)
        try:
            await self._camera.close(session)
        except EdgeError as exc:
            log.debug("session of a disconnected page not closed code=%s error=%s", exc.code, exc.message)
        self._pages.pop(session, None)
