"""Determines who sent a command: from a token, or from the command itself if authority is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edge.contract.codes import Code
from edge.contract.messages import OfferBody
from edge.core.authority import PERMISSIONS, Token, authorize, read_claims
from edge.core.principal import EVERY_SCOPE, Interface, Principal, Scope
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from edge.contract.messages import Command

_CLOCK_RETRY_S = 5
# Without authority no client can prove that it may manage another client's session. The broker's access rules decide
# which clients can publish commands.
_WITHOUT_AUTHORITY = EVERY_SCOPE - {Scope.MANAGE}


class Keys(Protocol):
    """Verifies the signature of a token."""

    def claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token with a valid signature. Raises: Rejected: `unauthorized`."""

    def verified(self, token: str) -> bool:
        """Whether the signature of this token was checked before, so that `claims` is cheap."""


class Authority:
    """Authenticates and authorizes the commands to one device. `keys` None: authority is off."""

    def __init__(self, device: str, keys: Keys | None, clock_known: Callable[[], bool]) -> None:
        self._device = device
        self._keys = keys
        self._clock_known = clock_known

    @property
    def knows_time(self) -> bool:
        """Whether to check the times in a command. Without authority the clock is not questioned."""
        return self._keys is None or self._clock_known()

    @property
    def required(self) -> bool:
        """Whether commands need a token."""
        return self._keys is not None

    def signed(self, token: str) -> bool:
        """Whether the backend signed a token. Its claims are not checked. Authority off: False."""
        if self._keys is None:
            return False
        try:
            self._keys.claims(token)
        except Rejected:
            return False
        return True

    def verified(self, token: str) -> bool:
        """Whether `signed` is true, and costs no check of the signature."""
        return self._keys is not None and self._keys.verified(token)

    def token(self, command: Command, now_s: float) -> Token | None:
        """Verify the command's token. None: authority is off.

        Raises: Rejected: `unauthorized`, `expired`, `clock_unset`.
        """
        if self._keys is None:
            return None
        if not self._clock_known():
            message = "the device does not know the time yet, so it cannot check tokens"
            raise Rejected(Code.CLOCK_UNSET, message, retry_after_s=_CLOCK_RETRY_S)
        if command.token is None:
            raise Rejected(Code.UNAUTHORIZED, f"{command.type} needs a token")
        claims = self._keys.claims(command.token.get_secret_value())
        return read_claims(claims, self._device, now_s, may_be_expired=PERMISSIONS[command.type].owner)

    def caller(self, command: Command, body: BaseModel, token: Token | None, client: str) -> Principal:
        """Return the sender, which uses the reply client `client`, if its scopes allow the command.

        Raises: Rejected: `forbidden`.
        """
        if token is None:
            return Principal(getattr(body, "viewer", None) or client, client, Interface.MQTT, _WITHOUT_AUTHORITY)
        authorize(command.type, token.scopes, audio=body.audio if isinstance(body, OfferBody) else "off")
        return Principal(token.subject, client, Interface.MQTT, token.scopes, token.id, token.expired)
