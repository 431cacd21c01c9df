"""The addresses of one host name: looked up once for many connections, kept for a short while."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable


class Addresses:
    """Looks a name up. A pool that grows asks once, not once per connection: look-ups run
    in very few threads, which all endpoints share."""

    def __init__(
        self, host: str, port: int, *, ttl_s: float, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self._host = host
        self._port = port
        self._ttl_s = ttl_s
        self._loop = loop
        self._clock = clock
        self._known: tuple[str, ...] = ()
        self._known_until = 0.0
        self._lookup: asyncio.Task[tuple[str, ...]] | None = None
        if _is_address(host):
            self._known, self._known_until = (host,), float("inf")

    async def get(self) -> tuple[str, ...]:
        """At least one address, the best first. Raises `socket.gaierror`."""
        if self._clock() < self._known_until:
            return self._known
        if self._lookup is None:
            self._lookup = self._loop.create_task(self._look_up())
            self._lookup.add_done_callback(self._looked_up)
        # Others wait for the same look-up: one caller's cancellation must not end it.
        return await asyncio.shield(self._lookup)

    def prefer(self, address: str) -> None:
        """Try this one first: a connection was made to it."""
        if self._known and self._known[0] != address and address in self._known:
            self._known = (address, *(each for each in self._known if each != address))

    def forget(self) -> None:
        """None of them could be connected to: look again next time."""
        if not _is_address(self._host):
            self._known_until = 0.0

    def close(self) -> None:
        """End a look-up under way; whoever waits for it is cancelled."""
        if self._lookup is not None:
            self._lookup.cancel()

    async def _look_up(self) -> tuple[str, ...]:
        infos = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
        return addresses

    def _looked_up(self, task: asyncio.Task[tuple[str, ...]]) -> None:
        self._lookup = None
        if not task.cancelled() and task.exception() is None:
            self._known, self._known_until = task.result(), self._clock() + self._ttl_s


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
