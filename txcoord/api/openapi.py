"""What the HTTP API takes and answers, as an OpenAPI document.

Written by hand: DTM's forms are looser than types can say (keys in any case, null for what is absent, fields that only
some patterns read). Tests compare it with the routes, with the decoder and with what a running coordinator answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from txcoord import __version__
from txcoord.api.replies import RETRY_AFTER_S
from txcoord.grpc_call import GRPC_FORM
from txcoord.model import OpStatus, Outcome, Pattern, Status
from txcoord.protocol import (
    API_BASE,
    GRPC,
    HTTP,
    JSON_RPC,
    JSON_RPC_PATH,
    JSON_RPC_VERSION,
    RESULT_KEY,
    STATUS_FAILURE,
    STATUS_ONGOING,
    ResultWord,
)
from txcoord.request import MAX_BRANCH_ID_LENGTH, MAX_GID_LENGTH
from txcoord.workflow.request import STEP_OPS

Json = dict[str, Any]

OPENAPI_PATH: Final = "/openapi.json"

_INTRODUCTION: Final = f"""\
A coordinator of distributed transactions that speaks the protocol of DTM.

An initiator sends a saga whole to `submit`. A TCC, an XA or a message is opened with `prepare`, gets its branches with
`registerBranch` (TCC, XA), and is decided by `submit` or `abort`. A workflow is opened with `prepareWorkflow`; its
participant reports each step with `registerBranch`, and the end with `submit`. Each of these calls may be repeated: the
same again changes nothing.

Bodies are JSON, whatever their Content-Type says. Keys match in any case, null stands for absent, unknown keys are
ignored; a value of another type is refused. Line breaks and semicolons are deleted from a gid. What is refused with 400
or 413 has not been stored. {STATUS_FAILURE} means that the transaction is rolled back or conflicts with what was asked,
{STATUS_ONGOING} that it goes on by itself. After 500 or 503 the same request may be sent again.

Bounds (branches, bytes, lengths, seconds) are settings; the message of a refusal names its setting. The same operations
are offered over JSON-RPC (`{JSON_RPC_PATH}`) and gRPC.
"""


def document() -> Json:
    """Return the document: every route, what it takes, each status it answers."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "txcoord",
            "version": __version__,
            "summary": "Distributed transactions that end everywhere or nowhere",
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this coordinator"}],
        "security": [],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": _paths(),
        "components": {"schemas": {**_REQUESTS, **_ANSWERS}, "responses": _RESPONSES},
    }


_TAGS: Final = {
    "transactions": "Open global transactions, add their branches, decide them, look at them.",
    "topics": "Who gets the messages whose actions are `topic://<name>`.",
    "operators": "Steer transactions that hang.",
    "process": "The coordinator itself.",
}


# -- words to write schemas with ------------------------------------------------------


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Json], *, required: Sequence[str] = (), text: str = "") -> Json:
    schema: Json = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return {**schema, "description": text} if text else schema


def _string(text: str, **more: object) -> Json:
    return {"type": "string", "description": text, **more}


def _nullable(kind: str, text: str, **more: object) -> Json:
    """A field of a request: null and absent are the same."""
    return {"type": [kind, "null"], "description": text, **more}


def _const(word: str, text: str = "") -> Json:
    return {"type": "string", "const": word, **({"description": text} if text else {})}


def _integer(text: str, **more: object) -> Json:
    return {"type": "integer", "format": "int64", "description": text, **more}


def _time(text: str) -> Json:
    return _string(text, format="date-time")


_TEXT_OR_NULL: Final = {"type": ["string", "null"]}

# -- requests -------------------------------------------------------------------------

_GID: Final = _string(
    f"The global transaction: 1 to {MAX_GID_LENGTH} printable characters without outer spaces, never used before.",
    minLength=1,
    maxLength=MAX_GID_LENGTH,
    format="gid",
    examples=["order-4711"],
)
_URL_FORM: Final = f"`http://…` or `https://…`, or `{GRPC_FORM}` where `protocol` is not {HTTP}"


def _url(text: str) -> Json:
    return _nullable("string", f"{text}: {_URL_FORM}. Empty: there is nothing to call.", format="branch-url")


