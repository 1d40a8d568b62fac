"""Who sent a command. Every command carries its principal to the rule that decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Interface(StrEnum):
    """The interface through which a command arrived."""

    MQTT = "mqtt"
    LOCAL = "local"


class Scope(StrEnum):
    """What a principal may do."""

    VIEW = "view"
    LISTEN = "listen"
    TALK = "talk"
    CONTROL = "control"
    MANAGE = "manage"


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated party and the interface that it uses.

    `client` is the backend's reply client on MQTT, the peer's address on the local interface. `token`: the id (jti) of
    the signed token that proves the subject; None: the subject is only a claim. `expired`: the token's time has passed,
    so that it proves nothing but the sessions that it opened.
    """

    subject: str
    client: str
    interface: Interface
    scopes: frozenset[Scope] = EVERY_SCOPE
    token: str | None = None
    expired: bool = False

    @property
    def proven(self) -> str | None:
        """The subject, where a token proves it."""
        return None if self.token is None else self.subject

    def owns(self, opener: Principal) -> bool:
        """Whether this party may act as `opener`, the party that opened a session on the same interface.

        A session that was opened with a token belongs to the token's subject: the same token proves it, also after its
        time, and any other valid token of that subject. Other sessions belong to their client.
        """
        if self.interface is not opener.interface:
            return False
        if opener.token is None:
            return self.client == opener.client
        same_subject = self.token is not None and self.subject == opener.subject
        return same_subject and (self.token == opener.token or not self.expired)
