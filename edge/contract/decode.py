"""From the bytes of a command message to a command, or to the code that refuses it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from edge.contract.codes import Code
from edge.contract.messages import (
    BODIES,
    COMMAND_LIMIT_BYTES,
    LIFETIME_LIMIT_S,
    PAYLOAD_LIMIT_BYTES,
    RESERVED,
    VERSION,
    Command,
)
from edge.errors import Rejected

if TYPE_CHECKING:
    from datetime import datetime


_M = TypeVar("_M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as far as it could be read: enough to send an error reply, whatever else is wrong."""

    size: int
    fields: dict[str, Any]
    fault: str | None

    @property
    def id(self) -> str:
        """The sender's id where it is usable, else empty."""
        value = self.fields.get("id")
        if isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable() and _encodes(value):
            return value
        return ""

    @property
    def reply_to(self) -> str | None:
        value = self.fields.get("reply_to")
        return value if isinstance(value, str) else None

    @property
    def kind(self) -> str:
        """The type as it stands there, known or not."""
        value = self.fields.get("type")
        return value if isinstance(value, str) else ""

    def command(self, now: datetime | None) -> tuple[Command, BaseModel]:
        """The command and its checked body. `now` None: the time is not known, and its lifetime is not looked at.

        Raises: Rejected: with the contract's code; the message says what is wrong and never repeats a value.
        """
        if self.size > COMMAND_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"the message has {self.size} bytes, the limit is {COMMAND_LIMIT_BYTES}")
        if self.fault is not None:
            raise Rejected(Code.BAD_MESSAGE, self.fault)
        version = self.fields.get("v")
        if isinstance(version, int) and version != VERSION:
            raise Rejected(Code.UNSUPPORTED_VERSION, f"this device speaks version {VERSION}")
        if not self.id:
            raise Rejected(Code.BAD_MESSAGE, "id: a string of 1 to 128 printable characters")
        command = _checked(Command, self.fields, "")
        if now is not None and command.expires_at <= now:
            raise Rejected(Code.EXPIRED, "expires_at has passed")
        if now is not None and (command.expires_at - now).total_seconds() > LIFETIME_LIMIT_S:
            raise Rejected(Code.BAD_MESSAGE, f"expires_at: more than {LIFETIME_LIMIT_S} s ahead")
        if command.type in RESERVED:
            raise Rejected(Code.UNSUPPORTED, f"{command.type} is not supported by this version")
        model = BODIES.get(command.type)
        if model is None:
            raise Rejected(Code.BAD_MESSAGE, "type: not a command of this contract")
        return command, _checked(model, command.body, "body.")


def read(payload: bytes) -> Received:
    """Read a message without judging it. Never raises.

    A payload over the broker's own limit is not even parsed.
    """
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        return Received(len(payload), {}, "the message is too large to be read")
    try:
        parsed = json.loads(payload)
    except (ValueError, RecursionError):
        return Received(len(payload), {}, "the message is not JSON")
    if not isinstance(parsed, dict):
        return Received(len(payload), {}, "the message is not a JSON object")
    return Received(len(payload), parsed, None)


def _encodes(text: str) -> bool:
    """Whether it can be sent at all: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(model: type[_M], fields: dict[str, Any], at: str) -> _M:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        faults = exc.errors(include_url=False, include_input=False, include_context=False)[:3]
        told = "; ".join(f"{at}{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise Rejected(Code.BAD_MESSAGE, told) from None
