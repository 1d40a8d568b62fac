"""A small certificate authority for brokers with client certificates."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes


class Authority:
    """Issues certificates for localhost and an address into a directory. `ca_file`: the CA certificate."""

    def __init__(self, directory: Path, name: str = "test-ca", address: str = "127.0.0.1") -> None:
        self._directory = directory
        self._address = ipaddress.ip_address(address)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._build(
            self._name, self._key.public_key(), timedelta(days=-1), timedelta(days=1), ca=True
        )
        self.ca_file = directory / f"{name}.pem"
        self.ca_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, *, since: timedelta = timedelta(days=-1), until: timedelta = timedelta(days=1)
    ) -> tuple[Path, Path]:
        """Issue a certificate and its key. `since` and `until` are relative to now. Returns: the two files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(subject, key.public_key(), since, until, ca=False)
        cert_file, key_file = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return cert_file, key_file

    def sign(self, request: x509.CertificateSigningRequest) -> str:
        """Issue the requested certificate. Returns: PEM."""
        key = request.public_key()
        certificate = self._build(request.subject, key, timedelta(days=-1), timedelta(days=1), ca=False)
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self) -> ssl.SSLContext:
        """A TLS context for a server on 127.0.0.1 that requires client certificates of this authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.ca_file))
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # these certificates lack some extensions
        context.load_cert_chain(*self.issue("server"))
        return context

    def _build(
        self, subject: x509.Name, key: CertificatePublicKeyTypes, since: timedelta, until: timedelta, *, ca: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(self._address)]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
