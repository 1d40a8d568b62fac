"""The device's own key and certificate on the disk, readable by the daemon alone."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.errors import BrokerLost, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_ROOM_BYTES = 8 * 1024


class AtomicFile(Protocol):
    """A file that is replaced as a whole. Blocking. Raises: OSError."""

    def replace(self, content: bytes) -> None:
        """Replace the content. It is on the disk when this returns."""

    def try_room(self, size_bytes: int) -> None:
        """Check that so much could be written, without a change."""


class OwnFiles:
    """The certificate and the key, in a directory of the daemon's own. All calls block.

    The key is stored before a certificate is requested, and the certificate only once it is valid. So a device with
    both files is complete, and an interrupted one continues with its key.
    """

    def __init__(self, cert_file: Path, key_file: Path, atomic_file: Callable[[Path], AtomicFile]) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._certificate = atomic_file(cert_file)
        self._key = atomic_file(key_file)

    @property
    def complete(self) -> bool:
        """Raises: BrokerLost: the directory is not accessible."""
        try:
            return self._both_exist()
        except OSError as exc:
            raise _broker_lost(exc, self._cert_file) from exc

    def prepare(self) -> None:
        """Make the directory, unless both files exist.

        Raises: ConfigInvalid: the directory cannot be made or written, or other users can read it.
        """
        try:
            if not self._both_exist():
                self._make_directory()
        except OSError as exc:
            raise ConfigInvalid([f"mqtt.key_file: {self._key_file.parent}: {exc.strerror}"]) from exc

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The stored key, or else a new one. Raises: BrokerLost: it cannot be read or stored."""
        try:
            # `prepare` does not check the directory if both files exist, and they may be gone by now.
            self._make_directory()
            if not self._key_file.exists():
                # A certificate for a lost key would look like the new key's.
                self._cert_file.unlink(missing_ok=True)
                self._key.replace(_pem_of(ec.generate_private_key(ec.SECP256R1())))
            pem = self._key_file.read_bytes()
        except OSError as exc:
            raise _broker_lost(exc, self._key_file) from exc
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BrokerLost(
                f"{self._key_file} does not contain a key that this daemon makes; remove it to get a new one"
            )
        return key

    def try_room(self) -> None:
        """Check that a certificate could be stored. Raises: BrokerLost: it could not."""
        try:
            self._certificate.try_room(_ROOM_BYTES)
        except OSError as exc:
            raise _broker_lost(exc, self._cert_file) from exc

    def store(self, certificates: list[x509.Certificate]) -> None:
        """Store the certificate and its chain. Raises: BrokerLost: they cannot be stored."""
        try:
            self._certificate.replace(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates))
        except OSError as exc:
            raise _broker_lost(exc, self._cert_file) from exc

    def _both_exist(self) -> bool:
        return self._cert_file.exists() and self._key_file.exists()

    def _make_directory(self) -> None:
        """Raises: OSError: the directory cannot be made or written, or other users can read it."""
        directory = self._key_file.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (fault := directory_fault(directory)) is not None:
            raise OSError(errno.EACCES, fault, str(directory))


def directory_fault(directory: Path) -> str | None:
    """Why an existing directory cannot hold the key; None: it can. Raises: OSError: it is not accessible."""
    if directory.stat().st_mode & _OTHERS or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return "the directory must belong to the daemon's user with mode 700 and be writable; a missing one is created"
    return None


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate signing request in PEM. It contains the public key only."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _broker_lost(exc: OSError, path: Path) -> BrokerLost:
    return BrokerLost(f"{exc.filename or path}: {exc.strerror or exc}")
