"""Finds out what a message asks and who sent it, at a bounded cost, before anything is done for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.contract.decode import Received, claimed_reply_to, claimed_token, read
from edge.contract.messages import COMMAND_LIMIT_BYTES
from edge.core.authority import PERMISSIONS
from edge.core.budget import Unproven, Work
from edge.errors import Rejected
from edge.signalling.once import BY_TOKEN
from edge.signalling.tokens import claimed_subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from edge.contract.messages import Command
    from edge.contract.topics import Topics
    from edge.core.authority import Token
    from edge.core.budget import CommandRates
    from edge.mqtt.broker import Message
    from edge.signalling.authority import Authority


@dataclass(frozen=True, slots=True)
class ReturnPath:
    """The validated destination of replies to one command."""

    topic: str
    client: str
    correlation: bytes | None


@dataclass(slots=True)
class Incoming:
    """A message as far as it was read. `path` None: there is no reply. `sender` None: it proved nothing."""

    received: Received
    path: ReturnPath | None
    sender: str | None = None

    def __str__(self) -> str:
        """Describe it for the log. A client can send any text, so it is truncated and escaped."""
        client = self.path.client if self.path else "unknown"
        kind, command_id = self.received.kind[:_NAME_LIMIT], self.received.id[:_NAME_LIMIT]
        return f"type={kind!a} id={command_id!a} client={client}"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A valid command within the rates. `sender`: the token's subject; without a token, the reply client.

    The permission is not checked yet.
    """

    command: Command
    body: BaseModel
    token: Token | None
    path: ReturnPath
    sender: str

    @property
    def about_session(self) -> bool:
        """Whether it concerns an existing session."""
        return PERMISSIONS[self.command.type].owner


_NAME_LIMIT = 64
_HINT_CHARACTERS = 1024


class Intake:
    """Admits commands: first by their size, then by the budget of the unproven, then by their sender's rate.

    A message whose sender proves nothing costs a bounded share of the time (`Unproven`). When a flood has used that up,
    the signature is checked before the message is parsed; that of a repeated token is not checked again. Once a token
    is verified, the budget is that of its subject. Where authority is off, nobody proves anything, and the budget is
    that of the reply client. `now_s` is monotonic, `wall_s` counts from 1970.
    """

    def __init__(
        self,
        topics: Topics,
        authority: Authority,
        rates: CommandRates,
        *,
        now_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._authority = authority
        self._rates = rates
        self._now_s = now_s
        self._wall_s = wall_s
        # Where nobody can prove anything, all the time for the unproven is for reading.
        shares = (0.1, 0.25, 0.05) if authority.required else (0.4, 0.0, 0.0)
        self._unproven = Unproven(rates.all_per_s, dict(zip(Work, shares, strict=True)))

    def receive(self, message: Message) -> Incoming:
        """Return the message unread, with the reply topic of its MQTT 5 properties."""
        return Incoming(Received(len(message.payload), {}, None), self._path(message.response_topic, message))

    def admit(self, message: Message, incoming: Incoming) -> Admitted:
        """Read a message into `incoming`, and check its form, its token and its sender's rate.

        Raises: Rejected: with the contract's code.
        """
        size = len(message.payload)
        if size > COMMAND_LIMIT_BYTES:
            raise Rejected(Code.TOO_LARGE, f"the message has {size} bytes, the limit is {COMMAND_LIMIT_BYTES}")
        begun_s = self._now_s()
        work, token = Work.READ, None
        if not self._unproven.admit(begun_s):
            # Messages without a token take nothing from the time for checks. To search 32 KiB costs microseconds.
            token = claimed_token(message.payload)
            work = self._admit_unread(token, message, begun_s)
        proven = False
        try:
            if token is not None and not self._authority.signed(token):
                raise _too_many_unproven()
            admitted = self._read(message, incoming, begun_s)
            self._count(admitted, begun_s)
            proven = admitted.token is not None
        finally:
            # A message beyond its sender's rate counts here, too: else a viewer could use up the rest of the time.
            if not proven:
                now_s = self._now_s()
                self._unproven.charge(now_s - begun_s, now_s, work)
        return admitted

    def _admit_unread(self, token: str | None, message: Message, now_s: float) -> Work:
        """What to do for a message when the time for reading is used up. Raises: Rejected: `rate_limited`: nothing."""
        if token is not None:
            repeated = self._authority.verified(token)
            # A token of a usual length is decoded in microseconds; nobody has paid for more yet.
            subject = claimed_subject(token) if repeated or len(token) <= _HINT_CHARACTERS else None
            if repeated and self._unproven.admit_repeat(subject, now_s):
                return Work.REPEAT
            if self._unproven.admit_check(self._claimed_client(message), subject, now_s):
                return Work.CHECK
        raise _too_many_unproven()

    def _read(self, message: Message, incoming: Incoming, begun_s: float) -> Admitted:
        now_s = self._wall_s()
        received = incoming.received = read(message.payload)
        path = incoming.path = self._path(message.response_topic or received.reply_to, message)
        now = datetime.fromtimestamp(now_s, UTC) if self._authority.knows_time else None
        command, body = received.command(now)
        if path is None:
            raise Rejected(Code.BAD_MESSAGE, "reply_to: not a reply topic of this device")
        self._check_claimed_rate(command, begun_s)
        token = self._authority.token(command, now_s)
        if token is not None and token.client not in {None, path.client}:
            # The token allows no other topic, not even for the error.
            incoming.path = self._path_to(token.client)
            raise Rejected(Code.FORBIDDEN, "the token is for another reply client")
        incoming.sender = f"client:{path.client}" if token is None else f"{BY_TOKEN}{token.subject}"
        return Admitted(command, body, token, path, incoming.sender)

    def _check_claimed_rate(self, command: Command, now_s: float) -> None:
        """Spare the check of a signature if the token's subject is beyond its rate, whoever sent it.

        Raises: Rejected: `rate_limited`.
        """
        subject = claimed_subject(command.token.get_secret_value()) if command.token else None
        about_session = PERMISSIONS[command.type].owner
        if subject is not None and self._rates.exhausted(f"{BY_TOKEN}{subject}", now_s, about_session=about_session):
            raise Rejected(Code.RATE_LIMITED, "too many commands per second", retry_after_s=1)

    def _count(self, admitted: Admitted, now_s: float) -> None:
        """Raises: Rejected: `rate_limited`."""
        if admitted.token is not None:
            self._unproven.proved(admitted.path.client, admitted.token.subject)
        wait_s = self._rates.wait_s(admitted.sender, now_s, about_session=admitted.about_session)
        if wait_s is not None:
            raise Rejected(Code.RATE_LIMITED, "too many commands per second", retry_after_s=max(1, math.ceil(wait_s)))

    def _claimed_client(self, message: Message) -> str | None:
        return self._topics.reply_client(message.response_topic or claimed_reply_to(message.payload) or "")

    def _path(self, topic: str | None, message: Message) -> ReturnPath | None:
        client = self._topics.reply_client(topic) if topic else None
        return ReturnPath(topic, client, message.correlation) if topic and client else None

    def _path_to(self, client: str | None) -> ReturnPath | None:
        topic = self._topics.reply(client or "")
        return ReturnPath(topic, client, None) if client and self._topics.reply_client(topic) else None


def _too_many_unproven() -> Rejected:
    return Rejected(Code.RATE_LIMITED, "too many messages that prove nothing", retry_after_s=1)
