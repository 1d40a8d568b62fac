"""Verifies the signatures of tokens with the backend's public keys."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from edge.contract.codes import Code
from edge.errors import ConfigInvalid, Rejected
from edge.files import read_file

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_ALGORITHMS = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}
_FILE_LIMIT_BYTES = 64 * 1024
_HEADERS = 16
_VERIFIED = 256


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key and its only algorithm: a token cannot choose the algorithm."""

    algorithm: str
    public: Any


def claimed_subject(token: str) -> str | None:
    """The subject that a token claims. Nothing is verified."""
    try:
        payload = token.split(".", 2)[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return None
    subject = claims.get("sub") if isinstance(claims, dict) else None
    return subject if isinstance(subject, str) else None


class TokenKeys:
    """The public keys in a JWKS file (RFC 7517), by `kid`. The file is read again when it changes.

    Only Ed25519 and P-256 keys are used. If the file disappears or becomes invalid, the keys stay in force: to revoke
    a key, write a file without it. A read error is retried with the next token.

    The claims of the latest `_VERIFIED` tokens with a valid signature are kept until the keys change, because a client
    repeats the token of its session. Entries do not expire: a token serves its session beyond `exp`, and whoever uses
    the claims checks them each time.

    Raises: ConfigInvalid: the file is missing or invalid at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kids: dict[str, object] = {}
        self._logged: str | None = None
        # By digest of the whole token: the memory contains no token, and a forged signature finds nothing. The claims
        # are kept as JSON, because the objects of a large document take twenty times its size.
        self._verified: OrderedDict[bytes, bytes] = OrderedDict()
        self._signatures = jwt.PyJWS(algorithms=list(_ALGORITHMS.values()))
        try:
            self._seen: tuple[int, ...] | None = self._fingerprint()
            self._keys = self._read()
        except (OSError, ValueError) as exc:
            raise ConfigInvalid([f"auth.jwks_file: {path}: {_cause(exc)}"]) from None
        if not self._keys:
            log.warning("no usable public key, every command is refused file=%s", path)

    @property
    def empty(self) -> bool:
        """Whether there is no usable key, so that every token is rejected."""
        return not self._keys

    def verified(self, token: str) -> bool:
        """Whether the signature of this token was checked before, so that `claims` is cheap."""
        return _digest(token) in self._verified

    def claims(self, token: str) -> dict[str, Any]:
        """Verify the signature of a token and return its claims, which are not checked.

        Raises: Rejected: `unauthorized`; the message repeats nothing of the token.
        """
        self._refresh()
        digest = _digest(token)
        payload = self._verified.get(digest)
        if payload is not None:
            self._verified.move_to_end(digest)
            return _claims(payload)
        payload = self._verify(token)
        claims = _claims(payload)
        self._verified[digest] = payload
        if len(self._verified) > _VERIFIED:
            self._verified.popitem(last=False)
        return claims

    def _verify(self, token: str) -> bytes:
        """Returns: the payload."""
        try:
            kid = self._kid(token)
            if kid is None:
                raise Rejected(Code.UNAUTHORIZED, "the token's header has no kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise Rejected(Code.UNAUTHORIZED, "this device has no key with the token's kid")
            payload: bytes = self._signatures.decode(token, key.public, algorithms=[key.algorithm])
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Rejected(Code.UNAUTHORIZED, "the token's signature does not match the backend's key") from None
        return payload

    def _kid(self, token: str) -> object:
        """Read the key's name from the header. All tokens of a backend have the same header, so it is parsed once."""
        header = token.partition(".")[0]
        if header not in self._kids:
            if len(self._kids) >= _HEADERS:
                self._kids.clear()
            self._kids[header] = self._signatures.get_unverified_header(f"{header}..").get("kid")
        return self._kids[header]

    def _fingerprint(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _refresh(self) -> None:
        try:
            fingerprint = self._fingerprint()
        except OSError:
            fingerprint = None  # reading it logs the reason, once
        if fingerprint == self._seen:
            return
        try:
            self._keys = self._read()
            self._verified.clear()
        except (OSError, ValueError) as exc:
            cause = _cause(exc)
            # EMFILE and EIO pass: the same file is read again, else a revoked key would stay in force.
            self._seen = fingerprint if isinstance(exc, ValueError) else None
            if isinstance(exc, ValueError) or cause != self._logged:
                log.error("public keys unreadable, keeping the old ones file=%s error=%s", self._path, cause)
            self._logged = cause
        else:
            self._seen, self._logged = fingerprint, None
            log.info("public keys loaded again file=%s count=%d", self._path, len(self._keys))

    def _read(self) -> dict[str, _Key]:
        text = read_file(self._path, _FILE_LIMIT_BYTES)
        try:
            listed = json.loads(text)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            listed = None
        if not isinstance(listed, list):
            # The parser's message may reveal the contents of the file.
            raise ValueError("it is not a JSON document with a list of keys")  # noqa: TRY004  the file is at fault
        keys = {}
        for number, entry in enumerate(listed, 1):
            kid, key = _key(entry)
            if key is None or kid is None or kid in keys:
                log.warning(
                    "public key ignored, not Ed25519 or P-256 with its own kid file=%s number=%d", self._path, number
                )
            else:
                keys[kid] = key
        if listed and not keys:
            raise ValueError("it contains no Ed25519 or P-256 key with a kid")
        return keys


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise Rejected(Code.UNAUTHORIZED, "the token has no claims")
    return claims


def _digest(token: str) -> bytes:
    # JSON may contain half a surrogate pair, which has no UTF-8.
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _key(entry: object) -> tuple[str | None, _Key | None]:
    if not isinstance(entry, dict):
        return None, None
    if "d" in entry:
        raise ValueError("it contains a private key; the device needs public keys only")
    algorithm = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv"))))
    kid = entry.get("kid")
    if algorithm is None or not isinstance(kid, str):
        return None, None
    if entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
        return kid, None
    try:
        return kid, _Key(algorithm, jwt.PyJWK(entry, algorithm).key)
    except (jwt.PyJWTError, ValueError, TypeError):
        return kid, None


def _cause(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
