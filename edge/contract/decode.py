"""Decode a command message, or find the code with which to refuse it."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from edge.contract.codes import Code
from edge.contract.faults import plain_faults, suggestion
from edge.contract.messages import (
    BODIES,
    COMMAND_LIMIT_BYTES,
    LIFETIME_LIMIT_S,
    RESERVED,
    VERSION,
    Command,
)
from edge.errors import Rejected

if TYPE_CHECKING:
    from datetime import datetime


_M = TypeVar("_M", bound=BaseModel)
_FAULTS_LIMIT = 3
_TOKEN = re.compile(rb'"token"\s{0,4}:\s{0,4}"([\w.-]{1,4096})"')
_REPLY_TO = re.compile(rb'"reply_to"\s{0,4}:\s{0,4}"([!#-\[\]-~]{1,256})"')


@dataclass(frozen=True, slots=True)
class Received:
    """A message as far as it could be decoded, which suffices for an error reply. `fault`: why it could not."""

    size: int
    fields: dict[str, Any]
    fault: str | None

    @property
    def id(self) -> str:
        """The sender's id; empty if it is not valid."""
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
        """The type as received, which may be any text."""
        value = self.fields.get("type")
        return value if isinstance(value, str) else ""

    def command(self, now: datetime | None) -> tuple[Command, BaseModel]:
        """Return the command and its validated body. `now` None: the time is unknown; the lifetime is not checked.

        Raises: Rejected: with the contract's code; the message names the fault and never repeats a value.
        """
        if self.size > COMMAND_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"the message has {self.size} bytes, the limit is {COMMAND_LIMIT_BYTES}")
        if self.fault is not None:
            raise Rejected(Code.BAD_MESSAGE, self.fault)
        version = self.fields.get("v")
        if isinstance(version, bool):  # True equals 1
            raise Rejected(Code.BAD_MESSAGE, f"v: must be {VERSION}")
        if isinstance(version, int) and version != VERSION:
            raise Rejected(Code.UNSUPPORTED_VERSION, f"this device speaks version {VERSION}")
        if not self.id:
            raise Rejected(Code.BAD_MESSAGE, "id: a string of 1 to 128 printable characters")
        command = _checked(Command, self.fields)
        if now is not None and command.expires_at <= now:
            raise Rejected(Code.EXPIRED, "expires_at has passed")
        if now is not None and (command.expires_at - now).total_seconds() > LIFETIME_LIMIT_S:
            raise Rejected(Code.BAD_MESSAGE, f"expires_at: more than {LIFETIME_LIMIT_S} s ahead")
        if command.type in RESERVED:
            raise Rejected(Code.UNSUPPORTED, f"{command.type} is not supported by this version")
        model = BODIES.get(command.type)
        if model is None:
            raise Rejected(Code.BAD_MESSAGE, f"type: not a command of this contract{suggestion(command.type, BODIES)}")
        return command, _checked(model, command.body, "body")


def read(payload: bytes) -> Received:
    """Decode a message without validating it. Never raises. A message over the limit is not parsed."""
    if len(payload) > COMMAND_LIMIT_BYTES:
        return Received(len(payload), {}, "the message is too large to be read")
    try:
        # From bytes, json would also accept UTF-16 and UTF-32.
        text = payload.removeprefix(BOM_UTF8).decode()
        parsed = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except _RepeatedKeyError:
        return Received(len(payload), {}, "the message is not JSON: an object has the same key twice")
    except (ValueError, RecursionError):
        return Received(len(payload), {}, "the message is not JSON in UTF-8")
    if not isinstance(parsed, dict):
        return Received(len(payload), {}, "the message is not a JSON object")
    return Received(len(payload), parsed, None)


def claimed_reply_to(payload: bytes) -> str | None:
    """Find the reply topic without parsing the message: cheap, and only a hint, since the text may be anything."""
    found = _REPLY_TO.search(payload)
    return found[1].decode() if found else None


def claimed_token(payload: bytes) -> str | None:
    """Find the token without parsing the message. Only a hint, as with `claimed_reply_to`."""
    found = _TOKEN.search(payload)
    return found[1].decode() if found else None


class _RepeatedKeyError(ValueError):
    """An object has a key twice. Parsers differ in which value they take, so two of them could read two commands."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _RepeatedKeyError
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _encodes(text: str) -> bool:
    """Whether the text can be sent: JSON may contain half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(model: type[_M], fields: dict[str, Any], *at: str) -> _M:
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        faults = plain_faults(exc.errors(), model, at=at)
        raise Rejected(Code.BAD_MESSAGE, "; ".join(faults[:_FAULTS_LIMIT])) from None
