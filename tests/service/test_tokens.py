"""Tokens with real keys, and the file of public keys."""

from __future__ import annotations

import base64
import errno
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
from edge.signalling.tokens import TokenKeys, claimed_subject
from tests.rigs.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SIGNER = Signer.generate("one")
P256 = Signer(ec.generate_private_key(ec.SECP256R1()), "two")
TOKEN = SIGNER.sign("cam-1", "anna")


def written(path: Path, text: str) -> Path:
    """Replace the file as a whole, as a deployment does."""
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
def test_tokens_of_both_algorithms_are_verified(path: Path, signer: Signer) -> None:
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


def test_the_code_in_the_docs_signs_valid_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_token_with_an_unknown_or_missing_kid_or_a_wrong_key_is_refused(path: Path) -> None:
    keys = TokenKeys(path)
    assert "kid" in refusal(keys, Signer.generate("three").sign("cam-1", "anna"))
    stranger = Signer.generate("one").sign("cam-1", "anna")
    assert "signature" in refusal(keys, stranger)
    refusal(keys, P256.sign("cam-1", "anna").replace(".", "..", 1))
    private, claims = ec.generate_private_key(ec.SECP256R1()), {"sub": "anna"}
    refusal(keys, jwt.encode(claims, private, "ES256"))
    refusal(keys, jwt.encode(claims, private, "ES256", {"kid": "two"}))


def test_a_token_cannot_choose_its_algorithm_or_key(path: Path) -> None:
    keys = TokenKeys(path)
    claims = {"sub": "anna", "aud": "cam-1"}
    refusal(keys, jwt.encode(claims, "", "none", {"kid": "one"}))
    header, payload, signature = TOKEN.split(".")
    refusal(keys, f"{header}.{payload}.")
    for algorithm in ("HS256", "ES256", "Ed448", "none", "eddsa"):
        forged = {"alg": algorithm, "kid": "one", "typ": "JWT"}
        refusal(keys, f"{_part(forged)}.{payload}.{signature}")
    # The public key as an HMAC secret: a verifier that trusts the header would accept it.
    for secret in (path.read_bytes(), str(SIGNER.jwk()["x"]).encode(), _bytes(str(SIGNER.jwk()["x"]))):
        signed = f"{_part({'alg': 'HS256', 'kid': 'one'})}.{payload}"
        digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        refusal(keys, f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}")
    # A key that the token contains or refers to.
    own = Signer.generate("one")
    for extra in ({"jwk": own.jwk()}, {"jku": "https://evil.example/jwks.json"}, {"crit": ["x"], "x": 1}):
        refusal(keys, jwt.encode(claims, own._key, "EdDSA", {"kid": "one", **extra}))
    refusal(keys, jwt.encode(claims, SIGNER._key, "EdDSA", {"kid": "one", "crit": ["x"], "x": 1}))


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


@pytest.mark.parametrize("kid", [None, 7, ["one"], {"a": 1}, ""])
def test_an_invalid_kid_is_refused(path: Path, kid: object) -> None:
    _, payload, signature = TOKEN.split(".")
    refusal(TokenKeys(path), f"{_part({'alg': 'EdDSA', 'kid': kid})}.{payload}.{signature}")


def test_a_signed_payload_without_claims_is_refused(path: Path) -> None:
    keys = TokenKeys(path)
    for content in (b"7", b"[]", b"\xff", b"[" * 100_000):
        refusal(keys, jwt.PyJWS().encode(content, SIGNER._key, "EdDSA", {"kid": "one"}))


def test_any_other_text_is_refused(tmp_path: Path) -> None:
    keys = TokenKeys(written(tmp_path / "jwks.json", jwks(SIGNER)))

    @given(st.text() | st.lists(st.sampled_from([*TOKEN.split("."), "", "e30", "W10", "W1tb" * 9000])).map(".".join))
    def check(token: str) -> None:
        if token != TOKEN:
            refusal(keys, token)

    check()


def test_keys_are_rotated_and_revoked_at_run_time(path: Path) -> None:
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


def test_the_signature_of_a_repeated_token_is_checked_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, checked = TokenKeys(path), 0
    decode = jwt.PyJWS.decode

    def counted(*given: Any, **how: Any) -> Any:
        nonlocal checked
        checked += 1
        return decode(*given, **how)

    monkeypatch.setattr(jwt.PyJWS, "decode", counted)
    assert not keys.verified(TOKEN)
    first = keys.claims(TOKEN)
    assert keys.verified(TOKEN)
    assert keys.claims(TOKEN) == first
    assert checked == 1
    for place in range(len(TOKEN)):
        changed = f"{TOKEN[:place]}{'B' if TOKEN[place] == 'A' else 'A'}{TOKEN[place + 1 :]}"
        assert not keys.verified(changed)
        if place < len(TOKEN) - 1:  # the last character has bits that do not count
            refusal(keys, changed)
            assert not keys.verified(changed)
    for number in range(1000):
        keys.claims(SIGNER.sign("cam-1", f"viewer-{number}"))
        assert keys.claims(TOKEN), "a token in use is kept"
    assert not keys.verified("\ud800")
    assert len(keys._verified) == 256
    assert TOKEN not in repr(keys._verified)