def _seconds(text: str) -> Json:
    return _nullable("integer", f"Seconds: {text} 0: as the coordinator is set.", format="int64")


_OPTIONS: Final[Mapping[str, Json]] = {
    "timeout_to_fail": _seconds("until a transaction that has not been decided forward is rolled back."),
    "request_timeout": _seconds("how long a call of a branch may take."),
    "retry_interval": _seconds("until a branch that answered ONGOING is called again."),
    "retry_limit": _nullable(
        "integer", "How often a saga's action is repeated before the saga turns round; 0: always."
    ),
    "branch_headers": {
        "type": ["object", "null"],
        "additionalProperties": _TEXT_OR_NULL,
        "description": "Sent with each call of a branch.",
    },
    "protocol": _nullable(
        "string",
        "How branches are called, as far as their URLs do not say so.",
        enum=["", HTTP, JSON_RPC, GRPC, None],
    ),
    "custom_data": _nullable("string", "Kept as it is; JSON that some patterns read."),
}
_WAIT: Final = {
    "wait_result": _nullable(
        "boolean", "Answer when the transaction has ended, or has to wait before a call is repeated."
    )
}
_QUERY_PREPARED: Final = "Asked when a message stays prepared beyond its timeout, or nothing is heard of a workflow"


def _steps(text: str, urls: Mapping[str, Json]) -> Json:
    step = {"type": ["object", "null"], "properties": dict(urls), "additionalProperties": _TEXT_OR_NULL}
    return {"type": ["array", "null"], "items": step, "description": text}


_PAYLOADS: Final = {
    "type": ["array", "null"],
    "items": _TEXT_OR_NULL,
    "description": "The body for each step, one for each; it may be empty.",
}
_SAGA_STEPS: Final = _steps(
    "What is to be done, and what undoes it, in this order.",
    {"action": _url("Does the step"), "compensate": _url("Undoes it")},
)
_MSG_STEPS: Final = _steps(
    "Whom to call, in this order.", {"action": _url("Gets the message; `topic://<name>` stands for all subscribers")}
)
_CONCURRENT: Final = {"concurrent": _nullable("boolean", "A message calls all its actions at once.")}


def _trans(pattern: Pattern, properties: Mapping[str, Json], *, required: Sequence[str] = (), text: str) -> Json:
    named = {"gid": _GID, "trans_type": _const(pattern.value)}
    return _object({**named, **properties}, required=["gid", "trans_type", *required], text=text)


_REPORT: Final = _object(
    {
        "status": _string("How it ended.", enum=[Status.SUCCEEDED, Status.FAILED]),
        "result": _string("The result, in base64.", contentEncoding="base64"),
        "rollback_reason": _string("Why it failed."),
    },
    required=["status"],
    text="How the workflow ended.",
)


def _branch(pattern: Pattern, properties: Mapping[str, Json], *, required: Sequence[str] = (), text: str) -> Json:
    branch_id = _string("Names the branch within the transaction.", minLength=1, maxLength=MAX_BRANCH_ID_LENGTH)
    body = _trans(pattern, {"branch_id": branch_id, **properties}, required=["branch_id", *required], text=text)
    # Every value is a string, known or not.
    return {**body, "additionalProperties": _TEXT_OR_NULL}


