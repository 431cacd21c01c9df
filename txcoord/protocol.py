"""The words on the wire, as DTM and its clients spell them.

They are the values of the enums in `txcoord.model` and the constants below; nothing
else in the code base writes them out.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

API_BASE = "/api/dtmsvr"
DEFAULT_HTTP_PORT = 36789

RESULT_KEY = "dtm_result"

STATUS_FAILURE = 409
"""HTTP status of a definite failure, in both directions."""

STATUS_ONGOING = 425
"""HTTP status of "not finished yet, ask again", in both directions."""

HTTP = "http"
JSON_RPC = "json-rpc"
GRPC = "grpc"
"""A global transaction's `protocol`: how its branches are called."""

DEFAULT_GRPC_PORT = 36790

JSON_RPC_PATH = "/api/json-rpc"
JSON_RPC_VERSION = "2.0"
JSON_RPC_FAILURE = -32901
"""Code of a definite failure, in both directions."""
JSON_RPC_ONGOING = -32902
"""Code of "not finished yet, ask again", in both directions."""
JSON_RPC_PARSE_ERROR = -32700
JSON_RPC_INVALID_REQUEST = -32600
JSON_RPC_METHOD_NOT_FOUND = -32601
JSON_RPC_INTERNAL_ERROR = -32603

METHOD_PARAMETER = "method"
"""In the URL of a branch: the method to be called over JSON-RPC."""

GRPC_SERVICE = "dtmgimp.Dtm"
GRPC_OPERATORS_SERVICE = "txcoord.v1.Coordinator"
WORKFLOW_METHOD = "workflow.Workflow/Execute"
"""By which a participant that speaks gRPC is asked to resume a workflow."""

METADATA_PREFIX = "dtm-"
"""Over gRPC, what HTTP has in the query travels as metadata with this prefix: `dtm-gid`, `dtm-op`, …"""

PHASE2_PARAMETER = "phase2_url"
"""Added by the initiator of an xa to the call of an action: the URL to be registered for commit and rollback."""

TOPIC_SCHEME = "topic://"
"""Begins an action of a message that is meant for all subscribers of a topic."""

CHECK_BACK_BRANCH = "00"
"""`branch_id` of the question to a message's initiator whether its local transaction was committed, and of the
request to go on with a workflow."""

QUERY_PARAMETERS = ("branch_id", "gid", "op", "trans_type")
"""Added to the URL of each branch call, in this order."""

COORDINATOR_PARAMETER = "dtm"
"""Added by the initiator of a tcc to the URL of a try: the coordinator's API, for branches within the branch."""

CONNECTION_HEADERS = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Left out of branch calls, as Go does: they describe the connection or the length, which only the sender knows."""


class ResultWord(StrEnum):
    """The words that `dtm_result` may hold."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    ONGOING = "ONGOING"


class GrpcStatus(IntEnum):
    """The status codes of gRPC that mean something here, by their numbers."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    """Not finished yet, ask again; in both directions."""
    ABORTED = 10
    """A definite failure, in both directions."""
    INTERNAL = 13
    UNAVAILABLE = 14


def branch_id_of(index: int) -> str:
    """Name the branch at a 0-based position: 01, 02, …, 99, 100."""
    return f"{index + 1:02d}"
