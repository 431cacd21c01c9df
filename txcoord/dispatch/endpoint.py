"""One endpoint (scheme, host, port) that is called over HTTP: its connections."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

from txcoord.dispatch.connection import Answer, Connection
from txcoord.dispatch.deadlines import End
from txcoord.dispatch.limited import LimitedEndpoint, NoAnswer, Surroundings
from txcoord.dispatch.names import Addresses
from txcoord.dispatch.tls import ClientTls
from txcoord.url import Url

_OUR_OWN_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
"""This process or machine has run out of something; the endpoint is not to blame."""


class Endpoint(LimitedEndpoint[bytes, Answer]):
    """Makes exchanges with one endpoint: a whole request is sent, a whole answer is read."""

    def __init__(self, url: Url, surroundings: Surroundings, tls: ClientTls | None) -> None:
        super().__init__(url.origin, surroundings)
        self._host, self._port = url.host, url.port
        self._tls = tls
        self._addresses = Addresses(
            url.host, url.port, ttl_s=self._settings.name_ttl_s, loop=self._loop, clock=self._clock
        )
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[Connection]] = set()
        self._all_gone = asyncio.Event()

    async def _perform(self, job: bytes, at: float, now: float) -> Answer | NoAnswer:
        connection = self._take_idle(now)
        is_reused = connection is not None
        while True:
            if connection is None:
                opened = await self._open(at)
                if isinstance(opened, NoAnswer):
                    return opened
                connection = opened
                if not connection.is_usable():
                    return NoAnswer(detail=f"{self.origin}: {connection.flaw or 'it closed the connection at once'}")
            waiter: asyncio.Future[End] = self._loop.create_future()
            slot = self._deadlines.add(waiter, at)
            end = None
            try:
                connection.send(job, waiter)
                end = await waiter
            finally:
                slot.discard(waiter)
                if end is not End.DONE:
                    # Timed out, cancelled or broken: what might still come belongs to nobody.
                    connection.abort()
            if end is End.DONE:
                answer = connection.answer()
                self._keep_or_close(connection)
                return answer
            if end is End.LOST and is_reused and not connection.received and not self._is_closed:
                # The other side closed a kept-alive connection while our request was on its
                # way: nothing says that it was looked at. Once more, on a connection of our own.
                connection, is_reused = None, False
                continue
            if end is End.LOST:
                return NoAnswer(detail=f"{self.origin}: {connection.flaw}")
            if end is End.TIMED_OUT:
                what = "no whole answer" if connection.received else "no answer"
                return NoAnswer(detail=f"{self.origin}: {what} came within {at - now:.3g} s")
            return self._closed()

    # ---- connections

    def _take_idle(self, now: float) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                if connection.idle_since + self._settings.keep_alive_idle_s > now:
                    return connection
                connection.close()
        return None

    def _keep_or_close(self, connection: Connection) -> None:
        if (
            connection.may_be_kept
            and connection.is_usable()
            and connection.is_drained()
            and len(self._idle) < self._settings.max_idle
        ):
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.abort()

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._note_if_gone()

    async def _open(self, at: float) -> Connection | NoAnswer:
        if self._is_closed:
            return self._closed()
        limit_s = self._settings.connect_timeout_s
        by = min(at, self._clock() + limit_s)
        waiter: asyncio.Future[End] = self._loop.create_future()
        task = self._loop.create_task(self._connect(by))
        self._opening.add(task)

        def opened(task: asyncio.Task[Connection]) -> None:
            self._opening.discard(task)
            self._note_if_gone()
            if not waiter.done():
                waiter.set_result(End.DONE)
            else:
                _abort_result(task)

        task.add_done_callback(opened)
        slot = self._deadlines.add(waiter, by)
        end = None
        try:
            end = await waiter
        finally:
            slot.discard(waiter)
            if end is not End.DONE:
                task.cancel()
                if waiter.done() and not waiter.cancelled() and waiter.result() is End.DONE:
                    # Cancelled in the instant in which the connection was made.
                    _abort_result(task)
        if end is End.TIMED_OUT:
            return NoAnswer(detail=f"{self.origin}: no connection was made in time (at most {limit_s:g} s)")
        if task.cancelled():
            return self._closed()
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, OSError):
            return self._no_connection(error)
        return NoAnswer(detail=f"{self.origin}: no connection could be made ({type(error).__name__})", counts=False)

    def _no_connection(self, error: OSError) -> NoAnswer:
        is_ours = error.errno in _OUR_OWN_ERRORS and not isinstance(error, (socket.gaierror, ssl.SSLError))
        return NoAnswer(detail=f"{self.origin}: no connection could be made ({_words_for(error)})", counts=not is_ours)

    async def _connect(self, by: float) -> Connection:
        addresses = await self._addresses.get()
        tls = self._tls
        for index, address in enumerate(addresses):
            # An address that swallows packets must leave time for the next one.
            share_s = max(0.01, (by - self._clock()) / (len(addresses) - index))
            try:
                async with asyncio.timeout(share_s):
                    _, connection = await self._loop.create_connection(
                        lambda: Connection(self._settings, self._forget),
                        address,
                        self._port,
                        ssl=tls.context if tls else None,
                        server_hostname=(tls.server_name or self._host) if tls else None,
                    )
            except OSError:
                if index == len(addresses) - 1:
                    self._addresses.forget()
                    raise
            else:
                self._addresses.prefer(address)
                if not connection.is_lost:
                    self._connections.add(connection)
                return connection
        raise AssertionError("a name resolves to at least one address")

    # ---- housekeeping

    def tidy(self, now: float) -> None:
        """Close connections that have been idle for too long."""
        too_old = now - self._settings.keep_alive_idle_s
        for connection in [each for each in self._idle if each.idle_since <= too_old]:
            self._idle.remove(connection)
            connection.close()

    def end(self) -> None:
        """End everything at once; exchanges under way end with `NoAnswer`."""
        self._is_closed = True
        self._dismiss_waiters(End.CLOSED)
        self._addresses.close()
        for task in self._opening:
            task.cancel()
        for connection in self._connections:
            connection.abort(End.CLOSED)
        self._note_if_gone()

    async def gone(self) -> None:
        """After `end`: wait until the connections are gone."""
        await self._all_gone.wait()

    def _note_if_gone(self) -> None:
        if self._is_closed and not self._connections and not self._opening:
            self._all_gone.set()


def _abort_result(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


def _words_for(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    return (errno.errorcode.get(error.errno, "") if error.errno else "") or type(error).__name__
