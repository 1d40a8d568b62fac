"""Authorization: the permission that each command needs, and the claims that a token must have."""

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
"""The tolerated difference between the clocks of backend and device."""

_NAME_LIMIT = 128
_FAR_S = 1e15  # beyond any date; excludes NaN and infinity


@dataclass(frozen=True, slots=True)
class Permission:
    """What a command needs: a token with the `scope`, or, with `owner`, one of the subject that opened its session."""

    scope: Scope | None = None
    owner: bool = False


PERMISSIONS = {
    "session.offer": Permission(Scope.VIEW),
    "session.request_offer": Permission(Scope.VIEW),
    "session.answer": Permission(owner=True),
    "session.candidate": Permission(owner=True),
    "session.quality": Permission(owner=True),
    "session.close": Permission(Scope.MANAGE, owner=True),
    "session.list": Permission(Scope.MANAGE),
    "stream.start": Permission(Scope.MANAGE),
    "stream.stop": Permission(Scope.MANAGE),
    "camera.set": Permission(Scope.CONTROL),
    "camera.snapshot": Permission(Scope.VIEW),
    "status.get": Permission(Scope.VIEW),
    "publish.start": Permission(Scope.MANAGE),
    "publish.stop": Permission(Scope.MANAGE),
}
"""The permission for every command of the contract. An offer with audio needs more; see `authorize`."""

# Talking includes listening.
_AUDIO = {"off": frozenset[Scope](), "listen": frozenset({Scope.LISTEN}), "talk": frozenset({Scope.LISTEN, Scope.TALK})}


@dataclass(frozen=True, slots=True)
class Token:
    """The claims of a verified token. `client`: the only reply client that may use it; None: any.

    `expired`: it serves only the session that it opened, and has no scopes.
    """

    subject: str
    id: str
    expires_s: float
    scopes: frozenset[Scope]
    client: str | None = None
    expired: bool = False


def authorize(kind: str, scopes: frozenset[Scope], *, audio: str = "off") -> None:
    """Check the scopes for a command. The session checks its owner itself.

    Raises: Rejected: `forbidden`.
    """
    permission = PERMISSIONS[kind]
    needed = set(_AUDIO[audio])
    if permission.scope is not None and not permission.owner:
        needed.add(permission.scope)
    if missing := needed - scopes:
        raise Rejected(Code.FORBIDDEN, f"this needs the scope {' and '.join(sorted(missing))}")


def read_claims(claims: Mapping[str, object], device: str, now_s: float, *, may_be_expired: bool = False) -> Token:
    """Check the claims of a token whose signature is valid: it must be for this device and valid now.

    `may_be_expired`: for a command about a session; the session decides whether the token opened it.
    `now_s`: seconds since 1970, as in the token (RFC 7519, NumericDate).
    Raises: Rejected: `unauthorized` or `expired`; the message repeats no value of the token.
    """
    if claims.get("aud") not in (device, [device]):
        raise Rejected(Code.UNAUTHORIZED, "the token is not for this device (aud)")
    expires_s = _time_s(claims, "exp")
    if expires_s is None:
        raise Rejected(Code.UNAUTHORIZED, "the token has no exp")
    expired = now_s >= expires_s + LEEWAY_S
    if expired and not may_be_expired:
        raise Rejected(Code.EXPIRED, "the token has expired")
    if expires_s - now_s > TOKEN_LIFETIME_LIMIT_S + LEEWAY_S:
        raise Rejected(Code.UNAUTHORIZED, f"the token expires more than {TOKEN_LIFETIME_LIMIT_S} s ahead")
    for name in ("nbf", "iat"):
        since_s = _time_s(claims, name)
        if since_s is not None and now_s < since_s - LEEWAY_S:
            raise Rejected(Code.UNAUTHORIZED, f"the token is not valid yet ({name})")
    return Token(
        _required_text(claims, "sub"),
        _required_text(claims, "jti"),
        expires_s,
        frozenset() if expired else _scopes(claims.get("scope")),
        _text(claims, "client"),
        expired,
    )


def _time_s(claims: Mapping[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_FAR_S < value < _FAR_S:
        raise Rejected(Code.UNAUTHORIZED, f"the token's {name} is not a number of seconds")
    return float(value)


def _required_text(claims: Mapping[str, object], name: str) -> str:
    value = _text(claims, name)
    if value is None:
        raise Rejected(Code.UNAUTHORIZED, f"the token has no {name}")
    return value


def _text(claims: Mapping[str, object], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_LIMIT or not value.isprintable():
        raise Rejected(Code.UNAUTHORIZED, f"the token's {name} is not text of 1 to {_NAME_LIMIT} printable characters")
    return value


def _scopes(value: object) -> frozenset[Scope]:
    """Scopes in one string, as in OAuth (RFC 8693), or in a list. Unknown ones are ignored."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(scope for scope in Scope if scope.value in words)
