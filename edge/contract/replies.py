"""What commands are answered with, and what the device tells a reply client by itself."""

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
    """What a command that took effect is answered with: the reply's type (`kind`), and its body; None: it has none."""

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
"""The reply to each command that is built. A refusal has the type `error` instead."""

SESSION_MESSAGES: dict[str, type[CandidateBody | CameraNoticeBody | ClosedBody]] = {
    "session.candidate": CandidateBody,
    "session.camera": CameraNoticeBody,
    "session.closed": ClosedBody,
}
"""What the device sends to a reply topic by itself, in the envelope of a reply."""
