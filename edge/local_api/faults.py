"""Faults of an HTTP request in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.contract.faults import plain_faults

if TYPE_CHECKING:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError

_FAULTS_LIMIT = 3


def request_faults(request: Request, exc: RequestValidationError) -> str:
    """The first faults, each with its path, such as `body.zoom` or `query.width`.

    Every route takes its body, and its query, as one model.
    """
    faults = [fault for error in exc.errors() for fault in _plain(request, error)]
    return "; ".join(faults[:_FAULTS_LIMIT])


def _plain(request: Request, error: Any) -> list[str]:  # noqa: ANN401  FastAPI's type
    source, *names = error["loc"]
    parameters = getattr(request.scope["route"].dependant, f"{source}_params")
    by_name = {parameter.alias: parameter.field_info.rebuild_annotation() for parameter in parameters}
    if source == "path":
        name = names.pop(0)
        return plain_faults([{**error, "loc": tuple(names)}], by_name[name], at=(source, name))
    return plain_faults([{**error, "loc": tuple(names)}], next(iter(by_name.values())), at=(source,))
