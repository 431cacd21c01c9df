"""Requests to a coordinator as they are written over gRPC, and its answers as the rules read them. No I/O.

DTM's service has a method for each request of an initiator. Queries and operators' requests, which DTM
offers over HTTP only, are txcoord's own service, and answer with the same JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from txcoord.model import Pattern
from txcoord.proto import dtm_pb2, txcoord_pb2
from txcoord.protocol import (
    API_BASE,
    GRPC_OPERATORS_SERVICE,
    GRPC_SERVICE,
    RESULT_KEY,
    STATUS_FAILURE,
    STATUS_ONGOING,
    GrpcStatus,
    ResultWord,
)
from txcoord_sdk._calls import PING_PATH, AnyReply, Call, GrpcAnswer, GrpcCall, HttpAnswer, NoAnswer, Reply
from txcoord_sdk._checks import Fields

_DTM = f"/{GRPC_SERVICE}"
_TXCOORD = f"/{GRPC_OPERATORS_SERVICE}"

_METHODS = {
    f"{API_BASE}/prepare": f"{_DTM}/Prepare",
    f"{API_BASE}/submit": f"{_DTM}/Submit",
    f"{API_BASE}/abort": f"{_DTM}/Abort",
    f"{API_BASE}/registerBranch": f"{_DTM}/RegisterBranch",
    f"{API_BASE}/prepareWorkflow": f"{_DTM}/PrepareWorkflow",
    f"{API_BASE}/query": f"{_TXCOORD}/Query",
    f"{API_BASE}/all": f"{_TXCOORD}/List",
    f"{API_BASE}/forceStop": f"{_TXCOORD}/ForceStop",
    f"{API_BASE}/resetNextCronTime": f"{_TXCOORD}/ResetNextCronTime",
    f"{API_BASE}/subscribe": f"{_DTM}/Subscribe",
    f"{API_BASE}/unsubscribe": f"{_DTM}/Unsubscribe",
    f"{API_BASE}/version": f"{_TXCOORD}/GetVersion",
    # The cheapest that DTM has, too.
    PING_PATH: f"{_DTM}/NewGid",
}

_TOPIC_PATH = f"{API_BASE}/topic/"

_STATUS_OF_CODE = {
    "ABORTED": STATUS_FAILURE,
    "FAILED_PRECONDITION": STATUS_ONGOING,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 404,
    "RESOURCE_EXHAUSTED": 413,
}
_SENT_IN_VAIN = frozenset(["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"])
"""Codes that the sender's own side gives when no answer came."""

_TOO_MANY_CALLS = "Concurrent RPC limit exceeded"
"""How gRPC for Python refuses a call beyond its bound, unread; with the code of a request that is too large."""

_SUCCESS = msgspec.json.encode({RESULT_KEY: ResultWord.SUCCESS})


class GrpcWire:
    """DTM's gRPC API, and txcoord's beside it."""

    def __init__(self, url: str) -> None:
        self._target = url.partition("://")[2]

    def call(self, method: str, path: str, *, query: Mapping[str, str], body: Fields | None, timeout_s: float) -> Call:
        if path.startswith(_TOPIC_PATH):
            name, query = f"{_DTM}/DeleteTopic", {"topic": unquote(path.removeprefix(_TOPIC_PATH))}
        else:
            name = _METHODS[path]
        message = _message(name, body if body is not None else query)
        return GrpcCall(target=self._target, method=name, message=message, timeout_s=timeout_s)

    def answer(self, call: Call, reply: AnyReply) -> Reply:
        if not isinstance(reply, GrpcAnswer):
            return reply
        assert isinstance(call, GrpcCall), f"a call over gRPC is not one over HTTP ({call})"
        if reply.code == GrpcStatus.OK:
            return _success(call.method, reply.body)
        if reply.name in _SENT_IN_VAIN:
            # A connection that breaks has the same code as one that was never made.
            return NoAnswer(detail=f"{reply.name}: {reply.message}", may_have_arrived=True)
        message = msgspec.json.encode({"message": reply.message or reply.name})
        is_busy = reply.name == "RESOURCE_EXHAUSTED" and reply.message.startswith(_TOO_MANY_CALLS)
        return HttpAnswer(status=429 if is_busy else _STATUS_OF_CODE.get(reply.name, 500), body=message)


