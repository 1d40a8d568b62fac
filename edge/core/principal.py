"""Who asks: passed with every command from the door to the rule that decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Door(StrEnum):
    """The way a command came in."""

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
    """An authenticated party, on the door that it came by.

    `client` is the backend's reply client on MQTT, the peer's address on the local door. `by_token`: a token said that
    it is this subject; else it only says so itself.
    """

    subject: str
    client: str
    door: Door
    scopes: frozenset[Scope] = EVERY_SCOPE
    by_token: bool = False

    def owns(self, opener: Principal) -> bool:
        """Whether this is the party that opened a session as `opener`: same door and client, and by tokens, subject."""
        same_way = self.door == opener.door and self.client == opener.client
        return same_way and (self.subject == opener.subject or not (self.by_token and opener.by_token))
