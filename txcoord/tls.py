"""The certificates by which the coordinator's own servers show who they are, and know their clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from txcoord.settings.table import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """One certificate for both servers. Read once: a renewed one counts from the next start."""

    context: ssl.SSLContext
    """Of the HTTP server."""
    credentials: grpc.ServerCredentials
    """Of the gRPC server."""


def load_tls(settings: Settings) -> Tls | None:
    """Read what the settings name; None: the servers speak plainly.

    Raises:
        ValueError: a file cannot be read or used; the sentence names it and its setting.
    """
    if not settings.tls_cert_file:
        return None
    certificate = _read("tls_cert_file", settings.tls_cert_file)
    key = _read("tls_key_file", settings.tls_key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file, password=_no_password)
    except ssl.SSLError as error:
        raise ValueError(_fault(settings, error)) from error
    authorities = None
    if settings.tls_client_ca_file:
        authorities = _read("tls_client_ca_file", settings.tls_client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.tls_client_ca_file)
        except ssl.SSLError as error:
            raise ValueError(
                f"the file {settings.tls_client_ca_file} (tls_client_ca_file) has no certificates in PEM form"
            ) from error
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authorities, require_client_auth=authorities is not None
    )
    return Tls(context=context, credentials=credentials)


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"the file {path} ({setting}) cannot be read: {error.strerror}") from error


def _no_password() -> NoReturn:
    # Otherwise it would be asked for on the terminal, and a service would hang.
    raise ValueError(
        "the private key (tls_key_file) is encrypted: give one without a password, readable by txcoord only"
    )


def _fault(settings: Settings, error: ssl.SSLError) -> str:
    certificate = f"{settings.tls_cert_file} (tls_cert_file)"
    key = f"{settings.tls_key_file} (tls_key_file)"
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key {key} does not belong to the certificate {certificate}"
    return f"the certificate {certificate} and the private key {key} cannot be used: both must be in PEM form"
