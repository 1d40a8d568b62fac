"""The rules for permissions and tokens."""

from __future__ import annotations

import re
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract.codes import Code
from edge.contract.messages import BODIES, RESERVED
from edge.core.authority import LEEWAY_S, PERMISSIONS, TOKEN_LIFETIME_LIMIT_S, authorize, read_claims
from edge.core.principal import Scope
from edge.errors import Rejected

DOCUMENT = Path(__file__).parents[2] / "docs" / "authority.md"
NOW_S = 1_800_000_000.0
GOOD = {"aud": "cam-1", "sub": "anna", "jti": "t-1", "exp": NOW_S + 60, "scope": "view"}
EVERY_SET = [frozenset(some) for some in chain(*(combinations(Scope, count) for count in range(len(Scope) + 1)))]


def code_of(claims: dict[str, Any], now_s: float = NOW_S) -> Code | None:
    try:
        read_claims(claims, "cam-1", now_s)
    except Rejected as exc:
        return exc.code
    return None


def allowed(kind: str, scopes: frozenset[Scope], audio: str = "off") -> bool:
    try:
        authorize(kind, scopes, audio=audio)
    except Rejected as exc:
        assert exc.code is Code.FORBIDDEN
        return False
    return True


def test_every_command_has_a_permission() -> None:
    assert set(PERMISSIONS) == set(BODIES) | RESERVED


def test_the_table_matches_the_document() -> None:
    found = {
        kind: column
        for kinds, column in re.findall(r"^\| (`[a-z].*?) \| ([a-z`].*?) \|$", DOCUMENT.read_text(), re.MULTILINE)
        for kind in re.findall(r"`([a-z]+\.[a-z_]+)`", kinds)
    }
    right = {
        kind: " or ".join((["owner"] if right.owner else []) + ([f"`{right.scope}`"] if right.scope else []))
        for kind, right in PERMISSIONS.items()
    }
    assert found == right


@pytest.mark.parametrize("kind", sorted(PERMISSIONS))
def test_a_scope_permits_its_commands_and_no_others(kind: str) -> None:
    right = PERMISSIONS[kind]
    for scopes in EVERY_SET:
        assert allowed(kind, scopes) == (right.owner or right.scope in scopes)


def test_audio_needs_its_own_scopes() -> None:
    for scopes in EVERY_SET:
        assert allowed("session.offer", scopes, "listen") == (scopes >= {Scope.VIEW, Scope.LISTEN})
        assert allowed("session.offer", scopes, "talk") == (scopes >= {Scope.VIEW, Scope.LISTEN, Scope.TALK})


def test_a_valid_token_is_read() -> None:
    token = read_claims({**GOOD, "client": "bff-1", "scope": "view control wonder"}, "cam-1", NOW_S)
    assert (token.subject, token.id, token.client, token.expires_s) == ("anna", "t-1", "bff-1", NOW_S + 60)
    assert token.scopes == {Scope.VIEW, Scope.CONTROL}
    assert read_claims({**GOOD, "aud": ["cam-1"], "scope": ["view"]}, "cam-1", NOW_S).scopes == {Scope.VIEW}
    assert read_claims({**GOOD, "scope": None}, "cam-1", NOW_S).scopes == set()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aud": "cam-2"}, Code.UNAUTHORIZED),
        ({"aud": ["cam-1", "cam-2"]}, Code.UNAUTHORIZED),
        ({"aud": None}, Code.UNAUTHORIZED),
        ({"exp": NOW_S - LEEWAY_S}, Code.EXPIRED),
        ({"exp": NOW_S - LEEWAY_S + 1}, None),
        ({"exp": NOW_S + TOKEN_LIFETIME_LIMIT_S}, None),
        ({"exp": NOW_S + TOKEN_LIFETIME_LIMIT_S + LEEWAY_S + 1}, Code.UNAUTHORIZED),
        ({"exp": None}, Code.UNAUTHORIZED),
        ({"exp": True}, Code.UNAUTHORIZED),
        ({"exp": "tomorrow"}, Code.UNAUTHORIZED),
        ({"exp": float("nan")}, Code.UNAUTHORIZED),
        ({"exp": float("inf")}, Code.UNAUTHORIZED),
        ({"exp": 10**400}, Code.UNAUTHORIZED),
        ({"nbf": NOW_S + LEEWAY_S}, None),
        ({"nbf": NOW_S + LEEWAY_S + 1}, Code.UNAUTHORIZED),
        ({"iat": NOW_S + LEEWAY_S + 1}, Code.UNAUTHORIZED),
        ({"sub": None}, Code.UNAUTHORIZED),
        ({"sub": ""}, Code.UNAUTHORIZED),
        ({"sub": "a\nb"}, Code.UNAUTHORIZED),
        ({"sub": 7}, Code.UNAUTHORIZED),
        ({"jti": None}, Code.UNAUTHORIZED),
        ({"jti": "x" * 129}, Code.UNAUTHORIZED),
        ({"client": 7}, Code.UNAUTHORIZED),
        ({"client": ""}, Code.UNAUTHORIZED),
    ],
)
def test_invalid_claims_are_refused_with_their_code(change: dict[str, Any], code: Code | None) -> None:
    assert code_of({**GOOD, **change}) is code


def test_an_expired_token_may_serve_a_session_but_has_no_scopes() -> None:
    late_s = NOW_S + 5000
    token = read_claims(GOOD, "cam-1", late_s, may_be_expired=True)
    assert (token.subject, token.id, token.expired) == ("anna", "t-1", True)
    assert not token.scopes
    assert not read_claims(GOOD, "cam-1", NOW_S, may_be_expired=True).expired
    for change in ({"aud": "cam-2"}, {"sub": None}, {"jti": None}, {"exp": None}):
        with pytest.raises(Rejected) as refused:
            read_claims({**GOOD, **change}, "cam-1", late_s, may_be_expired=True)
        assert refused.value.code is Code.UNAUTHORIZED


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.dictionaries(st.sampled_from([*GOOD, "nbf", "iat", "client"]), JSON))
def test_any_claims_are_read_or_refused(change: dict[str, Any]) -> None:
    assert code_of({**GOOD, **change}) in {None, Code.UNAUTHORIZED, Code.EXPIRED}