_REQUESTS: Final[Mapping[str, Json]] = {
    "Saga": _trans(
        Pattern.SAGA,
        {
            "steps": _SAGA_STEPS,
            "payloads": _PAYLOADS,
            **_WAIT,
            **_OPTIONS,
            "custom_data": _nullable(
                "string",
                'JSON: `{"concurrent":true,"orders":{"1":[0]}}` runs steps side by side, step 1 after step 0.',
                contentMediaType="application/json",
            ),
        },
        text="Actions, and compensations that undo them if one fails. Without steps it succeeds at once.",
    ),
    "Msg": _trans(
        Pattern.MSG,
        {
            "steps": _MSG_STEPS,
            "payloads": _PAYLOADS,
            "query_prepared": _url(_QUERY_PREPARED),
            **_WAIT,
            **_CONCURRENT,
            **_OPTIONS,
            "custom_data": _nullable(
                "string",
                'JSON: `{"delay":5,"max_attempts":3,"deadline":60,"concurrent":true}`, each of them optional.',
                contentMediaType="application/json",
            ),
        },
        text="Calls that are made for certain once the message is submitted.",
    ),
    "Tcc": _trans(
        Pattern.TCC, {**_WAIT, **_OPTIONS}, text="Branches that have reserved, to be confirmed or cancelled."
    ),
    "Xa": _trans(Pattern.XA, {**_WAIT, **_OPTIONS}, text="Branches whose databases have prepared, to be committed."),
    "Workflow": _trans(
        Pattern.WORKFLOW,
        {
            "query_prepared": _url(_QUERY_PREPARED),
            **_OPTIONS,
            "custom_data": _nullable(
                "string",
                'JSON: `{"name":"…","data":"…"}`, the function and its input in base64.',
                contentMediaType="application/json",
            ),
        },
        text="A function that runs in a participant; its steps are stored here.",
    ),
    "WorkflowEnd": _trans(
        Pattern.WORKFLOW,
        {"req_extra": _REPORT},
        required=["req_extra"],
        text="The end of a workflow, as it is reported.",
    ),
    "Abort": _object(
        {
            "gid": _GID,
            "trans_type": _nullable("string", "Not looked at: the stored one counts."),
            "rollback_reason": _nullable("string", "Why; shown in queries."),
            **_WAIT,
        },
        required=["gid"],
    ),
    "Gid": _object({"gid": _GID}, required=["gid"]),
    "TccBranch": _branch(
        Pattern.TCC,
        {
            "confirm": _url("Called when the transaction is submitted"),
            "cancel": _url("Called when it is rolled back"),
            "data": _nullable("string", "The body of both."),
        },
        text="Of a TCC.",
    ),
    "XaBranch": _branch(
        Pattern.XA,
        {"url": _string(f"Called with `op=commit` or `op=rollback`: {_URL_FORM}.", format="branch-url")},
        required=["url"],
        text="Of an XA.",
    ),
    "WorkflowStep": _branch(
        Pattern.WORKFLOW,
        {
            "op": _string("What of the step has ended.", enum=list(STEP_OPS)),
            "status": _string("How it ended.", enum=[Status.SUCCEEDED, Status.FAILED]),
            "data": _nullable("string", "Its result."),
        },
        required=["op", "status"],
        text="A step that has ended.",
    ),
    "JsonRpcRequest": _object(
        {
            "jsonrpc": _const(JSON_RPC_VERSION),
            "id": {"type": ["string", "number"], "description": "Echoed. Every request is answered: it must be there."},
            "method": {"type": "string", "enum": ["newGid", "prepare", "submit", "abort", "registerBranch"]},
            "params": {
                "type": ["object", "null"],
                "description": "What is the body of the HTTP request of the same name.",
            },
        },
        required=["jsonrpc", "id", "method"],
    ),
}

# -- answers --------------------------------------------------------------------------

_SUCCESS: Final = _object({RESULT_KEY: _const(ResultWord.SUCCESS)}, required=[RESULT_KEY])
_MESSAGE: Final = _string("What happened, and what to do.")


def _word(word: ResultWord) -> Json:
    return _object({RESULT_KEY: _const(word), "message": _MESSAGE}, required=[RESULT_KEY, "message"])


_ATTEMPT: Final = _object(
    {
        "at": _time("When the call was made."),
        "duration_ms": {"type": "number"},
        "outcome": {"type": "string", "enum": [outcome.value for outcome in Outcome]},
        "code": {"type": "integer", "description": "HTTP status (from 100) or gRPC status; 0: no answer came."},
        "detail": _string("The beginning of the answer, or what went wrong."),
    },
    required=["at", "duration_ms", "outcome", "code", "detail"],
)
_HELD_OFF: Final[Json] = {
    "type": "string",
    "description": "Why it was put off, if it was since its last call: its participant is left alone for a while.",
}

