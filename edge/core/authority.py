"""Who may do what: the scope that each command needs, and what makes a token one for this device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.contract.codes import Code
from edge.core.principal import Scope
from edge.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_LIFETIME_LIMIT_S = 600
LEEWAY_S = 5
"""By how much the clocks of backend and device may differ."""

_NAME_LIMIT = 128
_FAR_S = 1e15  # beyond any date; what is no number lies in no range


@dataclass(frozen=True, slots=True)
class Right:
    """Who may give a command: a token with the `scope`, and the `owner` of the session that it is about."""

    scope: Scope | None = None
    owner: bool = False


WHO_MAY = {
    "session.offer": Right(Scope.VIEW),
    "session.request_offer": Right(Scope.VIEW),
    "session.answer": Right(owner=True),
    "session.candidate": Right(owner=True),
    "session.quality": Right(owner=True),
    "session.close": Right(Scope.MANAGE, owner=True),
    "session.list": Right(Scope.MANAGE),
    "stream.start": Right(Scope.MANAGE),
    "stream.stop": Right(Scope.MANAGE),
    "camera.set": Right(Scope.CONTROL),
    "camera.snapshot": Right(Scope.VIEW),
    "status.get": Right(Scope.VIEW),
    "publish.start": Right(Scope.MANAGE),
    "publish.stop": Right(Scope.MANAGE),
}
"""The contract's column of this name, for every command. An offer with audio needs more: see `authorize`."""

# Who talks also hears.
_AUDIO = {"off": frozenset[Scope](), "listen": frozenset({Scope.LISTEN}), "talk": frozenset({Scope.LISTEN, Scope.TALK})}


@dataclass(frozen=True, slots=True)
class Token:
    """What a checked token says. `client`: the one reply client that it is for; None: any."""

    subject: str
    id: str
    expires_s: float
    scopes: frozenset[Scope]
    client: str | None = None


def authorize(kind: str, scopes: frozenset[Scope], *, audio: str = "off") -> None:
    """Let a command through as far as its scope goes; whose session it is about, the session itself asks.

    Raises: Rejected: `forbidden`.
    """
    right = WHO_MAY[kind]
    needed = set(_AUDIO[audio])
    if right.scope is not None and not right.owner:
        needed.add(right.scope)
    if missing := needed - scopes:
        raise Rejected(Code.FORBIDDEN, f"this needs the scope {' and '.join(sorted(missing))}")


def read_claims(claims: Mapping[str, object], device: str, now_s: float) -> Token:
    """What a token whose signature is good says, if it is one for this device and for now.

    `now_s`: seconds since 1970, as in the token (RFC 7519, NumericDate).
    Raises: Rejected: `unauthorized` or `expired`; the message repeats no value of the token.
    """
    if claims.get("aud") not in (device, [device]):
        raise Rejected(Code.UNAUTHORIZED, "the token is not for this device (aud)")
    expires_s = _moment(claims, "exp")
    if expires_s is None:
        raise Rejected(Code.UNAUTHORIZED, "the token never expires (exp)")
    if now_s >= expires_s + LEEWAY_S:
        raise Rejected(Code.EXPIRED, "the token has expired")
    if expires_s - now_s > TOKEN_LIFETIME_LIMIT_S + LEEWAY_S:
        raise Rejected(Code.UNAUTHORIZED, f"the token expires more than {TOKEN_LIFETIME_LIMIT_S} s ahead")
    for name in ("nbf", "iat"):
        since_s = _moment(claims, name)
        if since_s is not None and now_s < since_s - LEEWAY_S:
            raise Rejected(Code.UNAUTHORIZED, f"the token is not valid yet ({name})")
    subject, token_id = _name(claims, "sub"), _name(claims, "jti")
    if subject is None or token_id is None:
        raise Rejected(Code.UNAUTHORIZED, "the token says not whose it is (sub), or has no id (jti)")
    return Token(subject, token_id, expires_s, _scopes(claims.get("scope")), _name(claims, "client"))


def _moment(claims: Mapping[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_FAR_S < value < _FAR_S:
        raise Rejected(Code.UNAUTHORIZED, f"the token's {name} is no moment")
    return float(value)


def _name(claims: Mapping[str, object], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_LIMIT or not value.isprintable():
        raise Rejected(Code.UNAUTHORIZED, f"the token's {name} is not text of 1 to {_NAME_LIMIT} printable characters")
    return value


def _scopes(value: object) -> frozenset[Scope]:
    """Words in one text, as OAuth has it (RFC 8693), or a list; unknown ones count for nothing."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(scope for scope in Scope if scope.value in words)
