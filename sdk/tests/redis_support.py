"""Redis for the barrier's tests: each kind of client behind one face, and a way to it that loses answers."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from urllib.parse import urlsplit

import redis
import redis.asyncio as aredis

from txcoord_sdk.barrier import BranchBarrier
from txcoord_sdk.barrier.redis import Passed, RedisWork


class Desk:
    """One client, as an application would have it."""

    is_async: ClassVar[bool]
    is_cluster: ClassVar[bool] = False

    def __init__(self, url: str) -> None:
        self.client: Any = self.connect(url)

    def connect(self, url: str) -> Any:
        raise NotImplementedError

    async def call(self, barrier: BranchBarrier, work: RedisWork, **options: Any) -> Passed:
        if self.is_async:
            return await barrier.redis_call(self.client, work, **options)
        return await asyncio.to_thread(barrier.redis_call_sync, self.client, work, **options)

    async def query_prepared(self, barrier: BranchBarrier, key: str | None, **options: Any) -> bool:
        if self.is_async:
            return await barrier.redis_query_prepared(self.client, key, **options)
        return await asyncio.to_thread(barrier.redis_query_prepared_sync, self.client, key, **options)

    async def say(self, *words: str | int, **options: Any) -> Any:
        if self.is_async:
            return await self.client.execute_command(*words, **options)
        return await asyncio.to_thread(self.client.execute_command, *words, **options)

    async def forget_scripts(self) -> None:
        if self.is_async:
            await self.client.script_flush()
        else:
            await asyncio.to_thread(self.client.script_flush)

    async def close(self) -> None:
        if self.is_async:
            await self.client.aclose()
        else:
            self.client.close()


class Blocking(Desk):
    is_async = False

    def connect(self, url: str) -> Any:
        return redis.Redis.from_url(url, decode_responses=True)


class Async(Desk):
    is_async = True

    def connect(self, url: str) -> Any:
        return aredis.Redis.from_url(url)


class BlockingCluster(Desk):
    is_async = False
    is_cluster = True

    def connect(self, url: str) -> Any:
        return redis.RedisCluster.from_url(url)


class AsyncCluster(Desk):
    is_async = True
    is_cluster = True

    def connect(self, url: str) -> Any:
        return aredis.RedisCluster.from_url(url, decode_responses=True)


DESKS: tuple[type[Desk], ...] = (Blocking, Async, BlockingCluster, AsyncCluster)


class LossyWay:
    """A TCP proxy that, told so, closes the connection in the place of an answer."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.loses = 0
        """So many answers to EVALSHA or EVAL still get lost."""
        self.drops_requests = False
        """Whether it is the request that gets lost rather than the answer."""
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LossyWay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._target.path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            while request := await reader.read(1 << 16):
                is_lost = self.loses and b"EVAL" in request
                if not (is_lost and self.drops_requests):
                    back.write(request)
                    answer = await there.read(1 << 16)
                if is_lost:
                    self.loses -= 1
                    self.lost += 1
                    return
                writer.write(answer)
        finally:
            writer.close()
            back.close()