_QUESTION: Final = _object(
    {
        "status": {"type": "string", "enum": [status.value for status in OpStatus]},
        "attempts": {"type": "array", "items": _ref("Attempt")},
        "held_off": _HELD_OFF,
    },
    required=["status", "attempts"],
)

_ANSWERS: Final[Mapping[str, Json]] = {
    "Success": _SUCCESS,
    "Failure": _word(ResultWord.FAILURE),
    "Ongoing": _word(ResultWord.ONGOING),
    "Error": _object({"message": _MESSAGE}, required=["message"]),
    "Attempt": _ATTEMPT,
    "Transaction": _object(
        {
            "id": _integer("Its row; the `position` of lists."),
            "create_time": _time("When it was opened."),
            "update_time": _time("When it last changed."),
            "finish_time": _time("When it succeeded."),
            "rollback_time": _time("When its rollback was done."),
            "gid": {"type": "string"},
            "trans_type": {"type": "string", "enum": [pattern.value for pattern in Pattern]},
            "status": {"type": "string", "enum": [status.value for status in Status]},
            "query_prepared": {"type": "string"},
            "protocol": {"type": "string"},
            "result": _string("Of a workflow, in base64."),
            "rollback_reason": _string("Why it was rolled back."),
            "options": _string("How it is driven, as JSON.", contentMediaType="application/json"),
            "custom_data": {"type": "string"},
            "next_cron_time": _time("When it goes on; nobody drives it until then."),
            "needs_operator": _string("Why it does not go on by itself, and what to do."),
            "check_back": {**_QUESTION, "description": "Of a message: the question to its initiator."},
            "resume": {**_QUESTION, "description": "Of a workflow: the request to go on with it."},
            "concurrent": {"type": "boolean"},
            "owner": _string("The coordinator process that drives it."),
        },
        required=["id", "create_time", "update_time", "gid", "trans_type", "status", "options", "concurrent"],
        text="A global transaction. What is empty has no key.",
    ),
    "BranchOp": _object(
        {
            "id": _integer("Its position, from 1."),
            "create_time": _time("When the transaction was opened."),
            "update_time": _time("When it last changed."),
            "finish_time": _time("When it got its final status."),
            "gid": {"type": "string"},
            "url": {"type": "string"},
            "bin_data": _string("The payload, or a workflow step's result.", contentEncoding="base64"),
            "branch_id": {"type": "string"},
            "op": {"type": "string"},
            "status": {"type": "string", "enum": [status.value for status in OpStatus]},
            "attempts": {"type": "array", "items": _ref("Attempt"), "description": "The latest calls, oldest first."},
            "held_off": _HELD_OFF,
        },
        required=["id", "create_time", "update_time", "gid", "branch_id", "op", "status"],
        text="One operation of a branch: an action and its compensation are two. What is empty has no key.",
    ),
    "Found": _object(
        {
            "transaction": {"anyOf": [_ref("Transaction"), {"type": "null"}], "description": "null: there is none."},
            "branches": {"type": "array", "items": _ref("BranchOp")},
        },
        required=["transaction", "branches"],
    ),
    "Page": _object(
        {
            "transactions": {"type": ["array", "null"], "items": _ref("Transaction")},
            "next_position": _string("For the next page; empty: this is the last one."),
        },
        required=["transactions", "next_position"],
    ),
    "Progress": _object(
        {"transaction": _ref("Transaction"), "progresses": {"type": "array", "items": _ref("BranchOp")}},
        required=["transaction", "progresses"],
    ),
    "KeyValue": _object(
        {
            "id": _integer("Its row; the `position` of lists."),
            "create_time": _time("When it was made."),
            "update_time": _time("When it last changed."),
            "cat": _string("Its category; topics have `topics`."),
            "k": _string("Its key; a topic's name."),
            "v": _string("Its value; a topic's subscribers as JSON.", contentMediaType="application/json"),
            "version": _integer("Grows with each change."),
        },
        required=["id", "create_time", "update_time", "cat", "k", "v", "version"],
    ),
    "JsonRpcReply": _object(
        {
            "jsonrpc": _const(JSON_RPC_VERSION),
            "id": {"type": ["string", "number"], "description": "Of the request; empty if it could not be read."},
            "error": {
                "anyOf": [
                    _object({"code": {"type": "integer"}, "message": _MESSAGE}, required=["code", "message"]),
                    {"type": "null"},
                ],
                "description": "-32901: a definite failure. -32902: it goes on by itself. Others: an error.",
            },
            "result": {"description": "Of `newGid` an object with the gid."},
        },
        required=["jsonrpc", "id", "error", "result"],
    ),
}

