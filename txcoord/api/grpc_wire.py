"""DTM's gRPC messages, decoded to what the service takes, and what it gives encoded to them."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from txcoord.api.views import shown_branches
from txcoord.api.wire import clean_gid, decode_steps
from txcoord.errors import InvalidRequestError
from txcoord.model import GlobalTransaction
from txcoord.proto.dtm_pb2 import (
    DtmBranchRequest,
    DtmProgress,
    DtmProgressesReply,
    DtmRequest,
    DtmTransaction,
)
from txcoord.protocol import GRPC
from txcoord.request import BranchRegistration, TransRequest

AnyMessage = TypeVar("AnyMessage", bound=Message)


def decode(kind: type[AnyMessage], body: bytes) -> AnyMessage:
    """Read a message of any kind.

    Raises:
        InvalidRequestError: the bytes are not of this kind.
    """
    try:
        return kind.FromString(body)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequestError(f"the request is not a {name} that can be read: {error}") from error


def decode_trans(body: bytes) -> TransRequest:
    """Read the message of Submit, Prepare, Abort and PrepareWorkflow.

    Raises:
        InvalidRequestError: it is not one, or its steps are not JSON; the sentence says which.
    """
    message = decode(DtmRequest, body)
    options = message.TransOptions
    return TransRequest(
        gid=clean_gid(message.Gid),
        trans_type=message.TransType,
        steps=decode_steps(message.Steps),
        payloads=tuple(message.BinPayloads),
        custom_data=message.CustomedData,
        wait_result=options.WaitResult,
        timeout_to_fail=options.TimeoutToFail,
        request_timeout=options.RequestTimeout,
        retry_interval=options.RetryInterval,
        retry_limit=options.RetryLimit,
        branch_headers=dict(options.BranchHeaders),
        query_prepared=message.QueryPrepared,
        # There is no field for it: whoever speaks gRPC is spoken to in gRPC, unless a URL says http.
        protocol=GRPC,
        rollback_reason=message.RollbackReason,
        req_extra=dict(message.ReqExtra),
    )


def decode_branch(body: bytes) -> BranchRegistration:
    """Read the message of RegisterBranch. What is not a field of its own stands in `Data`.

    Raises:
        InvalidRequestError: it is not one.
    """
    message = decode(DtmBranchRequest, body)
    data = message.Data
    return BranchRegistration(
        gid=clean_gid(message.Gid),
        trans_type=message.TransType,
        branch_id=message.BranchID,
        data=message.BusiPayload,
        confirm=data.get("confirm", ""),
        cancel=data.get("cancel", ""),
        url=data.get("url", ""),
        op=data.get("op", ""),
        status=data.get("status", ""),
    )


def encode_progress(workflow: GlobalTransaction) -> bytes:
    """Write a workflow and the steps of it that are stored."""
    transaction = DtmTransaction(
        Gid=workflow.gid,
        Status=workflow.status.value,
        RollbackReason=workflow.rollback_reason,
        Result=workflow.result,
        CustomedData=workflow.custom_data,
    )
    steps = [
        DtmProgress(Status=step.status.value, BinData=step.payload, BranchID=step.branch_id, Op=step.op.value)
        for step in shown_branches(workflow)
    ]
    return DtmProgressesReply(Transaction=transaction, Progresses=steps).SerializeToString()
