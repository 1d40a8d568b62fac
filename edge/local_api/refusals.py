"""The answer to a request that is refused: the contract's error as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from edge.contract.messages import ErrorInfo

if TYPE_CHECKING:
    from edge.errors import EdgeError


def refusal(error: EdgeError, *, status: int | None = None, close: bool = False) -> JSONResponse:
    """The answer for an error. `status`: instead of the code's own. `close`: close the connection after it."""
    retry_after_s = getattr(error, "retry_after_s", None)
    info = ErrorInfo(code=error.code, message=error.detail, retry_after_s=retry_after_s)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
    if close:
        headers["Connection"] = "close"
    return JSONResponse({"error": info.model_dump(mode="json")}, status or error.code.http_status, headers)
