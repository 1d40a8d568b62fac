"""What the camera process sends, decoded and checked.

Only the daemon imports this module. pydantic would take 15 MB in the camera process.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from pydantic import TypeAdapter

from edge.camera.wire import DECODE_ERRORS, Opened, Report, decode_unit, invalid

if TYPE_CHECKING:
    from edge.core.access_unit import AccessUnit

_REPORTS: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Report)}


def decode(body: bytes) -> AccessUnit | Report:
    """Decode the body of a report or an access unit, and check the types of its fields.

    Raises: BadWire: the body is invalid.
    """
    if body[:1] != b"{":
        return decode_unit(body)
    try:
        report: Report = _REPORTS[json.loads(body)["kind"]].validate_json(body, strict=True)
        if isinstance(report, Opened) and not 0 < report.opening.format.fps < 1000:
            raise ValueError("the frame rate is not possible")
    except DECODE_ERRORS as exc:
        raise invalid(body, exc) from exc
    return report
