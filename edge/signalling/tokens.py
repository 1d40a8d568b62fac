"""The signatures of tokens, checked by the backend's public keys."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from edge.contract.codes import Code
from edge.errors import ConfigInvalid, Rejected

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

_ALGORITHMS = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}
_FILE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, with the one algorithm that it is used with: no token chooses how it is checked."""

    algorithm: str
    public: Any


class TokenKeys:
    """The public keys in a JWKS file (RFC 7517), by `kid`; the file is read again when it changes.

    Keys of other kinds than Ed25519 and P-256 are left out. A file that is gone or spoilt leaves the keys as they
    were: a key is withdrawn by a file without it.

    Raises: ConfigInvalid: there is no such file to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signatures = jwt.PyJWS(algorithms=list(_ALGORITHMS.values()))
        try:
            self._stamp: tuple[int, ...] | None = self._look()
            self._keys = self._read()
        except (OSError, ValueError) as exc:
            raise ConfigInvalid([f"auth.jwks_file: {path}: {_told(exc)}"]) from None
        if not self._keys:
            log.warning("%s has no key: nobody is let in", path)

    def claims(self, token: str) -> dict[str, Any]:
        """What a token says, once its signature is found good; nothing of that is looked at.

        Raises: Rejected: `unauthorized`; the message repeats nothing of the token.
        """
        self._refresh()
        try:
            kid = self._signatures.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise Rejected(Code.UNAUTHORIZED, "this device has no key of the token's kid")
            claims = json.loads(self._signatures.decode(token, key.public, algorithms=[key.algorithm]))
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Rejected(Code.UNAUTHORIZED, "the token is not signed by the backend's key") from None
        if not isinstance(claims, dict):
            raise Rejected(Code.UNAUTHORIZED, "the token holds no claims")
        return claims

    def _look(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _refresh(self) -> None:
        try:
            stamp = self._look()
        except OSError:
            stamp = None  # reading says why, once
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except (OSError, ValueError) as exc:
            log.error("%s: %s: the keys stay as they were", self._path, _told(exc))  # noqa: TRY400
        else:
            log.info("%s was read again: %d keys", self._path, len(self._keys))

    def _read(self) -> dict[str, _Key]:
        with self._path.open("rb") as file:
            text = file.read(_FILE_LIMIT_BYTES + 1)
        if len(text) > _FILE_LIMIT_BYTES:
            raise ValueError(f"more than {_FILE_LIMIT_BYTES} bytes")
        try:
            listed = json.loads(text)["keys"]
        except (ValueError, KeyError, TypeError, RecursionError):
            listed = None
        if not isinstance(listed, list):
            # Not the parser's words: they may show what the file holds.
            raise ValueError("it is no JSON with a list of keys")  # noqa: TRY004  the file is at fault
        keys = {}
        for number, entry in enumerate(listed, 1):
            kid, key = _key(entry)
            if key is None or kid is None or kid in keys:
                log.warning("%s: key %d is left out: no Ed25519 or P-256 key with a kid of its own", self._path, number)
            else:
                keys[kid] = key
        if listed and not keys:
            raise ValueError("no Ed25519 or P-256 key with a kid in it")
        return keys


def _key(entry: object) -> tuple[str | None, _Key | None]:
    if not isinstance(entry, dict):
        return None, None
    if "d" in entry:
        raise ValueError("a private key is in it: the device needs only public ones")
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


def _told(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
