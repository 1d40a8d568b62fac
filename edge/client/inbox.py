"""Bounded queues for the messages that a device sends unasked. Messages that do not fit are counted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakSet

from edge.contract.messages import CANDIDATES_LIMIT, CameraNoticeBody, CandidateBody, ClosedBody

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator

    from edge.contract.messages import Event

SessionMessage: TypeAlias = CandidateBody | CameraNoticeBody | ClosedBody

# The candidates and their end mark.
_ITEMS_LIMIT = CANDIDATES_LIMIT + 1
_SESSIONS_LIMIT = 256
_EVENTS_LIMIT = 256


class _Inbox:
    """All messages of one session."""

    def __init__(self) -> None:
        self.items: list[SessionMessage] = []
        self.token: str | None = None
        self.notice: CameraNoticeBody | None = None
        self.notices = 0
        self.readers = 0
        self.changed = asyncio.Event()

    def keep_notice(self, notice: CameraNoticeBody) -> None:
        """Keep the latest notice only: it replaces earlier ones."""
        self.notice = notice
        self.notices += 1

    @property
    def closed(self) -> bool:
        return bool(self.items) and isinstance(self.items[-1], ClosedBody)


class SessionInboxes:
    """The session messages of one device. A message may arrive before its reader, and before the answer.

    Candidates beyond the limit of a session are dropped. Beyond the limit of sessions, the oldest without a reader is
    dropped.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._sessions: OrderedDict[str, _Inbox] = OrderedDict()
        self._counters = counters

    def expect(self, session: str, token: str | None = None) -> None:
        """Keep messages of this session from now on, and the token that opens it."""
        self._get(session).token = token

    def token(self, session: str) -> str | None:
        """The token that opened this session."""
        found = self._sessions.get(session)
        return None if found is None else found.token

    def put(self, item: SessionMessage) -> None:
        session = self._sessions.get(item.session)
        if session is None:
            self._counters["unclaimed"] += 1
            return
        candidates = sum(isinstance(kept, CandidateBody) for kept in session.items)
        full = isinstance(item, CandidateBody) and candidates >= _ITEMS_LIMIT
        if full or session.closed:
            self._counters["session_messages_dropped"] += 1
            return
        if isinstance(item, CameraNoticeBody):
            session.keep_notice(item)
        else:
            session.items.append(item)
        session.changed.set()

    async def read(self, name: str) -> AsyncIterator[SessionMessage]:
        """Iterate over all messages of a session, for any number of readers. Ends after `ClosedBody`.

        Of the camera notices, only the latest is kept.
        """
        session = self._get(name)
        session.readers += 1
        try:
            position = notices = 0
            while True:
                if session.notice is not None and session.notices > notices:
                    notices = session.notices
                    yield session.notice
                for item in session.items[position:]:
                    position += 1
                    yield item
                    if isinstance(item, ClosedBody):
                        return
                if position == len(session.items) and notices == session.notices:
                    session.changed.clear()
                    await session.changed.wait()
        finally:
            session.readers -= 1

    def _get(self, name: str) -> _Inbox:
        session = self._sessions.get(name)
        if session is None:
            if len(self._sessions) >= _SESSIONS_LIMIT:
                self._drop_oldest()
            session = self._sessions[name] = _Inbox()
        return session

    def _drop_oldest(self) -> None:
        for name, session in self._sessions.items():
            if session.readers == 0:
                del self._sessions[name]
                self._counters["sessions_forgotten"] += not session.closed
                return


class EventFeed:
    """One reader's events of one device, from its creation on. When it is full, the oldest is dropped."""

    def __init__(self, counters: Counter[str]) -> None:
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._counters = counters

    def put(self, event: Event) -> None:
        if len(self._events) >= _EVENTS_LIMIT:
            self._events.popleft()
            self._counters["events_dropped"] += 1
        self._events.append(event)
        self._changed.set()

    def __aiter__(self) -> EventFeed:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()


class Feeds:
    """All readers of one device's events. A reader without references is removed automatically."""

    def __init__(self, counters: Counter[str]) -> None:
        self._feeds: WeakSet[EventFeed] = WeakSet()
        self._counters = counters

    def open(self) -> EventFeed:
        feed = EventFeed(self._counters)
        self._feeds.add(feed)
        return feed

    def put(self, event: Event) -> None:
        for feed in self._feeds:
            feed.put(event)
