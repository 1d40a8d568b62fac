"""Checks the files that the settings of the broker link name."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from edge.files import read_file
from edge.mqtt.device_certificate import directory_fault
from edge.mqtt.settings import credentials_directory

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from edge.mqtt.settings import MqttSettings


class FileCheck:
    """Checks every file of the link. Blocking.

    `warnings`: files that keep the daemon from connecting, and files that cannot be checked here. The daemon starts all
    the same, because the local page works without a broker. An expired certificate is not among them, since the clock
    may be wrong. `faults`: an unsafe directory for the device's own key (`mqtt.claim`). `new_directory`: the directory
    that the device makes for that key.
    """

    def __init__(self, mqtt: MqttSettings) -> None:
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.new_directory: Path | None = None
        if mqtt.ca_file is not None:
            self._authorities(mqtt.ca_file)
        if mqtt.password_file is not None:
            self._password(mqtt.password_file)
        if mqtt.claim is None:
            self._pair("mqtt", mqtt.cert_file, mqtt.key_file)
        elif not self._exists("mqtt.cert_file", mqtt.cert_file) or not self._exists("mqtt.key_file", mqtt.key_file):
            self._pair("mqtt.claim", mqtt.claim.cert_file, mqtt.claim.key_file)
            if mqtt.key_file is not None:
                self._own_directory(mqtt.key_file.parent)

    def _authorities(self, path: Path) -> None:
        if self._read("mqtt.ca_file", path) is None:
            return
        try:
            ssl.create_default_context(cafile=str(path))
        except ssl.SSLError:
            self.warnings.append(f"mqtt.ca_file: {path}: not a certificate in PEM")

    def _password(self, path: Path) -> None:
        if (content := self._read("mqtt.password_file", path)) is None:
            return
        try:
            content.decode()
        except UnicodeDecodeError:
            self.warnings.append(f"mqtt.password_file: {path}: not text in UTF-8")

    def _pair(self, section: str, cert_file: Path | None, key_file: Path | None) -> None:
        if cert_file is None or key_file is None:
            return
        certificate = self._certificate(f"{section}.cert_file", cert_file)
        key = self._key(f"{section}.key_file", key_file)
        if certificate is not None and key is not None and _public_bytes(certificate) != _public_bytes(key):
            self.warnings.append(f"{section}.key_file: {key_file}: does not belong to the certificate {cert_file}")

    def _own_directory(self, directory: Path) -> None:
        try:
            if not directory.exists():
                self.new_directory = directory
                return
            fault = directory_fault(directory)
        except OSError as exc:
            fault = exc.strerror
        if fault is not None:
            self.faults.append(f"mqtt.key_file: {directory}: {fault}")

    def _certificate(self, key: str, path: Path) -> x509.Certificate | None:
        if (pem := self._read(key, path)) is None:
            return None
        try:
            certificate = x509.load_pem_x509_certificates(pem)[0]
            certificate.public_key()
        except (ValueError, UnsupportedAlgorithm):
            self.warnings.append(f"{key}: {path}: not a certificate in PEM")
            return None
        return certificate

    def _key(self, key: str, path: Path) -> PrivateKeyTypes | None:
        if (pem := self._read(key, path)) is None:
            return None
        try:
            return serialization.load_pem_private_key(pem, None)
        except TypeError:
            self.warnings.append(
                f"{key}: {path}: the private key is encrypted; the daemon needs one without a password"
            )
        except (ValueError, UnsupportedAlgorithm):
            self.warnings.append(f"{key}: {path}: not a private key in PEM")
        return None

    def _exists(self, key: str, path: Path | None) -> bool:
        """True also where it cannot be known."""
        try:
            return path is not None and path.exists()
        except OSError as exc:
            self._unreadable(key, exc, path)
            return True

    def _read(self, key: str, path: Path) -> bytes | None:
        try:
            return read_file(path)
        except OSError as exc:
            self._unreadable(key, exc, path)
            return None

    def _unreadable(self, key: str, exc: OSError, path: Path | None) -> None:
        said = f"{key}: {path}: {exc.strerror}"
        if path is not None and path.parent == credentials_directory() and not _credentials_are_here():
            said += " (only root can check a credential, on the device)"
        self.warnings.append(said)


def _credentials_are_here() -> bool:
    """Whether this process sees the credentials as the service does."""
    directory = credentials_directory()
    return "CREDENTIALS_DIRECTORY" in os.environ or os.access(directory, os.R_OK | os.X_OK)


def _public_bytes(owner: x509.Certificate | PrivateKeyTypes) -> bytes:
    return owner.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
