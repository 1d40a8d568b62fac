"""Who asks: by a token, or, where authority is off, by what it says itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edge.contract.codes import Code
from edge.contract.messages import OfferBody
from edge.core.authority import WHO_MAY, Token, authorize, read_claims
from edge.core.principal import EVERY_SCOPE, Door, Principal, Scope
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from edge.contract.messages import Command

_CLOCK_RETRY_S = 5
# Without authority nobody can prove that they may manage somebody else's session; the broker's own rules say who
# may publish commands at all.
_WITHOUT_AUTHORITY = EVERY_SCOPE - {Scope.MANAGE}


class Keys(Protocol):
    """What checks the signature of a token."""

    def claims(self, token: str) -> dict[str, Any]:
        """Raises: Rejected: `unauthorized`."""


class Authority:
    """Authority over one device's commands. `keys` None: it is off."""

    def __init__(self, device: str, keys: Keys | None, clock_known: Callable[[], bool]) -> None:
        self._device = device
        self._keys = keys
        self._clock_known = clock_known

    @property
    def knows_time(self) -> bool:
        """Whether a moment in a command means anything: without authority nobody asks how good the clock is."""
        return self._keys is None or self._clock_known()

    def token(self, command: Command, now_s: float) -> Token | None:
        """The command's token, checked; None where it has none and needs none.

        Raises: Rejected: `unauthorized`, `expired`, `clock_unset`.
        """
        if self._keys is None:
            return None
        if command.token is None and WHO_MAY[command.type].owner:
            return None
        if not self._clock_known():
            message = "the device does not know the time yet, so it cannot check tokens"
            raise Rejected(Code.CLOCK_UNSET, message, retry_after_s=_CLOCK_RETRY_S)
        if command.token is None:
            raise Rejected(Code.UNAUTHORIZED, f"{command.type} needs a token")
        return read_claims(self._keys.claims(command.token.get_secret_value()), self._device, now_s)

    def caller(self, command: Command, body: BaseModel, token: Token | None, client: str) -> Principal:
        """Who asks, by the reply client `client`, and may as far as scopes go.

        Raises: Rejected: `forbidden`.
        """
        if self._keys is None:
            return Principal(getattr(body, "viewer", None) or client, client, Door.MQTT, _WITHOUT_AUTHORITY)
        scopes = token.scopes if token else frozenset[Scope]()
        authorize(command.type, scopes, audio=body.audio if isinstance(body, OfferBody) else "off")
        return Principal(token.subject if token else client, client, Door.MQTT, scopes, by_token=token is not None)