_JSON: Final = "application/json"
_PLAIN: Final = "text/plain"


def _answer(text: str, schema: Json, *, media_type: str = _JSON) -> Json:
    return {"description": text, "content": {media_type: {"schema": schema}}}


_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}, "example": RETRY_AFTER_S}
}

_RESPONSES: Final[dict[str, Json]] = {
    "BadRequest": _answer("It cannot succeed as it stands. Nothing was stored.", _ref("Error")),
    "NotFound": _answer("There is no such transaction or topic.", _ref("Error")),
    "Failure": _answer("Definite: it is rolled back, or its status does not allow this.", _ref("Failure")),
    "TooLarge": _answer("It exceeds a bound. Nothing was stored.", _ref("Error")),
    "Ongoing": _answer("It was accepted, has not ended yet, and goes on by itself.", _ref("Ongoing")),
    "Bug": _answer("Unexpected. The message has the number of the incident in the log.", _ref("Error")),
    "Unavailable": {
        **_answer("The store is away, or the coordinator is stopping or overloaded.", _ref("Error")),
        "headers": _RETRY_AFTER,
    },
}
_NAMES: Final = {
    400: "BadRequest",
    404: "NotFound",
    STATUS_FAILURE: "Failure",
    413: "TooLarge",
    STATUS_ONGOING: "Ongoing",
    500: "Bug",
    503: "Unavailable",
}

# -- paths ----------------------------------------------------------------------------


def _operation(
    tag: str,
    name: str,
    summary: str,
    *,
    answer: Json,
    statuses: Sequence[int] = (),
    text: str = "",
    takes: Sequence[Json] = (),
    body: Json | None = None,
    replaced_by: str = "",
) -> Json:
    """An operation. Any may be refused with 400 (its query string, if nothing else), and may meet a bug."""
    codes = sorted({400, 500, *statuses, *((413,) if body else ())})
    made: Json = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": answer,
            **{str(code): {"$ref": f"#/components/responses/{_NAMES[code]}"} for code in codes},
        },
    }
    if takes:
        made["parameters"] = list(takes)
    if body:
        made["requestBody"] = body
    if replaced_by:
        made["deprecated"] = True
        text = f"The same as {replaced_by}. {text}".rstrip()
    return {**made, "description": text} if text else made


def _body(schemas: Sequence[str], examples: Mapping[str, Json]) -> Json:
    [first, *others] = schemas
    schema = _ref(first) if not others else {"oneOf": [_ref(name) for name in schemas]}
    return {
        "required": True,
        "content": {_JSON: {"schema": schema, "examples": {name: {"value": it} for name, it in examples.items()}}},
    }


def _parameter(name: str, schema: Json, *, required: bool = False, place: str = "query") -> Json:
    text = schema.get("description", "")
    rest = {key: value for key, value in schema.items() if key != "description"}
    parameter = {"name": name, "in": place, "required": required, "description": text, "schema": rest}
    # An optional one that is empty is as one that is not there.
    return parameter if required else {**parameter, "allowEmptyValue": True}


_DONE: Final = _answer("It is done, and on disk.", _ref("Success"))
_STEP: Final = {"action": "http://order:8081/create", "compensate": "http://order:8081/cancel"}

