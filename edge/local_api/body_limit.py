"""Reads the body of each request within bounds, before the request is handled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.errors import Rejected
from edge.local_api.refusals import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 16 * 1024
_BODY_S = 10.0
_REQUEST_TIMEOUT = 408


class BodyLimit:
    """ASGI middleware. A body over `BODY_BYTES` is answered with 413, one that takes longer than `_BODY_S` with 408.

    Every body is read, also where no route asks for one: otherwise the server would read and discard it without a
    limit, after the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(_BODY_S):
                body = await _read(receive)
        except TimeoutError:
            error = Rejected(Code.TIMEOUT, f"the body did not arrive within {_BODY_S:.0f} s")
            await refusal(error, status=_REQUEST_TIMEOUT, close=True)(scope, receive, send)
            return
        except Rejected as exc:
            await refusal(exc, close=True)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body. None: the client is gone. Raises: Rejected: `too_large`."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            raise Rejected(Code.TOO_LARGE, f"the body is larger than {BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return the body once, and then what the server says: that the client is gone."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return unread.pop() if unread else await receive()

    return next_message
