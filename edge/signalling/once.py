"""Executes each command once and lets each token open one session, also over restarts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edge.contract.codes import Code
from edge.contract.messages import Reply
from edge.core.authority import LEEWAY_S, Token
from edge.core.once import OnceWindow, Row
from edge.errors import Rejected

if TYPE_CHECKING:
    from edge.contract.messages import Command
    from edge.signalling.ports import Ledger

_COMMAND, _TOKEN = "command", "token"
# The effects of other commands do not survive the daemon: a repeated one finds nothing to change.
_SURVIVING = {"session.offer", "stream.start", "stream.stop", "camera.set"}
_REPLY_LIMIT_BYTES = 8 * 1024
_RESERVE = 256
"""Places for commands that manage the device, beyond those of all others."""
_UNPROVEN_S = 30.0
BY_TOKEN = "token:"  # noqa: S105  not a secret
"""The prefix of a sender that a token proves."""
_QUERIES = {"session.list", "camera.snapshot", "status.get"}


@dataclass(slots=True)
class Accepted:
    """An accepted command of a reply client, and its reply when there is one. It may be repeated `until_s`.

    `kind` None: unknown, because the device restarted.
    """

    client: str
    until_s: float
    kind: str | None = None
    _reply: bytes | None = None
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def reply(self) -> bytes:
        """Wait for the reply. Raises: Rejected: `replayed`: there is none, because the device restarted."""
        await self._answered.wait()
        if self._reply is None:
            message = "this command took effect before the device restarted; send a new one"
            raise Rejected(Code.REPLAYED, message)
        return self._reply

    def answer(self, reply: bytes | None) -> None:
        self._reply = reply
        self._answered.set()


class Once:
    """The accepted commands and the used tokens. `ledger` stores what matters after a restart.

    Commands without a token have a window of their own, which only exists where authority is off: anyone may name
    themselves anything. When it is full, commands that are 30 s old give way.

    The answer to an offer is not stored: its session does not survive a restart, and a repeated offer is then
    `replayed`. Large replies to queries are not kept; a repeated query is executed again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._proven: OnceWindow[Accepted] = OnceWindow(reserve=_RESERVE)
        self._unproven: OnceWindow[Accepted] = OnceWindow(reserve=_RESERVE, yield_s=_UNPROVEN_S)
        self._tokens: OnceWindow[bool] = OnceWindow()
        # The clock may not be set yet: nothing expires before the first command is accepted.
        now_s = 0.0
        for row in ledger.open():
            try:
                if row.kind == _COMMAND:
                    accepted = Accepted(row.client, row.until_s)
                    accepted.answer(_intact(row.reply))
                    key = row.sender, row.id
                    self._window(row.sender).put(key, row.sender, accepted, now_s, row.until_s, reserved=True)
                else:
                    # Reserved, because the order differs from that in which they were used.
                    self._tokens.put((row.id,), row.sender, True, now_s, row.until_s, reserved=True)
            except Rejected:
                continue

    def seen(self, sender: str, command: Command, client: str, now_s: float) -> Accepted | None:
        """Return the command as accepted before; None if it is new.

        Raises: Rejected: `replayed`: it has another type or another reply client, which must not get the
        reply.
        """
        accepted = self._window(sender).seen((sender, command.id), now_s)
        if accepted is not None and (accepted.client != client or accepted.kind not in {None, command.type}):
            raise Rejected(Code.REPLAYED, "this id was used by another command")
        return accepted

    def accept(self, sender: str, command: Command, client: str, now_s: float, *, manages: bool) -> Accepted:
        """Accept a new command. `manages`: it may take a reserved place. Raises: Rejected: `rate_limited`."""
        until_s = command.expires_at.timestamp() + LEEWAY_S
        accepted = Accepted(client, until_s, command.type)
        key = sender, command.id
        self._window(sender).put(key, sender, accepted, now_s, accepted.until_s, reserved=manages)
        self._store(sender, command, accepted, None)
        return accepted

    def answer(self, sender: str, command: Command, accepted: Accepted, reply: bytes, *, ok: bool) -> None:
        """Record the reply to an accepted command. `ok`: it took effect."""
        accepted.answer(reply)
        if command.type in _QUERIES and len(reply) > _REPLY_LIMIT_BYTES:
            self._window(sender).drop((sender, command.id))
        if command.type != "session.offer" or not ok:
            self._store(sender, command, accepted, reply)

    def use(self, token: Token, now_s: float, *, opens: bool) -> None:
        """Use a token for a command outside a session. A command that `opens` a session uses its `jti` up.

        A `jti` is used up for all subjects: ids of tokens are unique, whoever they are for.

        Raises: Rejected: `replayed`: it is used up. `rate_limited`.
        """
        if self._tokens.seen((token.id,), now_s) is not None:
            raise Rejected(
                Code.REPLAYED, "this token (jti) has already opened a session; each session needs its own token"
            )
        if opens:
            until_s = token.expires_s + LEEWAY_S
            self._tokens.put((token.id,), token.subject, True, now_s, until_s)
            self._ledger.put(Row(_TOKEN, token.subject, token.id, until_s, "", None))

    def release(self, token: Token) -> None:
        """Make a token usable again: it opened no session."""
        self._tokens.drop((token.id,))
        self._ledger.drop((_TOKEN, token.subject, token.id))

    def _window(self, sender: str) -> OnceWindow[Accepted]:
        return self._proven if sender.startswith(BY_TOKEN) else self._unproven

    def _store(self, sender: str, command: Command, accepted: Accepted, reply: bytes | None) -> None:
        if command.type in _SURVIVING:
            self._ledger.put(Row(_COMMAND, sender, command.id, accepted.until_s, accepted.client, reply))


def _intact(reply: bytes | None) -> bytes | None:
    """A stored reply; None if the disk damaged it."""
    if reply is not None:
        try:
            Reply.model_validate_json(reply)
        except ValidationError:
            return None
    return reply
