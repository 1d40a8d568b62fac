"""Commands that came, and the tokens that opened sessions: each takes effect once, over restarts too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.contract.messages import LIFETIME_LIMIT_S
from edge.core.authority import LEEWAY_S, Token
from edge.core.once import OnceWindow, Row
from edge.errors import Rejected

if TYPE_CHECKING:
    from edge.contract.messages import Command
    from edge.signalling.ports import Ledger

_COMMAND, _TOKEN = "command", "token"
# A session, or a question, does not outlive the daemon: a command about one that comes again finds nothing to change.
_OUTLIVES = {"session.offer", "stream.start", "stream.stop", "camera.set"}
_KEPT_REPLY_BYTES = 8 * 1024
_QUESTIONS = {"session.list", "camera.snapshot", "status.get"}


@dataclass(slots=True)
class Taken:
    """A command that was taken, from a reply client; its reply, once it is answered. It may come again `until_s`.

    `kind` None: it is not known any more, after a restart.
    """

    client: str
    until_s: float
    kind: str | None = None
    _reply: bytes | None = None
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def reply(self) -> bytes:
        """Wait for the reply. Raises: Rejected: `replayed`, there is none: the device restarted."""
        await self._answered.wait()
        if self._reply is None:
            message = "this command took effect before the device restarted: ask again, with a new one"
            raise Rejected(Code.REPLAYED, message)
        return self._reply

    def answer(self, reply: bytes | None) -> None:
        self._reply = reply
        self._answered.set()


class Once:
    """What was taken and what is spent. `ledger`: where what would matter after a restart is written down.

    Of an offer that was answered only that it was: after a restart its session is gone, and so the same offer gets
    `replayed`, not an answer of nobody. Large replies to questions are not kept, the question is then answered anew.
    """

    def __init__(self, ledger: Ledger, now_s: float) -> None:
        self._ledger = ledger
        self._commands: OnceWindow[Taken] = OnceWindow()
        self._tokens: OnceWindow[bool] = OnceWindow()
        for row in ledger.open():
            try:
                if row.kind == _COMMAND:
                    taken = Taken(row.client, row.until_s)
                    taken.answer(row.reply)
                    self._commands.put(row.sender, row.id, taken, now_s, row.until_s)
                else:
                    self._tokens.put(row.sender, row.id, True, now_s, row.until_s)
            except Rejected:
                continue

    def seen(self, sender: str, command: Command, client: str, now_s: float) -> Taken | None:
        """The command as it was taken before; None where it is new.

        Raises: Rejected: `replayed`, it came by another reply client, which is not to have the reply, or is of another
        type.
        """
        taken = self._commands.seen(sender, command.id, now_s)
        if taken is not None and (taken.client != client or taken.kind not in {None, command.type}):
            raise Rejected(Code.REPLAYED, "this id was used by another command")
        return taken

    def take(self, sender: str, command: Command, client: str, now_s: float) -> Taken:
        """Take a new command. Raises: Rejected: `rate_limited`."""
        # While the time is not known, nobody has looked at how far ahead it expires.
        until_s = min(command.expires_at.timestamp(), now_s + LIFETIME_LIMIT_S) + LEEWAY_S
        taken = Taken(client, until_s, command.type)
        self._commands.put(sender, command.id, taken, now_s, taken.until_s)
        self._write(sender, command, taken, None)
        return taken

    def answer(self, sender: str, command: Command, taken: Taken, reply: bytes, *, ok: bool) -> None:
        """A command that was taken is answered with `reply`; `ok`: it took effect."""
        taken.answer(reply)
        if command.type in _QUESTIONS and len(reply) > _KEPT_REPLY_BYTES:
            self._commands.drop(sender, command.id)
        if command.type != "session.offer" or not ok:
            self._write(sender, command, taken, reply)

    def use(self, token: Token, now_s: float, *, opens: bool) -> None:
        """A command outside a session uses a token; where it `opens` one, that spends the token.

        Raises: Rejected: `replayed`, it is spent. `rate_limited`.
        """
        if self._tokens.seen(token.subject, token.id, now_s) is not None:
            raise Rejected(Code.REPLAYED, "this token (jti) has opened a session: each one needs its own")
        if opens:
            until_s = token.expires_s + LEEWAY_S
            self._tokens.put(token.subject, token.id, True, now_s, until_s)
            self._ledger.put(Row(_TOKEN, token.subject, token.id, until_s, "", None))

    def give_back(self, token: Token) -> None:
        """No session was opened with it."""
        self._tokens.drop(token.subject, token.id)
        self._ledger.drop((_TOKEN, token.subject, token.id))

    def _write(self, sender: str, command: Command, taken: Taken, reply: bytes | None) -> None:
        if command.type in _OUTLIVES:
            self._ledger.put(Row(_COMMAND, sender, command.id, taken.until_s, taken.client, reply))
