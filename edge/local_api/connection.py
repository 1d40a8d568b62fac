"""One connection to the local page, with the limits that uvicorn does not have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.contract.codes import Code
from edge.errors import Rejected
from edge.local_api.refusals import refusal

if TYPE_CHECKING:
    import asyncio
    from collections import Counter

    from edge.core.log_limit import LogLimit

log = logging.getLogger(__name__)

CONNECTIONS = 32
_HEAD_S = 5.0
GRACE_S = 1.0
"""A connection above the limit replaces one whose client has owed its first head, or a body, for this long."""
_ANSWER_S = 60.0
"""From the head of a request until its answer has left: the slowest request waits for the camera and its process."""


class Connection(H11Protocol):
    """Waits at most `_HEAD_S` for the head of a request, and at most `_ANSWER_S` until the client has its answer.

    Above `CONNECTIONS`, a new connection is answered with 503 and closed, unless another one waits for its client: for
    a further request, or for `GRACE_S` for the first one or a body. Then the one that has waited longest gives way:
    clients that withhold their requests, or keep their connections, must not keep out a monitor. `counters` counts
    both, and `log_limit` limits their log lines; all connections share them.
    """

    def __init__(self, *, counters: Counter[str], log_limit: LogLimit, **uvicorns: Any) -> None:  # noqa: ANN401  uvicorn's arguments
        super().__init__(**uvicorns)
        self._counters = counters
        self._log_limit = log_limit
        self._deadline: asyncio.TimerHandle | None = None
        self.limited_s = 0.0
        """When the present limit was set: the head of a request is awaited since then, or its body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) <= CONNECTIONS or self._make_room():
            self._limit(_HEAD_S)
            return
        self._count("local_connections_refused", "connections to the local page refused")
        self.connections.discard(self)
        self.transport.write(_FULL)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        waiting = self._waits_for_head()
        super().data_received(data)
        if waiting and not self._waits_for_head():
            self._limit(_ANSWER_S)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        idle = self._waits_for_head() and self.transport.get_write_buffer_size() == 0
        self._limit(_HEAD_S if idle else _ANSWER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def can_give_way(self) -> bool:
        """Whether the client has taken all that was sent, and has its answer or has withheld its request."""
        if self.transport.get_write_buffer_size() > 0:
            return False
        # Each answer would start a grace again: a client that sends a request every second would keep its place.
        # A server may close such a connection at any time; its client opens another (RFC 9112, 9.3.1 and 9.5).
        if self.cycle is not None and self.cycle.response_complete:
            return True
        owes = self.cycle is None or self.cycle.more_body
        return owes and self.loop.time() - self.limited_s >= GRACE_S

    def _make_room(self) -> bool:
        """Close the other connection that has waited longest for its client. Returns whether there was one."""
        others = cast("set[Connection]", self.connections) - {self}
        waiting = [other for other in others if other.can_give_way()]
        if not waiting:
            return False
        self._count("local_connections_closed", "connections to the local page closed")
        longest = min(waiting, key=lambda other: other.limited_s)
        # It is lost only in the next turn of the event loop, and more connections may be made before.
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def _count(self, counter: str, event: str) -> None:
        self._counters[counter] += 1
        if count := self._log_limit.due(self.loop.time(), event):
            log.warning("%s limit=%d count=%d", event, CONNECTIONS, count)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _limit(self, timeout_s: float) -> None:
        self.limited_s = self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        # Not `close`, which would wait for a client that does not take its answer.
        self._deadline = self.loop.call_later(timeout_s, self.transport.abort)


def _full() -> bytes:
    error = Rejected(Code.RATE_LIMITED, f"too many connections; at most {CONNECTIONS} at a time", retry_after_s=5)
    answer = refusal(error, status=503, close=True)
    head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + head + b"\r\n" + bytes(answer.body)


_FULL = _full()
