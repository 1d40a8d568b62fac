"""The reference backend: HTTP for browsers on one side, the camera's MQTT contract on the other.

A real backend authenticates the viewer first, and signs a token only for a viewer that may watch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator  # noqa: TC003  FastAPI reads the annotations at run time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from edge.contract.codes import Code
from edge.contract.messages import CameraNoticeBody, CandidateBody, SessionId
from edge.demo.pages import Pages
from edge.demo.turn import IceSettings, ice_servers
from edge.errors import EdgeError, Rejected, Unavailable
from edge.local_api.faults import request_faults

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge.client import RemoteCamera, Signer

_HERE = Path(__file__).parent
_RETRY_S = 5
# Shorter than the grace period, so that a broken event stream does not close the session.
_RECONNECT_MS = 500


class BackendSettings(BaseModel):
    """The settings of a backend, without those of its broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ice: IceSettings = Field(default_factory=IceSettings)
    grace_s: Annotated[
        float, Field(gt=0, le=30, description="How long a session stays open after its page has disconnected.")
    ] = 3


class _Start(BaseModel):
    """A browser's RTCSessionDescription as JSON. `session`: the id that the page chose, if it trickles."""

    type: Literal["offer"]
    sdp: str
    session: SessionId | None = None
    quality: Literal["auto", "hd", "sd"] = "auto"


class _Stop(BaseModel):
    session: SessionId


class _Quality(BaseModel):
    session: SessionId
    quality: Literal["hd", "sd"]


class _Candidate(BaseModel):
    session: SessionId
    candidate: str | None
    sdp_mid: Annotated[str | None, Field(alias="sdpMid")] = None


def make_backend(camera: RemoteCamera, signer: Signer, settings: BackendSettings) -> FastAPI:
    """The app for one camera. The caller keeps the camera's client running while the app runs.

    The token of the offer serves the later commands of its session, too; the client library sends it again.

    Errors are JSON, `{"error": {"code", "message", "retry_after_s"}}`, with the contract's code and its HTTP status.
    """
    pages = Pages(camera, settings.grace_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with pages:
            yield

    app = FastAPI(title="edge-streamer reference backend", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(EdgeError, _error)
    app.add_exception_handler(RequestValidationError, _bad_request)

    @app.post("/api/start-webrtc")
    async def start(body: _Start, request: Request) -> dict[str, str]:
        # Nobody logs in here, so that each page is a viewer of its own.
        viewer = f"{request.client.host if request.client else 'unknown'}-{secrets.token_hex(4)}"
        try:
            answer = await camera.offer(
                body.sdp,
                session=body.session,
                viewer=viewer,
                trickle=body.session is not None,
                quality=body.quality,
                ice_servers=ice_servers(settings.ice, time.time()),
                token=signer.sign(camera.device, viewer, client=camera.client_id),
            )
        except Rejected:
            if body.session is not None:
                pages.ended(body.session)
            raise
        return {"webrtc_answer": answer.sdp, "session": answer.session}

    @app.post("/api/stop-webrtc", status_code=204)
    async def stop(body: _Stop) -> None:
        try:
            await camera.close(body.session)
        except Rejected as exc:
            # The request may have overtaken its offer. Then the session is closed after the grace period.
            if exc.code is not Code.UNKNOWN_SESSION:
                raise
        else:
            pages.ended(body.session)

    @app.post("/api/quality", status_code=204)
    async def quality(body: _Quality) -> None:
        await camera.quality(body.session, body.quality)

    @app.post("/api/candidate", status_code=204)
    async def candidate(body: _Candidate) -> None:
        await camera.candidate(body.session, body.candidate, body.sdp_mid)

    async def page(session: SessionId) -> AsyncIterator[None]:
        with pages.stream(session):
            yield

    @app.get("/api/session-events/{session}", response_class=EventSourceResponse, dependencies=[Depends(page)])
    async def session_events(session: SessionId) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(retry=_RECONNECT_MS)
        async for message in camera.candidates(session):
            if isinstance(message, CandidateBody):
                found = {"candidate": message.candidate, "sdpMid": message.sdp_mid}
                yield ServerSentEvent(event="candidate", data=found)
            elif isinstance(message, CameraNoticeBody):
                notice = {"state": message.state, "code": message.code, "message": message.message}
                yield ServerSentEvent(event="camera", data=notice)
            else:
                pages.ended(session)
                yield ServerSentEvent(event="closed", data={"reason": message.reason, "code": message.code})

    @app.get("/api/turn-credentials")
    async def turn_credentials() -> JSONResponse:
        servers = ice_servers(settings.ice, time.time())
        listed = [
            server.model_dump(exclude_none=True)
            | ({"credential": server.credential.get_secret_value()} if server.credential else {})
            for server in servers
        ]
        return JSONResponse(listed, headers={"Cache-Control": "no-store"})

    for path, name in (("/", "page.html"), ("/page.js", "page.js"), ("/plain", "plain.html")):
        app.add_api_route(path, _file(name), methods=["GET"], response_class=FileResponse)
    return app


def _file(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def serve() -> FileResponse:
        return FileResponse(_HERE / name, headers={"Cache-Control": "no-cache"})

    return serve


async def _error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, EdgeError)
    status = 503 if isinstance(exc, Unavailable) else exc.code.http_status
    retry_after_s = exc.retry_after_s if isinstance(exc, Rejected) else _RETRY_S
    error = {"code": exc.code, "message": exc.message, "retry_after_s": retry_after_s}
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": error}, status, headers)


async def _bad_request(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    error = {"code": Code.BAD_MESSAGE, "message": request_faults(request, exc), "retry_after_s": None}
    return JSONResponse({"error": error}, Code.BAD_MESSAGE.http_status)
