"""Tokens with real keys, and the file of public keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from edge.client import Signer
from edge.client.tokens import jwks
from edge.contract.codes import Code
from edge.core.authority import read_claims
from edge.core.principal import Scope
from edge.errors import ConfigInvalid, Rejected
from edge.signalling.tokens import TokenKeys
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SIGNER = Signer.generate("one")
P256 = Signer(ec.generate_private_key(ec.SECP256R1()), "two")
TOKEN = SIGNER.sign("cam-1", "anna")


def written(path: Path, text: str) -> Path:
    """As a deployment writes it: whole, in place of the old one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "jwks.json", jwks(SIGNER, P256))


def refusal(keys: TokenKeys, token: str) -> str:
    with pytest.raises(Rejected) as caught:
        keys.claims(token)
    assert caught.value.code is Code.UNAUTHORIZED
    for part in token.split("."):
        assert len(part) < 8 or part not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("signer", [SIGNER, P256], ids=["EdDSA", "ES256"])
def test_a_token_of_either_kind_says_what_was_signed(path: Path, signer: Signer) -> None:
    claims = TokenKeys(path).claims(
        signer.sign("cam-1", "anna", ["view", "talk"], client="bff-1", ttl_s=60, now_s=1000)
    )
    assert claims.pop("jti")
    assert claims == {
        "aud": "cam-1",
        "sub": "anna",
        "scope": "view talk",
        "client": "bff-1",
        "iat": 1000,
        "exp": 1060,
    }


def test_the_documents_code_signs_what_a_device_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/authority.md").read_text(), re.DOTALL)
    assert code
    _, jwks_file = Signer.generate("2026-11").save(tmp_path / "keys")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code[1], names)
    token = read_claims(
        TokenKeys(jwks_file).claims(names["token"]("cam-1", "anna", "view manage")), "cam-1", time.time()
    )
    assert (token.subject, token.client) == ("anna", "bff-7")
    assert token.scopes == {Scope.VIEW, Scope.MANAGE}


def test_a_token_of_an_unknown_key_or_of_none(path: Path) -> None:
    keys = TokenKeys(path)
    assert "kid" in refusal(keys, Signer.generate("three").sign("cam-1", "anna"))
    stranger = Signer.generate("one").sign("cam-1", "anna")
    assert "not signed" in refusal(keys, stranger)
    refusal(keys, P256.sign("cam-1", "anna").replace(".", "..", 1))
    private, claims = ec.generate_private_key(ec.SECP256R1()), {"sub": "anna"}
    refusal(keys, jwt.encode(claims, private, "ES256"))
    refusal(keys, jwt.encode(claims, private, "ES256", {"kid": "two"}))


def test_no_token_chooses_how_it_is_checked(path: Path) -> None:
    keys = TokenKeys(path)
    claims = {"sub": "anna", "aud": "cam-1"}
    refusal(keys, jwt.encode(claims, "", "none", {"kid": "one"}))
    header, payload, signature = TOKEN.split(".")
    refusal(keys, f"{header}.{payload}.")
    for algorithm in ("HS256", "ES256", "Ed448", "none", "eddsa"):
        forged = {"alg": algorithm, "kid": "one", "typ": "JWT"}
        refusal(keys, f"{_part(forged)}.{payload}.{signature}")
    # The public key as the secret of an HMAC: what a checker that believes the header would accept.
    for secret in (path.read_bytes(), str(SIGNER.jwk()["x"]).encode(), _bytes(str(SIGNER.jwk()["x"]))):
        signed = f"{_part({'alg': 'HS256', 'kid': 'one'})}.{payload}"
        digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        refusal(keys, f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}")
    # A key that the token brings along, or says where to find.
    own = Signer.generate("one")
    for extra in ({"jwk": own.jwk()}, {"jku": "https://evil.example/jwks.json"}, {"crit": ["x"], "x": 1}):
        refusal(keys, jwt.encode(claims, own._key, "EdDSA", {"kid": "one", **extra}))
    refusal(keys, jwt.encode(claims, SIGNER._key, "EdDSA", {"kid": "one", "crit": ["x"], "x": 1}))


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


@pytest.mark.parametrize("kid", [None, 7, ["one"], {"a": 1}, ""])
def test_a_kid_that_is_none(path: Path, kid: object) -> None:
    _, payload, signature = TOKEN.split(".")
    refusal(TokenKeys(path), f"{_part({'alg': 'EdDSA', 'kid': kid})}.{payload}.{signature}")


def test_what_is_signed_has_to_be_claims(path: Path) -> None:
    keys = TokenKeys(path)
    for content in (b"7", b"[]", b"\xff", b"[" * 100_000):
        refusal(keys, jwt.PyJWS().encode(content, SIGNER._key, "EdDSA", {"kid": "one"}))


