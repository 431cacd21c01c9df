"""The SDK as initiator of messages: over each API, with the ready-made check-back over the same protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx

from sdk.tests.grpc_support import call, serving_async
from tests.e2e.harness import Process
from txcoord_sdk import AsyncCoordinator
from txcoord_sdk.grpc import QUERY_PREPARED, add_query_prepared


@dataclass(frozen=True, slots=True)
class Initiator:
    protocol: str
    client: AsyncCoordinator
    check_back: str
    """The URL that the coordinator asks."""

    async def has_committed(self, gid: str, **more: str) -> bool:
        """Ask back, as the coordinator does."""
        query = {"gid": gid, "trans_type": "msg", "branch_id": "00", "op": "msg", **more}
        if self.protocol == "grpc":
            code, *_ = await call(self.check_back.partition("/")[0], QUERY_PREPARED, **query)
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED)
            return code is grpc.StatusCode.OK
        async with httpx.AsyncClient() as http:
            answer = await http.get(self.check_back, params=query)
        assert answer.status_code in (200, 409)
        return answer.status_code == 200


@asynccontextmanager
async def initiator(protocol: str, server: Process, url: str, source: Any) -> AsyncIterator[Initiator]:
    """Give an initiator.

    Args:
        protocol: "http" or "grpc".
        url: of the participants, with the check-back over HTTP at `/query-prepared`.
        source: what the check-back over gRPC asks.
    """
    if protocol == "http":
        async with AsyncCoordinator(server.url, timeout=20) as client:
            yield Initiator(protocol, client, f"{url}/query-prepared")
        return
    async with (
        serving_async(add=lambda made: add_query_prepared(made, source)) as target,
        AsyncCoordinator(f"grpc://127.0.0.1:{server.grpc_port}", timeout=20) as client,
    ):
        yield Initiator(protocol, client, f"{target}/{QUERY_PREPARED}")
