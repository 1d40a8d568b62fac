"""The replies to commands, and the messages that the device sends to a reply client unasked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.messages import (
    AnswerBody,
    CameraNoticeBody,
    CandidateBody,
    ClosedBody,
    ControlsReply,
    SessionList,
    SnapshotReply,
    Status,
)

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class ReplyKind:
    """The reply to a successful command: its type (`kind`) and its body. None: no body."""

    kind: str
    body: type[BaseModel] | None = None


_OK = ReplyKind("ok")
_STATUS = ReplyKind("status", Status)
REPLIES: dict[str, ReplyKind] = {
    "session.offer": ReplyKind("session.answer", AnswerBody),
    "session.candidate": _OK,
    "session.quality": _OK,
    "session.close": _OK,
    "session.list": ReplyKind("session.list", SessionList),
    "stream.start": _STATUS,
    "stream.stop": _STATUS,
    "camera.set": ReplyKind("camera.controls", ControlsReply),
    "camera.snapshot": ReplyKind("camera.snapshot", SnapshotReply),
    "status.get": _STATUS,
}
"""The reply to each implemented command. A refusal has the type `error` instead."""

SESSION_MESSAGES: dict[str, type[CandidateBody | CameraNoticeBody | ClosedBody]] = {
    "session.candidate": CandidateBody,
    "session.camera": CameraNoticeBody,
    "session.closed": ClosedBody,
}
"""The messages about sessions that the device sends to a reply topic unasked, in the envelope of a reply."""