def test_any_text_as_a_token(tmp_path: Path) -> None:
    keys = TokenKeys(written(tmp_path / "jwks.json", jwks(SIGNER)))

    @given(st.text() | st.lists(st.sampled_from([*TOKEN.split("."), "", "e30", "W10", "W1tb" * 9000])).map(".".join))
    def check(token: str) -> None:
        if token != TOKEN:
            refusal(keys, token)

    check()


def test_keys_are_rotated_and_withdrawn_while_it_runs(path: Path) -> None:
    keys = TokenKeys(path)
    new = Signer.generate("new")
    refusal(keys, new.sign("cam-1", "anna"))
    written(path, jwks(SIGNER, new))
    assert keys.claims(new.sign("cam-1", "anna"))["sub"] == "anna"
    assert keys.claims(SIGNER.sign("cam-1", "anna"))
    refusal(keys, P256.sign("cam-1", "anna"))
    written(path, jwks(new))
    refusal(keys, SIGNER.sign("cam-1", "anna"))
    written(path, jwks())
    refusal(keys, new.sign("cam-1", "anna"))


def test_a_file_that_is_changed_in_place_is_read_again(path: Path) -> None:
    keys = TokenKeys(path)
    same_size = Signer.generate("owt")
    path.write_text(jwks(SIGNER, same_size))
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert keys.claims(same_size.sign("cam-1", "anna"))


@pytest.mark.parametrize("spoilt", ["", "{", '{"keys": 7}', "[]", '{"keys": [{"kty": "RSA"}]}', "x" * 70_000, None])
def test_a_file_that_is_spoilt_leaves_the_keys_and_is_told_once(
    path: Path, spoilt: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = TokenKeys(path)
    path.unlink() if spoilt is None else written(path, spoilt)
    for _ in range(3):
        assert keys.claims(SIGNER.sign("cam-1", "anna"))
    told = [record.message for record in caplog.records if "stay as they were" in record.message]
    assert len(told) == 1
    written(path, jwks(P256))
    assert keys.claims(P256.sign("cam-1", "anna"))
    refusal(keys, SIGNER.sign("cam-1", "anna"))


@pytest.mark.parametrize("content", [None, "", "{}", '{"keys": [7]}', "\xff\x00"])
def test_without_a_key_to_begin_with_it_does_not_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)
    with pytest.raises(ConfigInvalid, match=r"auth\.jwks_file: "):
        TokenKeys(tmp_path / "jwks.json")


def test_a_device_that_lets_nobody_in_starts_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = TokenKeys(written(path, '{"keys": []}'))
    assert "nobody is let in" in caplog.text
    refusal(keys, SIGNER.sign("cam-1", "anna"))
    written(path, jwks(SIGNER))
    assert keys.claims(SIGNER.sign("cam-1", "anna"))


def test_a_private_key_is_refused_and_not_shown(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    with pytest.raises(ConfigInvalid, match="a private key") as caught:
        TokenKeys(written(path, json.dumps({"keys": [{**private, "kid": "one"}]})))
    assert private["d"] not in str(caught.value)
    assert private["d"] not in caplog.text


def test_keys_of_other_kinds_are_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = base64.urlsafe_b64encode(b"s3cret-of-an-hmac").decode()
    p384, ed448_key = ec.generate_private_key(ec.SECP384R1()), ed448.Ed448PrivateKey.generate()
    rsa_key = rsa.generate_private_key(65537, 2048)
    others: list[dict[str, Any]] = [
        {"kty": "oct", "k": secret, "kid": "a"},
        {**RSAAlgorithm.to_jwk(rsa_key.public_key(), as_dict=True), "kid": "b"},
        {**ECAlgorithm.to_jwk(p384.public_key(), as_dict=True), "kid": "c"},
        {**OKPAlgorithm.to_jwk(ed448_key.public_key(), as_dict=True), "kid": "d"},
        {**P256.jwk(), "kid": "e", "use": "enc"},
        {**P256.jwk(), "kid": "f", "alg": "ES384"},
        {**P256.jwk(), "kid": "g", "x": "AAAA"},
        {**P256.jwk(), "kid": None},
        {**P256.jwk(), "kid": "one"},
    ]
    keys = TokenKeys(written(path, json.dumps({"keys": [SIGNER.jwk(), *others]})))
    assert keys.claims(TOKEN)["sub"] == "anna"
    assert caplog.text.count("is left out") == len(others)
    assert secret not in caplog.text
    claims = {"sub": "anna"}
    refusal(keys, jwt.encode(claims, "s3cret-of-an-hmac" * 3, "HS256", {"kid": "a"}))
    refusal(keys, jwt.encode(claims, rsa_key, "RS256", {"kid": "b"}))
    refusal(keys, jwt.encode(claims, p384, "ES384", {"kid": "c"}))
    refusal(keys, jwt.encode(claims, ed448_key, "EdDSA", {"kid": "d"}))
    refusal(keys, jwt.encode(claims, P256._key, "ES256", {"kid": "one"}))
