"""The code of the guide's section on gRPC runs as it is printed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import Int64Value
from sqlalchemy.ext.asyncio import create_async_engine

from sdk.tests.grpc_support import call, handler_of, serving_async
from txcoord.proto import dtm_pb2
from txcoord_sdk.barrier import create_table
from txcoord_sdk.grpc import QUERY_PREPARED

GUIDE = Path(__file__).parents[2] / "docs" / "sdk.md"
INITIATOR, PARTICIPANT = (
    compile(source, str(GUIDE), "exec")
    for source in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text().partition("\n## gRPC\n")[2], re.DOTALL | re.M)
)


async def test_the_initiator_hands_over_a_saga(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dtm_pb2.DtmRequest] = []

    async def submit(request: bytes, _context: Any) -> bytes:
        received.append(dtm_pb2.DtmRequest.FromString(request))
        return b""

    async with serving_async(handler_of({"Submit": submit}, "dtmgimp.Dtm")) as target:
        monkeypatch.setenv("TXCOORD_URL", f"grpc://{target}")
        await asyncio.to_thread(exec, INITIATOR, {})

    assert [Int64Value.FromString(payload).value for payload in received[0].BinPayloads] == [200, 3]


async def test_the_participant_has_a_barrier_and_a_check_back(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/stock.db")
    await create_table(engine)
    taken: list[int] = []

    async def take_from_stock(request: Int64Value, _connection: Any) -> None:
        taken.append(request.value)

    def add_servicer(servicer: Any, server: grpc.aio.Server) -> None:
        handler: grpc.RpcMethodHandler[Int64Value, Empty] = grpc.unary_unary_rpc_method_handler(
            servicer.Deduct,
            request_deserializer=Int64Value.FromString,
            response_serializer=Empty.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Storage", {"Deduct": handler}),))

    names: dict[str, Any] = {
        "engine": engine,
        "take_from_stock": take_from_stock,
        "Empty": Empty,
        "StorageServicer": object,
        "add_StorageServicer_to_server": add_servicer,
    }
    exec(PARTICIPANT, names)
    server: grpc.aio.Server = names["server"]
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    deduct = {"gid": "g1", "trans_type": "saga", "branch_id": "01", "op": "action"}
    check_back = {"gid": "g1", "trans_type": "msg", "branch_id": "00", "op": "msg"}

    answers = [
        await call(target, "shop.Storage/Deduct", Int64Value(value=3).SerializeToString(), **deduct) for _ in "ab"
    ]
    asked = await call(target, QUERY_PREPARED, **check_back)
    await server.stop(None)
    await engine.dispose()

    assert [answer[0] for answer in answers] == [grpc.StatusCode.OK] * 2
    assert taken == [3]
    assert asked[0] is grpc.StatusCode.ABORTED
