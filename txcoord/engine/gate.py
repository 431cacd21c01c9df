"""Which tasks may be at work on the ownership of transactions at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets many in together, or one alone; in the order in which they came, so that nobody waits for ever."""

    def __init__(self, *, width: int) -> None:
        """
        Args:
            width: how many are let in together.
        """
        self._width = width
        self._inside = 0
        self._left = asyncio.Event()
        # Held by the first in the queue, and by whoever is inside alone. Fair: waiters get it in their order.
        self._first = asyncio.Lock()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._first:
            await self._wait_until_inside(self._width - 1)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._first:
            await self._wait_until_inside(0)
            yield

    async def _wait_until_inside(self, at_most: int) -> None:
        while self._inside > at_most:
            self._left.clear()
            await self._left.wait()