# -- requests ------------------------------------------------------------------------------


def _message(method: str, fields: Mapping[str, Any]) -> bytes:
    match method.rpartition("/")[2]:
        case "Prepare" | "Submit" | "Abort" | "PrepareWorkflow":
            return _request(fields).SerializeToString()
        case "RegisterBranch":
            return _registration(fields).SerializeToString()
        case "List":
            return txcoord_pb2.ListRequest(parameters=fields).SerializeToString()
        case "Subscribe" | "Unsubscribe" | "DeleteTopic":
            return dtm_pb2.DtmTopicRequest(
                Topic=fields["topic"], URL=fields.get("url", ""), Remark=fields.get("remark", "")
            ).SerializeToString()
        case "NewGid" | "GetVersion":
            return b""
        case _:
            return txcoord_pb2.Gid(gid=fields["gid"]).SerializeToString()


def _request(fields: Mapping[str, Any]) -> dtm_pb2.DtmRequest:
    options = dtm_pb2.DtmTransOptions(
        WaitResult=fields.get("wait_result", False),
        TimeoutToFail=fields.get("timeout_to_fail", 0),
        RetryInterval=fields.get("retry_interval", 0),
        BranchHeaders=fields.get("branch_headers"),
        RequestTimeout=fields.get("request_timeout", 0),
        RetryLimit=fields.get("retry_limit", 0),
    )
    return dtm_pb2.DtmRequest(
        Gid=fields["gid"],
        TransType=fields["trans_type"],
        TransOptions=options,
        CustomedData=_custom_data(fields),
        BinPayloads=fields.get("payloads"),
        QueryPrepared=fields.get("query_prepared", ""),
        Steps=msgspec.json.encode(fields["steps"]).decode() if fields.get("steps") else "",
        ReqExtra=fields.get("req_extra"),
        RollbackReason=fields.get("rollback_reason", ""),
    )


def _custom_data(fields: Mapping[str, Any]) -> str:
    custom: str = fields.get("custom_data", "")
    if fields["trans_type"] != Pattern.MSG or not fields.get("concurrent"):
        return custom
    # DTM's message has no place for it. A saga says it here, and so txcoord reads it of a message, too.
    return msgspec.json.encode({**msgspec.json.decode(custom or "{}"), "concurrent": True}).decode()


def _registration(fields: Mapping[str, Any]) -> dtm_pb2.DtmBranchRequest:
    named = {"gid", "trans_type", "branch_id", "data"}
    return dtm_pb2.DtmBranchRequest(
        Gid=fields["gid"],
        TransType=fields["trans_type"],
        BranchID=fields["branch_id"],
        Op=fields.get("op", ""),
        Data={name: value for name, value in fields.items() if name not in named},
        BusiPayload=fields.get("data", b""),
    )


# -- answers -------------------------------------------------------------------------------


def _success(method: str, body: bytes) -> HttpAnswer:
    try:
        return HttpAnswer(status=200, body=_json(method, body))
    except DecodeError as error:
        # The rules say of anything but JSON that it is not a coordinator's answer.
        return HttpAnswer(status=200, body=f"not a message: {error}".encode())


def _json(method: str, body: bytes) -> bytes:
    match method.rpartition("/")[2]:
        case "Query" | "List":
            return txcoord_pb2.Json.FromString(body).json
        case "GetVersion":
            return msgspec.json.encode({"version": txcoord_pb2.Version.FromString(body).version})
        case "NewGid":
            return msgspec.json.encode({"msg": dtm_pb2.DtmGidReply.FromString(body).Gid})
        case "PrepareWorkflow":
            progress = dtm_pb2.DtmProgressesReply.FromString(body)
            return msgspec.json.encode(MessageToDict(progress, always_print_fields_with_no_presence=True))
        case _:
            return _SUCCESS
