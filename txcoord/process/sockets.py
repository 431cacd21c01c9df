"""The ports of a coordinator: bound by one process, or held for several that share them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from txcoord.process.start import StartError
from txcoord.settings.table import Settings

Address = tuple[str, int]
"""An IP address and a port."""


def bind(host: str, port: int, *, shared: bool = False, flag: str = "--port") -> socket.socket:
    """Bind a socket; with `shared` several processes may, and the kernel spreads connections.

    Raises:
        StartError: the address is in use, or not ours.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(
            f"host {host} cannot be resolved: {error.strerror or error}; choose another with --host"
        ) from error
    # "localhost" is both; most clients try IPv4, and all of them do so in the end.
    family, kind, protocol, _, address = min(addresses, key=lambda found: found[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        cure = "stop what uses it, or choose" if error.errno == errno.EADDRINUSE else "choose"
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}; {cure} another with --host and {flag}"
        ) from error
    return listener


@contextmanager
def reserved(host: str, port: int, *, flag: str = "--port") -> Iterator[Address]:
    """Hold a port for servers that bind it themselves, and share it: it is bound, but nobody listens.

    Raises:
        StartError: the address is in use, or not ours.
    """
    if port:
        # Two servers of one user may share a port without noticing: ask once without sharing.
        bind(host, port, flag=flag).close()
    with bind(host, port, shared=True, flag=flag) as reservation:
        yield reservation.getsockname()[:2]


@contextmanager
def grpc_reserved(settings: Settings) -> Iterator[Address | None]:
    """Hold the port of the gRPC API; None: it is switched off."""
    if not settings.grpc:
        yield None
        return
    with reserved(settings.host, settings.grpc_port, flag="--grpc-port") as address:
        yield address


def urls_of(settings: Settings, address: Address, grpc_address: Address | None) -> Sequence[str]:
    """Say where the servers can be reached."""
    tls = "s" if settings.tls_cert_file else ""
    urls = [f"http{tls}://{_shown(address)}"]
    return [*urls, f"grpc{tls}://{_shown(grpc_address)}"] if grpc_address else urls


def _shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
