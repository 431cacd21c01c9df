"""TLS towards participants: what holds for all of them, and a file on what is different for some.

The file is TOML: a table for each endpoint, named `host:port`, `host`, `*.domain` (with or without a port)
or `*`. Of the tables that fit a participant the most exact one holds, alone:

    ["orders.internal:9443"]
    ca_file = "orders-ca.pem"
    cert_file = "txcoord.pem"
    key_file = "txcoord.key"

Paths are relative to the file. Everything is read at start, so that what is wrong is met there.
"""

from __future__ import annotations

import re
import ssl
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path

import msgspec
from msgspec import Struct

from txcoord.dispatch.settings import DispatchSettings

_NAME = re.compile(r"(?P<host>\*|(\*\.)?[0-9a-z._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?")


class EndpointTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file; empty means as for all participants."""

    ca_file: str = ""
    """PEM file of the authorities to trust."""
    cert_file: str = ""
    """PEM file of the certificate that the coordinator shows, with those that lead to its authority."""
    key_file: str = ""
    """PEM file of its key; empty: it is in `cert_file`."""
    server_name: str = ""
    """The name to ask for, and to find in the participant's certificate, where it is not its host."""
    verify: bool = True
    tls: bool = False
    """Whether to speak TLS over gRPC, whose URLs do not say so. (Over HTTP it is https that says it.)"""


class ClientTls:
    """How to speak TLS to an endpoint: one value for each table, shared by its endpoints.

    Raises:
        OSError: on construction; a file cannot be read.
    """

    def __init__(self, table: EndpointTls, context: ssl.SSLContext) -> None:
        self.table = table
        self.context = context
        self.server_name = table.server_name
        self.grpc_roots: bytes | None = None
        """The authorities as gRPC wants them; None: those it brings along."""
        self.grpc_certificate: tuple[bytes | None, bytes | None] = (None, None)
        """Key and certificate as gRPC wants them."""
        if table.tls:
            # Not with the first call: a file that is gone or half written by then would fail it, and each after it.
            roots = table.ca_file or ssl.get_default_verify_paths().cafile
            self.grpc_roots = Path(roots).read_bytes() if roots else None
            if table.cert_file:
                key = Path(table.key_file or table.cert_file).read_bytes()
                self.grpc_certificate = key, Path(table.cert_file).read_bytes()


class ParticipantTls:
    """Says how to speak TLS to each participant.

    Raises:
        ValueError: on construction; a file cannot be read, or says what cannot be done. The sentence names it.
    """

    def __init__(self, settings: DispatchSettings) -> None:
        self._general_table = EndpointTls(ca_file=settings.tls_ca_file, verify=settings.tls_verify)
        # Those of the system take long to read: not before somebody is called who needs them.
        self._general = self._make(self._general_table) if settings.tls_ca_file else None
        self._by_name = {
            name: self._make(_completed(table, settings))
            for name, table in _read(settings.participant_tls_file).items()
        }

    def of(self, host: str, port: int) -> ClientTls:
        """How to speak to an endpoint over https."""
        own = self._own(host, port)
        if own is not None:
            return own
        if self._general is None:
            self._general = self._make(self._general_table)
        return self._general

    def of_grpc(self, host: str, port: int) -> ClientTls | None:
        """How to speak to an endpoint over gRPC; None: without TLS."""
        own = self._own(host, port)
        return own if own is not None and own.table.tls else None

    def _own(self, host: str, port: int) -> ClientTls | None:
        if not self._by_name:
            return None
        shown = _canonical(host)
        labels = shown.split(".")
        names = [shown, *(f"*.{'.'.join(labels[index:])}" for index in range(1, len(labels))), "*"]
        for name in names:
            for own in (self._by_name.get(f"{name}:{port}"), self._by_name.get(name)):
                if own is not None:
                    return own
        return None

    @staticmethod
    def _make(table: EndpointTls) -> ClientTls:
        return ClientTls(table, _context(table))


def _read(file: str) -> Mapping[str, EndpointTls]:
    """Return the tables of the file with absolute paths, by their names in lower case."""
    if not file:
        return {}
    path = Path(file)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = msgspec.convert(raw, dict[str, EndpointTls])
    except (OSError, ValueError) as error:
        raise ValueError(f"the file {file} (participant_tls_file) cannot be read: {error}") from error
    for name, table in tables.items():
        if fault := _fault(name.lower(), table):
            raise ValueError(f"the file {file} (participant_tls_file), table {name!r}: {fault}")
    folder = path.absolute().parent
    return {_canonical_name(name): _with_paths_below(folder, table) for name, table in tables.items()}


def _canonical(host: str) -> str:
    """Write a host in one way, however a URL or a table writes it: a table missed is TLS left out, over gRPC."""
    host = host.lower().removesuffix(".")
    if ":" not in host:
        return host
    with suppress(ValueError):
        host = str(IPv6Address(host.strip("[]")))
    return f"[{host.strip('[]')}]"


def _canonical_name(name: str) -> str:
    match = _NAME.fullmatch(name.lower())
    assert match is not None, "checked before"
    return _canonical(match["host"]) + (match["port"] or "")


def _fault(name: str, table: EndpointTls) -> str:
    if not _NAME.fullmatch(name):
        return "its name must be of the form host:port, host, *.domain or *"
    if table.key_file and not table.cert_file:
        return "key_file is of no use without cert_file"
    if table.tls and not table.verify:
        return (
            "verify = false is not possible over gRPC (tls = true): name the participant's certificate as ca_file,"
            " and the name in it as server_name"
        )
    return ""


def _with_paths_below(folder: Path, table: EndpointTls) -> EndpointTls:
    files = {
        field: str(folder / getattr(table, field))
        for field in ("ca_file", "cert_file", "key_file")
        if getattr(table, field)
    }
    return msgspec.structs.replace(table, **files)


def _completed(table: EndpointTls, settings: DispatchSettings) -> EndpointTls:
    return table if table.ca_file else msgspec.structs.replace(table, ca_file=settings.tls_ca_file)


def _context(table: EndpointTls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=table.ca_file or None)
    except OSError as error:
        raise ValueError(f"the certificate authorities in {table.ca_file} cannot be read: {error}") from error
    if table.cert_file:
        try:
            # A password is never asked for: nobody sits there at start.
            context.load_cert_chain(table.cert_file, table.key_file or None, password="")
        except OSError as error:
            raise ValueError(
                f"the certificate in {table.cert_file} with the key in {table.key_file or table.cert_file}"
                f" cannot be used: {error}"
            ) from error
    context.set_alpn_protocols(["http/1.1"])
    if not table.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