_OPENED: Final[Mapping[str, Json]] = {
    "tcc": {"gid": "tcc-4711", "trans_type": "tcc", "timeout_to_fail": 60},
    "xa": {"gid": "xa-4711", "trans_type": "xa"},
    "msg": {
        "gid": "msg-4711",
        "trans_type": "msg",
        "steps": [{"action": "http://mail:8083/send"}],
        "payloads": ['{"to":"ann"}'],
        "query_prepared": "http://order:8081/queryPrepared",
    },
}
_SUBMITTED: Final[Mapping[str, Json]] = {
    "saga": {
        "gid": "saga-4711",
        "trans_type": "saga",
        "steps": [_STEP, {"action": "http://storage:8082/deduct", "compensate": "http://storage:8082/restore"}],
        "payloads": ['{"goods":1}', '{"goods":1,"quantity":2}'],
        "wait_result": True,
    },
    "a saga whose steps run side by side": {
        "gid": "saga-4712",
        "trans_type": "saga",
        "steps": [_STEP, _STEP],
        "payloads": ["{}", "{}"],
        "custom_data": json.dumps({"concurrent": True, "orders": {"1": [0]}}),
    },
    "tcc": {"gid": "tcc-4711", "trans_type": "tcc", "wait_result": True},
    "xa": {"gid": "xa-4711", "trans_type": "xa"},
    "msg": _OPENED["msg"],
    "a message to all subscribers, in five seconds": {
        "gid": "msg-4713",
        "trans_type": "msg",
        "steps": [{"action": "topic://order-created"}],
        "payloads": ["{}"],
        "custom_data": json.dumps({"delay": 5}),
    },
    "the end of a workflow": {
        "gid": "workflow-4711",
        "trans_type": "workflow",
        "req_extra": {"status": "succeed", "result": "e30="},
    },
}
_BRANCHES: Final[Mapping[str, Json]] = {
    "tcc": {
        "gid": "tcc-4711",
        "trans_type": "tcc",
        "branch_id": "01",
        "confirm": "http://storage:8082/confirm",
        "cancel": "http://storage:8082/cancel",
        "data": '{"goods":1,"quantity":2}',
    },
    "xa": {"gid": "xa-4711", "trans_type": "xa", "branch_id": "01", "url": "http://storage:8082/xa"},
    "workflow": {
        "gid": "workflow-4711",
        "trans_type": "workflow",
        "branch_id": "01",
        "op": "action",
        "status": "succeed",
        "data": '{"reserved":2}',
    },
}
_WORKFLOW: Final = {
    "gid": "workflow-4711",
    "trans_type": "workflow",
    "query_prepared": "http://order:8081/workflow/resume",
    "custom_data": json.dumps({"name": "place_order", "data": "e30="}),
}
_NAMED: Final = {"gid": {"gid": "saga-4711"}}


def _paths() -> Json:
    transactions = {
        "prepare": _operation(
            "transactions",
            "prepare",
            "Open a TCC, an XA or a message",
            text="A saga is not prepared: it is sent whole to `submit`. A message's actions are settled here.",
            body=_body(["Tcc", "Xa", "Msg"], _OPENED),
            answer=_DONE,
            statuses=[STATUS_FAILURE, 503],
        ),
        "prepareWorkflow": _operation(
            "transactions",
            "prepareWorkflow",
            "Open a workflow, or look how far it got",
            body=_body(["Workflow"], {"workflow": _WORKFLOW}),
            answer=_answer("The workflow, with the steps that are stored.", _ref("Progress")),
            statuses=[503],
        ),
        "registerBranch": _register_branch("registerBranch"),
        "submit": _operation(
            "transactions",
            "submit",
            "Decide a transaction forward",
            text="With `wait_result` the answer comes after one pass of processing: ended, or waiting for a repetition."
            " 404: a workflow that was never opened. A TCC, an XA or a message that was not prepared is made.",
            body=_body(["Saga", "Tcc", "Xa", "Msg", "WorkflowEnd"], _SUBMITTED),
            answer=_DONE,
            statuses=[404, STATUS_FAILURE, STATUS_ONGOING, 503],
        ),
        "abort": _operation(
            "transactions",
            "abort",
            "Cancel a prepared transaction",
            text="A saga cannot be aborted: it turns round by itself. Only its participant ends a workflow.",
            body=_body(["Abort"], {"abort": {"gid": "tcc-4711", "rollback_reason": "the customer left"}}),
            answer=_DONE,
            statuses=[404, STATUS_FAILURE, STATUS_ONGOING, 503],
        ),
        "forceStop": _operation(
            "operators",
            "forceStop",
            "End an unfinished transaction as failed",
            text="Nothing is compensated, and no further call is made: what it has done stays.",
            body=_body(["Gid"], _NAMED),
            answer=_DONE,
            statuses=[404, STATUS_FAILURE, 503],
        ),
        "resetNextCronTime": _operation(
            "operators",
            "resetNextCronTime",
            "Go on with a transaction now",
            text="Whatever delay it is in.",
            body=_body(["Gid"], _NAMED),
            answer=_DONE,
            statuses=[404, 503],
        ),
    }
    old_names = {name: _register_branch(name) for name in ("registerTccBranch", "registerXaBranch")}
    posts = {f"{API_BASE}/{name}": {"post": operation} for name, operation in (transactions | old_names).items()}
    return {**posts, **_queries(), **_topics(), **_process()}