def test_a_token_verified_before_is_refused_once_its_key_is_revoked(path: Path) -> None:
    keys = TokenKeys(path)
    assert keys.claims(TOKEN)
    written(path, jwks(P256))
    refusal(keys, TOKEN)
    assert not keys.verified(TOKEN)
    written(path, jwks(Signer.generate("one")))
    refusal(keys, TOKEN)


def test_a_key_file_that_is_changed_in_place_is_read_again(path: Path) -> None:
    keys = TokenKeys(path)
    same_size = Signer.generate("owt")
    path.write_text(jwks(SIGNER, same_size))
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    assert keys.claims(same_size.sign("cam-1", "anna"))


@pytest.mark.parametrize("damaged", ["", "{", '{"keys": 7}', "[]", '{"keys": [{"kty": "RSA"}]}', "x" * 70_000, None])
def test_an_invalid_key_file_keeps_the_old_keys_and_is_logged_once(
    path: Path, damaged: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = TokenKeys(path)
    path.unlink() if damaged is None else written(path, damaged)
    for _ in range(3):
        assert keys.claims(SIGNER.sign("cam-1", "anna"))
    assert caplog.text.count("public keys unreadable") == 1
    written(path, jwks(P256))
    assert keys.claims(P256.sign("cam-1", "anna"))
    refusal(keys, SIGNER.sign("cam-1", "anna"))


@pytest.mark.parametrize("content", [None, "", "{}", '{"keys": [7]}', "\xff\x00"])
def test_a_missing_or_invalid_key_file_at_the_start_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)
    with pytest.raises(ConfigInvalid, match=r"auth\.jwks_file: "):
        TokenKeys(tmp_path / "jwks.json")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_revocation_that_could_not_be_read_is_read_again(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = TokenKeys(path)
    written(path, jwks(P256))

    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("edge.signalling.tokens.read_file", fail)
        for _ in range(3):
            assert keys.claims(TOKEN), "the old keys stay in force"
    assert caplog.text.count("public keys unreadable") == 1
    refusal(keys, TOKEN)
    assert keys.claims(P256.sign("cam-1", "anna"))


def test_an_empty_key_list_is_logged_and_refuses_every_token(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = TokenKeys(written(path, '{"keys": []}'))
    assert "every command is refused" in caplog.text
    refusal(keys, SIGNER.sign("cam-1", "anna"))
    written(path, jwks(SIGNER))
    assert keys.claims(SIGNER.sign("cam-1", "anna"))


def test_a_private_key_is_refused_and_not_shown(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    private = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    with pytest.raises(ConfigInvalid, match="a private key") as caught:
        TokenKeys(written(path, json.dumps({"keys": [{**private, "kid": "one"}]})))
    assert private["d"] not in str(caught.value)
    assert private["d"] not in caplog.text


def test_keys_of_other_types_are_ignored(path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    assert caplog.text.count("public key ignored") == len(others)
    assert secret not in caplog.text
    claims = {"sub": "anna"}
    refusal(keys, jwt.encode(claims, "s3cret-of-an-hmac" * 3, "HS256", {"kid": "a"}))
    refusal(keys, jwt.encode(claims, rsa_key, "RS256", {"kid": "b"}))
    refusal(keys, jwt.encode(claims, p384, "ES384", {"kid": "c"}))
    refusal(keys, jwt.encode(claims, ed448_key, "EdDSA", {"kid": "d"}))
    refusal(keys, jwt.encode(claims, P256._key, "ES256", {"kid": "one"}))


def test_the_subject_that_a_token_claims_is_read_without_a_check() -> None:
    assert claimed_subject(TOKEN) == "anna"
    assert claimed_subject(TOKEN.rpartition(".")[0] + ".AAAA") == "anna"
    assert claimed_subject(jwt.encode({"sub": "jörg"}, "x" * 32)) == "jörg"
    for wrong in ("", ".", "..", "a.b.c", "a.W10.c", "a.eyJzdWIiOjF9.c", f"a.{'W' * 20000}.c"):
        assert claimed_subject(wrong) is None


@given(st.text(max_size=60))
def test_any_text_claims_a_subject_or_none(text: str) -> None:
    for token in (text, f"a.{text}.c", f"a.{base64.urlsafe_b64encode(text.encode(errors='replace')).decode()}.c"):
        assert isinstance(claimed_subject(token), str | None)


def test_headers_are_parsed_once_and_only_some_are_kept(path: Path) -> None:
    keys = TokenKeys(path)
    for number in range(100):
        refusal(keys, jwt.encode({"sub": "x"}, "x" * 32, headers={"kid": f"k{number}"}))
    assert keys.claims(TOKEN)
    assert len(keys._kids) <= 16
