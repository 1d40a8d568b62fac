"""Keys and signed tokens for a backend."""

from __future__ import annotations

import json
import os
import secrets
import time
from typing import TYPE_CHECKING

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
KEY_FILE, JWKS_FILE = "private.pem", "jwks.json"


class Signer:
    """Signs tokens with one private key, Ed25519 (EdDSA) or P-256 (ES256).

    `kid` names the key in the devices' JWKS file. The private key is a secret: it does not appear in `repr()`.
    """

    def __init__(self, key: PrivateKey, kid: str) -> None:
        self.kid = kid
        self._key = key
        self._algorithm = "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else "ES256"

    @classmethod
    def generate(cls, kid: str | None = None) -> Signer:
        """Make a signer with a new Ed25519 key."""
        return cls(ed25519.Ed25519PrivateKey.generate(), kid or f"key-{secrets.token_hex(4)}")

    @classmethod
    def read(cls, path: Path, kid: str | None = None) -> Signer:
        """Read the key from a PEM file. Without `kid`, it is taken from the JWKS file beside the PEM file.

        Raises: OSError. ValueError: the file has no supported key, or the JWKS file does not contain the key.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(f"{path} contains no private key in PEM format without a password") from None
        p256 = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
        if not p256 and not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ValueError(f"{path} contains neither an Ed25519 nor a P-256 key")
        assert isinstance(key, PrivateKey)
        return cls(key, kid or _kid_beside(path, key))

    def sign(
        self,
        device: str,
        subject: str,
        scopes: Iterable[str] = ("view",),
        *,
        client: str | None = None,
        ttl_s: float = 60,
        now_s: float | None = None,
    ) -> str:
        """Sign a token with a new `jti` for one viewer and device. `client`: the only reply client that may use it."""
        now_s = time.time() if now_s is None else now_s
        claims: dict[str, object] = {
            "aud": device,
            "sub": subject,
            "scope": " ".join(scopes),
            "iat": int(now_s),
            "exp": int(now_s + ttl_s),
            "jti": secrets.token_urlsafe(16),
        }
        if client is not None:
            claims["client"] = client
        return jwt.encode(claims, self._key, self._algorithm, {"kid": self.kid})

    def jwk(self) -> dict[str, object]:
        """The public key as an entry of a JWKS file."""
        return {**_public(self._key), "kid": self.kid, "use": "sig", "alg": self._algorithm}

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write the private key, readable by its owner only, and the JWKS file. Raises: OSError, also if one exists."""
        directory.mkdir(parents=True, exist_ok=True)
        key_file, jwks_file = directory / KEY_FILE, directory / JWKS_FILE
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        with jwks_file.open("x") as text:
            text.write(jwks(self))
        return key_file, jwks_file


def jwks(*signers: Signer) -> str:
    """The JWKS file for the devices, with the public keys of these signers."""
    return json.dumps({"keys": [signer.jwk() for signer in signers]}, indent=2) + "\n"


def _public(key: PrivateKey) -> dict[str, object]:
    public = key.public_key()
    if isinstance(public, ed25519.Ed25519PublicKey):
        return OKPAlgorithm.to_jwk(public, as_dict=True)
    return ECAlgorithm.to_jwk(public, as_dict=True)


def _kid_beside(path: Path, key: PrivateKey) -> str:
    beside = path.with_name(JWKS_FILE)
    try:
        listed = json.loads(beside.read_text())["keys"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = []
    for entry in listed:
        if isinstance(entry, dict) and _public(key).items() <= entry.items():
            return str(entry.get("kid"))
    raise ValueError(f"{beside} does not contain this key; name its kid with --kid")
