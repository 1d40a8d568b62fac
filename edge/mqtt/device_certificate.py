"""The device's own key and certificate on disk: made here, replaced as a whole, readable by the daemon alone."""

from __future__ import annotations

import errno
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
_ROOM_BYTES = 8 * 1024


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
        try:
            if not self._both_there():
                self._make_directory()
        except OSError as exc:
            raise ConfigInvalid([f"mqtt.key_file: {self._key_file.parent}: {exc.strerror}"]) from exc

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key that was made before, or else a new one. Raises: BrokerLost: it cannot be read or kept."""
        try:
            # Both may have been there at the start, and so nobody looked.
            self._make_directory()
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

    def try_room(self) -> None:
        """Raises: BrokerLost: there is no room for a certificate, or no writing."""
        try:
            _write(self._cert_file, bytes(_ROOM_BYTES)).unlink()
        except OSError as exc:
            raise _told(exc, self._cert_file) from exc

    def keep(self, certificates: list[x509.Certificate]) -> None:
        """Raises: BrokerLost: they cannot be kept."""
        pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)
        try:
            _replace(self._cert_file, pem)
        except OSError as exc:
            raise _told(exc, self._cert_file) from exc

    def _both_there(self) -> bool:
        return self._cert_file.exists() and self._key_file.exists()

    def _make_directory(self) -> None:
        """Unless it is there. Raises: OSError: it cannot be made, or is not the daemon's alone."""
        directory = self._key_file.parent
        if not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
            _sync(directory.parent)
        if directory.stat().st_mode & _OTHERS or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            said = "the directory must be the daemon's own, mode 700, and writable; one that is not there is made"
            raise OSError(errno.EACCES, said, str(directory))


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
    _write(path, content).replace(path)
    _sync(path.parent)


def _write(path: Path, content: bytes) -> Path:
    """The file beside `path` that holds it, on disk."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return fresh


def _sync(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _told(exc: OSError, path: Path) -> BrokerLost:
    return BrokerLost(f"{exc.filename or path}: {exc.strerror or exc}")