def _register_branch(name: str) -> Json:
    return _operation(
        "transactions",
        name,
        "Add a branch, or a workflow's result of a step",
        text="To a TCC before its try is called, to an XA once its branch is prepared. Each value is a string.",
        body=_body(["TccBranch", "XaBranch", "WorkflowStep"], _BRANCHES),
        answer=_DONE,
        statuses=[STATUS_FAILURE, 503],
        replaced_by="" if name == "registerBranch" else "`registerBranch`, for old clients",
    )


def _queries() -> Json:
    limit = _parameter("limit", _integer("How many at most; more than 1000 are 1000.", minimum=1, default=100))
    position = _parameter("position", _integer("Those after this `next_position` of the page before.", minimum=0))
    optional_gid = _parameter("gid", _string("One transaction; the other parameters do not count.", format="gid"))
    moments = [
        _parameter(f"createTime{end}", _integer(f"{text}, in milliseconds since 1970, inclusive.", minimum=0))
        for end, text in (("Start", "Opened not before"), ("End", "Opened not after"))
    ]
    category = _string("A category; `topics` for topics.", examples=["topics"])
    documents = {"type": "array", "items": _ref("KeyValue")}
    return {
        f"{API_BASE}/newGid": {
            "get": _operation(
                "transactions",
                "newGid",
                "Get a gid that nobody has",
                answer=_answer(
                    "A new gid.",
                    _object(
                        {RESULT_KEY: _const(ResultWord.SUCCESS), "gid": {"type": "string"}},
                        required=[RESULT_KEY, "gid"],
                    ),
                ),
            )
        },
        f"{API_BASE}/query": {
            "get": _operation(
                "transactions",
                "query",
                "Look at a transaction",
                text="Its branch operations, and the latest calls of each.",
                takes=[_parameter("gid", _string("The global transaction.", minLength=1, format="gid"), required=True)],
                answer=_answer("The transaction.", _ref("Found")),
                statuses=[503],
            )
        },
        f"{API_BASE}/all": {
            "get": _operation(
                "transactions",
                "all",
                "List transactions, newest first",
                takes=[
                    optional_gid,
                    _parameter("status", _string(f"One of {', '.join(Status)}; another one matches nothing.")),
                    _parameter("transType", _string(f"One of {', '.join(Pattern)}; another one matches nothing.")),
                    *moments,
                    limit,
                    position,
                ],
                answer=_answer("A page, without branches.", _ref("Page")),
                statuses=[503],
            )
        },
        f"{API_BASE}/resetCronTime": {
            "get": _operation(
                "operators",
                "resetCronTime",
                "Go on now with transactions that would wait for long",
                takes=[
                    _parameter(
                        "timeout", _integer("Only those that are due later than this, in seconds from now.", minimum=0)
                    ),
                    _parameter("limit", _integer("How many at most.", minimum=1, default=100)),
                ],
                answer=_answer(
                    "How many they were.",
                    _object(
                        {"succeed_count": {"type": "integer"}, "has_remaining": {"type": "boolean"}},
                        required=["succeed_count", "has_remaining"],
                    ),
                ),
                statuses=[503],
            )
        },
        f"{API_BASE}/queryKV": {
            "get": _operation(
                "topics",
                "queryKV",
                "Look at a document",
                takes=[_parameter("cat", category), _parameter("key", _string("With `cat`. Without it: a list."))],
                answer=_answer("What was found.", _object({"kv": documents}, required=["kv"])),
                statuses=[503],
            )
        },
        f"{API_BASE}/scanKV": {
            "get": _operation(
                "topics",
                "scanKV",
                "List documents, newest first",
                takes=[_parameter("cat", category), limit, position],
                answer=_answer(
                    "A page.",
                    _object(
                        {"kv": documents, "next_position": _string("For the next page; empty: this is the last one.")},
                        required=["kv", "next_position"],
                    ),
                ),
                statuses=[503],
            )
        },
    }


