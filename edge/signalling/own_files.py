"""The device's own key and certificate on disk: made here, replaced as a whole, readable by the daemon alone."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.errors import BrokerLost, ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class OwnFiles:
    """Two files in a directory of the daemon's own. All blocking.

    The key is there before anything is asked for, the certificate only once it is good: a device that has both has
    all, and one that was interrupted goes on with its key.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._cert_file = cert_file
        self._key_file = key_file

    @property
    def complete(self) -> bool:
        """Raises: BrokerLost: the directory cannot be looked into."""
        try:
            return self._both_there()
        except OSError as exc:
            raise _told(exc, self._cert_file) from exc

    def prepare(self) -> None:
        """Make the directory, unless all is there.

        Raises: ConfigInvalid: nothing can be kept in it, or not for the daemon alone.
        """
        directory = self._key_file.parent
        try:
            if self._both_there():
                return
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True)
                _sync(directory.parent)
            mode = directory.stat().st_mode
        except OSError as exc:
            raise ConfigInvalid([f"mqtt.key_file: {directory}: {exc.strerror}"]) from exc
        if mode & _OTHERS or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            said = "must be the daemon's own, mode 700; one that is not there is made"
            raise ConfigInvalid([f"mqtt.key_file: the directory {directory} {said}"])

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key that was made before, or else a new one. Raises: BrokerLost: it cannot be read or kept."""
        try:
            if not self._key_file.exists():
                # A certificate of a key that is gone would look like the new key's.
                self._cert_file.unlink(missing_ok=True)
                _replace(self._key_file, _pem_of(ec.generate_private_key(ec.SECP256R1())))
            pem = self._key_file.read_bytes()
        except OSError as exc:
            raise _told(exc, self._key_file) from exc
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BrokerLost(f"{self._key_file} holds no key that a device makes: remove it for a new one")
        return key

    def keep(self, certificates: list[x509.Certificate]) -> None:
        """Raises: BrokerLost: they cannot be kept."""
        pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)
        try:
            _replace(self._cert_file, pem)
        except OSError as exc:
            raise _told(exc, self._cert_file) from exc

    def _both_there(self) -> bool:
        return self._cert_file.exists() and self._key_file.exists()


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """The request for a certificate, in PEM; it holds the public key alone."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _replace(path: Path, content: bytes) -> None:
    """As a whole, and over a power cut."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _told(exc: OSError, path: Path) -> BrokerLost:
    return BrokerLost(f"{exc.filename or path}: {exc.strerror or exc}")
