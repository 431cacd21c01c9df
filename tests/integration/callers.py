"""One caller for each API of the coordinator: the same requests, by DTM's names over HTTP, and what is said to them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

import grpc
import httpx
from google.protobuf.message import Message

from txcoord.proto.dtm_pb2 import DtmBranchRequest, DtmRequest, DtmTransOptions

DTM = "/dtmgimp.Dtm/"
COORDINATOR = "/txcoord.v1.Coordinator/"


class Said(NamedTuple):
    """What a caller was told."""

    word: str
    """SUCCESS, FAILURE, ONGOING, or ERROR for what is none of them."""
    number: int
    """Status or code of the protocol."""
    message: str


class Caller(Protocol):
    """Sends prepare, submit, abort and registerBranch with the fields of HTTP's bodies."""

    async def call(self, method: str, **body: Any) -> Said: ...


class HttpCaller:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(self, method: str, **body: Any) -> Said:
        answer = await self._http.post(f"/api/dtmsvr/{method}", json=body)
        reply = answer.json()
        word = {200: "SUCCESS", 409: "FAILURE", 425: "ONGOING"}.get(answer.status_code, "ERROR")
        assert reply.get("dtm_result", "ERROR") == word
        return Said(word, answer.status_code, reply.get("message", ""))


class JsonRpcCaller:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(self, method: str, **body: Any) -> Said:
        request = {"jsonrpc": "2.0", "id": "1", "method": method, "params": body}
        answer = await self._http.post("/api/json-rpc", json=request)
        assert answer.status_code == 200
        error = answer.json()["error"]
        if error is None:
            return Said("SUCCESS", 0, "")
        word = {-32901: "FAILURE", -32902: "ONGOING"}.get(error["code"], "ERROR")
        return Said(word, error["code"], error["message"])


class GrpcCaller:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, **body: Any) -> Said:
        name = method[0].upper() + method[1:]
        message = branch_message(**body) if method == "registerBranch" else trans_message(**body)
        code, said, _ = await ask(self._channel, DTM + name, message)
        word = {
            grpc.StatusCode.OK: "SUCCESS",
            grpc.StatusCode.ABORTED: "FAILURE",
            grpc.StatusCode.FAILED_PRECONDITION: "ONGOING",
        }.get(code, "ERROR")
        return Said(word, code.value[0], said)


async def ask(
    channel: grpc.aio.Channel, path: str, request: Message | bytes = b"", *, timeout_s: float = 20.0
) -> tuple[grpc.StatusCode, str, bytes]:
    """Call any method; return status, sentence, and the bytes of the reply."""
    body = request if isinstance(request, bytes) else request.SerializeToString()
    try:
        return grpc.StatusCode.OK, "", await channel.unary_unary(path)(body, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or "", b""


def trans_message(**body: Any) -> DtmRequest:
    """The gRPC message that says what an HTTP body says."""
    options = DtmTransOptions(
        WaitResult=body.pop("wait_result", False),
        TimeoutToFail=body.pop("timeout_to_fail", 0),
        RetryInterval=body.pop("retry_interval", 0),
        RequestTimeout=body.pop("request_timeout", 0),
        RetryLimit=body.pop("retry_limit", 0),
        BranchHeaders=body.pop("branch_headers", {}),
    )
    message = DtmRequest(
        Gid=body.pop("gid", ""),
        TransType=body.pop("trans_type", ""),
        TransOptions=options,
        CustomedData=body.pop("custom_data", ""),
        BinPayloads=[payload.encode() for payload in body.pop("payloads", [])],
        QueryPrepared=body.pop("query_prepared", ""),
        Steps=json.dumps(body.pop("steps", None)),
        ReqExtra=body.pop("req_extra", {}),
        RollbackReason=body.pop("rollback_reason", ""),
    )
    assert not body, f"these have no field over gRPC: {body}"
    return message


def branch_message(**body: str) -> DtmBranchRequest:
    return DtmBranchRequest(
        Gid=body.pop("gid", ""),
        TransType=body.pop("trans_type", ""),
        BranchID=body.pop("branch_id", ""),
        BusiPayload=body.pop("data", "").encode(),
        Data=body,
    )