def _topics() -> Json:
    topic = _string("The topic's name.", minLength=1, examples=["order-created"])
    url = _string(f"The subscriber: {_URL_FORM}.", minLength=1, format="branch-url")
    named = [_parameter("topic", topic, required=True), _parameter("url", url, required=True)]
    remark = _parameter("remark", _string("For people.", maxLength=200))
    paths: Json = {
        f"{API_BASE}/topic/{{topic}}": {
            "delete": _operation(
                "topics",
                "deleteTopic",
                "Delete a topic with its subscribers",
                text="Messages that are prepared or under way are not touched.",
                takes=[_parameter("topic", topic, required=True, place="path")],
                answer=_DONE,
                statuses=[404, 503],
            )
        }
    }
    subscribers = {
        "subscribe": ("Let one more URL get a topic's messages", [*named, remark], [STATUS_FAILURE, 413]),
        "unsubscribe": ("Let a URL get a topic's messages no more", named, [404]),
    }
    for name, (summary, takes, statuses) in subscribers.items():
        paths[f"{API_BASE}/{name}"] = {
            method: _operation(
                "topics",
                operation_id,
                summary,
                text="The parameters stand in the query string.",
                takes=takes,
                answer=_DONE,
                statuses=[*statuses, 503],
                replaced_by=replaced_by,
            )
            for method, operation_id, replaced_by in (
                ("post", name, ""),
                ("get", f"{name}ByGet", "POST, which no proxy or cache repeats unasked"),
            )
        }
    return paths


def _process() -> Json:
    def says(key: str, value: Json, text: str) -> Json:
        return _answer(text, _object({key: value}, required=[key]))

    ok, ready = _const("ok"), _const("ready")
    version = _string("Of the coordinator.", examples=[__version__])
    paths = {
        f"{API_BASE}/version": ("version", "Get the version", says("version", version, "The version."), []),
        "/api/ping": ("ping", "Get an answer, to any method", says("msg", _const("pong"), "Here it is."), []),
        "/api/metrics": ("metrics", "Get metrics for Prometheus", _TEXT_OF_METRICS, []),
        "/healthz": ("healthz", "Ask whether the process lives", says("status", ok, "It does."), []),
        "/readyz": ("readyz", "Ask whether it can take work", says("status", ready, "It can."), [503]),
        OPENAPI_PATH: ("openapi", "Get this document", _answer("OpenAPI 3.1.", {"type": "object"}), []),
    }
    made: Json = {
        path: {"get": _operation("process", name, summary, answer=answer, statuses=statuses)}
        for path, (name, summary, answer, statuses) in paths.items()
    }
    reply = _ref("JsonRpcReply")
    call = _operation(
        "transactions",
        "jsonRpc",
        "The same over JSON-RPC",
        text="Outcomes stand in `error`; the status is 200 unless the request could not be read.",
        body=_body(
            ["JsonRpcRequest"],
            {
                "submit": {"jsonrpc": "2.0", "id": "1", "method": "submit", "params": _SUBMITTED["tcc"]},
                "newGid": {"jsonrpc": "2.0", "id": 2, "method": "newGid"},
            },
        ),
        answer=_answer("How it went. An outcome worth another try has Retry-After.", reply),
    )
    call["responses"] |= {
        "400": _answer("It could not be read.", reply),
        "413": _answer("It is too large to be read.", reply),
    }
    call["responses"].pop("500")
    return {JSON_RPC_PATH: {"post": call}, **made}


_TEXT_OF_METRICS: Final = _answer("In the text format.", {"type": "string"}, media_type=_PLAIN)
