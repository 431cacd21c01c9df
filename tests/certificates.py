"""Certificates made on the spot, for tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert_file: Path
    key_file: Path


class Authority:
    """An authority of its own, and the certificates it signs."""

    def __init__(self, folder: Path, name: str, key: _Key, certificate: x509.Certificate) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate
        self.ca_file = folder / f"{name}.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @classmethod
    def make(cls, folder: Path, name: str = "authority") -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(folder, name, key, builder.sign(key, hashes.SHA256()))

    def sign(self, name: str, *, host: str = "") -> Certificate:
        """Make a certificate for 127.0.0.1, or for a host name."""
        key = ec.generate_private_key(ec.SECP256R1())
        whom: x509.GeneralName = x509.DNSName(host) if host else x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        issuer = self._certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        builder = _builder(name, str(issuer), key).add_extension(x509.SubjectAlternativeName([whom]), critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        found = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        found.cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        found.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return found

    def server_context(self, shown: Certificate, *, wants_client: bool = False) -> ssl.SSLContext:
        """For an HTTP server that shows a certificate, and wants one of this authority from its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown.cert_file, shown.key_file)
        if wants_client:
            context.load_verify_locations(self.ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def server_credentials(self, shown: Certificate, *, wants_client: bool = False) -> grpc.ServerCredentials:
        """The same for a gRPC server."""
        pair = (shown.key_file.read_bytes(), shown.cert_file.read_bytes())
        roots = self.ca_file.read_bytes() if wants_client else None
        return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=wants_client)


def _builder(name: str, issuer: str, key: _Key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
