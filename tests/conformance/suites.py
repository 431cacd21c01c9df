"""Which tests speak for what: the rows of the page's tables.

Of a suite, a row tells the head; where several have the same, they make one row. Which column a test
counts for is read from its parameters, unless the suite has a store of its own. A test without either
counts for none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tests.conformance import modules as m


class Store(StrEnum):
    """Where the coordinator keeps transactions, or participants their data and the barrier's rows."""

    MEMORY = "memory"
    SQLITE = "SQLite"
    MARIADB = "MariaDB"
    POSTGRESQL = "PostgreSQL"
    REDIS = "Redis"


STORES_BY_PARAMETER = {
    "memory": Store.MEMORY,
    "sqlite": Store.SQLITE,
    "mysql": Store.MARIADB,
    "mariadb": Store.MARIADB,
    "aiomysql": Store.MARIADB,
    "asyncmy": Store.MARIADB,
    "pymysql": Store.MARIADB,
    "postgres": Store.POSTGRESQL,
    "postgresql": Store.POSTGRESQL,
    "asyncpg": Store.POSTGRESQL,
    "psycopg": Store.POSTGRESQL,
    "redis": Store.REDIS,
}
"""What stands in the parameters of a test: a store, or a driver of one. The first counts."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of a module that speak for one row."""

    head: tuple[str, ...]
    """The first cells of the row."""
    module: str
    having: tuple[str, ...] = ()
    """Patterns that all have to be found in a test's name, parameters included."""
    lacking: str = ""
    """A pattern that must not be found in it."""
    store: Store | None = None
    """Of each of these tests, whatever their parameters name."""

    def counts(self, name: str) -> bool:
        if self.lacking and re.search(self.lacking, name):
            return False
        return all(re.search(pattern, name) for pattern in self.having)


WIRE = "wire protocol"
SDK = "txcoord_sdk"
GO, PYTHON, JAVA = "DTM's Go client", "DTM's Python client", "DTM's Java client"

HTTP = "HTTP"
JSON_RPC = "JSON-RPC"
GRPC = "gRPC"
GRPC_BRANCHES = "HTTP; branches gRPC"
"""The coordinator is called over HTTP, and calls over gRPC."""

_HTTP_PARAMETER, _GRPC_PARAMETER = r"[\[-]http\b", r"[\[-]grpc\b"
_BOTH_PARAMETER = r"[\[-]both\b"
_BY_CLIENT = {GO: r"[\[-]go\b", PYTHON: r"[\[-]python\b", JAVA: r"[\[-]java\b"}

# Names of the tests of modules that speak for several patterns.
_SAGAS_OF_CLIENTS = r"saga|test_the_coordinator_gives_out_a_gid\[|lost_answer|branch_headers_reach"
_TCCS_OF_CLIENTS = r"tcc|test_a_confirm|test_a_cancel"
_SAGAS_OVER_JSON_RPC = "_saga|failure_turns|error_and_ongoing|mixed|without_the_protocol|after_the_end|payloads"
_SAGAS_OF_SDK = r"saga|test_an_action|concurrent_steps|empty_url|participant_that_cannot"
_TCCS_OF_SDK = r"_tcc_|_try_|test_a_participant_has_branches|error_in_the_block"
_MESSAGES_OF_SDK = r"message|check_back|local_transaction|commit_that_failed"


def _grpc_on_the_wire(pattern: str, having: str, lacking: str = "") -> tuple[Suite, Suite]:
    return (
        Suite((pattern, GRPC, WIRE), m.GRPC, (having, _GRPC_PARAMETER), lacking),
        Suite((pattern, GRPC_BRANCHES, WIRE), m.GRPC, (having, _HTTP_PARAMETER), lacking),
    )


def _grpc_of_sdk(pattern: str, module: str, having: str) -> tuple[Suite, Suite]:
    return (
        Suite((pattern, GRPC, SDK), module, (having, _GRPC_PARAMETER), store=Store.MEMORY),
        Suite((pattern, GRPC_BRANCHES, SDK), module, (having, _HTTP_PARAMETER), store=Store.MEMORY),
    )


def _every_store_of_sdk(pattern: str, having: str) -> tuple[Suite, Suite, Suite]:
    return (
        Suite((pattern, HTTP, SDK), m.SDK_PATTERNS, (having, _HTTP_PARAMETER)),
        Suite((pattern, GRPC, SDK), m.SDK_PATTERNS, (having, _GRPC_PARAMETER)),
        Suite((pattern, GRPC_BRANCHES, SDK), m.SDK_PATTERNS, (having, _BOTH_PARAMETER)),
    )


def _of_go(pattern: str, having: str) -> tuple[Suite, Suite]:
    go = _BY_CLIENT[GO]
    return (
        Suite((pattern, HTTP, GO), m.INTEROP_GO, (having, go, r"-http\b")),
        Suite((pattern, GRPC, GO), m.INTEROP_GO, (having, go, r"-grpc\b")),
    )


PATTERNS = (
    Suite(("saga", HTTP, WIRE), m.SAGA),
    Suite(("saga", HTTP, WIRE), m.BARRIER, ("test_saga",)),
    Suite(("saga", HTTP, WIRE), m.REDIS, ("test_saga",)),
    Suite(("saga", HTTP, SDK), m.SDK_SAGA, store=Store.MEMORY),
    *(
        Suite(("saga", HTTP, client), m.INTEROP, (_SAGAS_OF_CLIENTS, language), "json_rpc")
        for client, language in _BY_CLIENT.items()
    ),
    Suite(("saga", JSON_RPC, WIRE), m.JSON_RPC, (_SAGAS_OVER_JSON_RPC,)),
    Suite(("saga", JSON_RPC, GO), m.INTEROP, ("json_rpc", "-saga-", _BY_CLIENT[GO])),
    *_grpc_on_the_wire("saga", r"saga|test_a_(header|url|participant)"),
    *_grpc_of_sdk("saga", m.SDK_GRPC, _SAGAS_OF_SDK),
    *_every_store_of_sdk("saga", "_saga_"),
    Suite(("saga", GRPC, GO), m.INTEROP_GO, (r"called_over_grpc\[.*-saga-|gives_out_a_gid|branch_headers",)),
    Suite(("TCC", HTTP, WIRE), m.TCC),
    Suite(("TCC", HTTP, WIRE), m.REDIS, ("test_tcc",)),
    Suite(("TCC", HTTP, SDK), m.SDK_TCC, store=Store.MEMORY),
    *(
        Suite(("TCC", HTTP, client), m.INTEROP, (_TCCS_OF_CLIENTS, language), "json_rpc")
        for client, language in _BY_CLIENT.items()
    ),
    Suite(("TCC", JSON_RPC, WIRE), m.JSON_RPC, ("_tcc|test_a_branch|takes_no_branches",)),
    Suite(("TCC", JSON_RPC, GO), m.INTEROP, ("json_rpc", "-tcc-", _BY_CLIENT[GO])),
    *_grpc_on_the_wire("TCC", "test_tcc|test_a_confirm"),
    *_grpc_of_sdk("TCC", m.SDK_GRPC, _TCCS_OF_SDK),
    *_every_store_of_sdk("TCC", "_tcc_"),
    Suite(("TCC", GRPC, GO), m.INTEROP_GO, (r"called_over_grpc\[.*-tcc-|adds_a_branch",)),
    Suite(("XA", HTTP, WIRE), m.XA_API),
    Suite(("XA", GRPC, WIRE), m.GRPC_API, ("of_an_xa",)),
    Suite(("XA", HTTP, SDK), m.XA, lacking="no_coordinator|needs_an_operator"),
    Suite(("XA", HTTP, SDK), m.XA, ("needs_an_operator",), store=Store.MEMORY),
    *_grpc_of_sdk("XA", m.SDK_GRPC_XA, ""),
    *_every_store_of_sdk("XA", "_xa_is"),
    *_of_go("XA", "_xa_"),
    Suite(("message", HTTP, WIRE), m.MSG),
    Suite(("message", HTTP, WIRE), m.WEBHOOK),
    Suite(("message", HTTP, SDK), m.BARRIER, ("test_message", r"-http\b")),
    Suite(("message", HTTP, SDK), m.REDIS, ("test_message", r"-http\b")),
    Suite(("message", JSON_RPC, WIRE), m.JSON_RPC, ("message|check_back|whatever_an_action",)),
    *_grpc_on_the_wire("message", "test_msg", "topic"),
    Suite(("message", GRPC, SDK), m.BARRIER, ("test_message", r"-grpc\b")),
    Suite(("message", GRPC, SDK), m.REDIS, ("test_message", r"-grpc\b")),
    *_grpc_of_sdk("message", m.SDK_GRPC, _MESSAGES_OF_SDK),
    *_every_store_of_sdk("message", "_message_"),
    *(
        Suite(("message", protocol, client), m.INTEROP_MSG, (_BY_CLIENT[client], rf"-{parameter}\b"))
        for client, protocol, parameter in ((GO, HTTP, "http"), (GO, GRPC, "grpc"), (PYTHON, HTTP, "http"))
    ),
    Suite(("topics", HTTP, WIRE), m.TOPICS, lacking="_sdk_"),
    Suite(("topics", HTTP, SDK), m.TOPICS, ("_sdk_", r"-http\b")),
    Suite(("topics", HTTP, GO), m.INTEROP_MSG, ("topic", _BY_CLIENT[GO])),
    *_grpc_on_the_wire("topics", "of_a_topic"),
    Suite(("topics", GRPC, WIRE), m.GRPC_API, ("topic",)),
    Suite(("topics", GRPC, SDK), m.TOPICS, ("_sdk_", r"-grpc\b")),
    Suite(("topics", GRPC, SDK), m.SDK_GRPC, ("topic", _GRPC_PARAMETER), store=Store.MEMORY),
    Suite(("workflow", HTTP, WIRE), m.WORKFLOW),
    Suite(("workflow", HTTP, SDK), m.WORKFLOW_SDK, lacking=r"\[grpc|over_grpc", store=Store.MEMORY),
    *_grpc_on_the_wire("workflow", "test_workflow"),
    Suite(("workflow", GRPC, WIRE), m.GRPC_API, ("workflow",)),
    Suite(("workflow", GRPC, SDK), m.WORKFLOW_SDK, (r"\[grpc",), store=Store.MEMORY),
    Suite(("workflow", GRPC_BRANCHES, SDK), m.WORKFLOW_SDK, (r"over_grpc\[http",), store=Store.MEMORY),
    *_grpc_of_sdk("workflow", m.SDK_GRPC, "workflow"),
    *_every_store_of_sdk("workflow", "_workflow_is"),
    Suite(("workflow", HTTP, SDK), m.SDK_PATTERNS, ("workflow_of_xa",)),
    *_of_go("workflow", "workflow"),
)
"""Pattern, protocol, client; by the coordinator's store."""

_EVERY_DRIVER = "the barrier's rule, with every driver; no coordinator"
_BOTH_ENDS = "run through and taken back, balances exact"
_ANY_ORDER = "lost, doubled, late calls at every point"
_WITH_MESSAGE = "local transaction and message, with the check-back"

PARTICIPANTS = (
    Suite(("all", _EVERY_DRIVER), m.SDK_BARRIER),
    Suite(("all", _EVERY_DRIVER), m.SDK_BARRIER_REDIS, store=Store.REDIS),
    Suite(("saga", _BOTH_ENDS), m.BARRIER, ("test_saga",)),
    Suite(("saga", _BOTH_ENDS), m.REDIS, ("test_saga",), store=Store.REDIS),
    Suite(("saga", _BOTH_ENDS), m.GRPC, ("saga_grpc_barrier",)),
    Suite(("saga", _ANY_ORDER), m.DISORDER, ("saga",)),
    Suite(("TCC", _BOTH_ENDS), m.TCC, ("barrier",)),
    Suite(("TCC", _BOTH_ENDS), m.REDIS, ("test_tcc",), store=Store.REDIS),
    Suite(("TCC", _ANY_ORDER), m.DISORDER, ("tcc",)),
    Suite(("XA", "both phases, with every driver; no coordinator"), m.SDK_XA),
    Suite(("XA", "participant killed at each statement; no coordinator"), m.SDK_XA_CRASH),
    Suite(("XA", _ANY_ORDER), m.DISORDER, (r"-xa\b",), "workflow"),
    Suite(("message", _WITH_MESSAGE), m.BARRIER, ("test_message",)),
    Suite(("message", _WITH_MESSAGE), m.REDIS, ("test_message",), store=Store.REDIS),
    Suite(("message", f"{_WITH_MESSAGE}, with every driver; the coordinator is a script"), m.SDK_MESSAGE),
    Suite(
        ("message", f"{_WITH_MESSAGE}, with every driver; the coordinator is a script"),
        m.SDK_MESSAGE_REDIS,
        store=Store.REDIS,
    ),
    Suite(("message", _ANY_ORDER), m.DISORDER, ("message",)),
    Suite(("workflow", "XA steps"), m.WORKFLOW_SDK, ("xa",)),
    Suite(("workflow", "XA steps"), m.SDK_PATTERNS, ("workflow_of_xa", "-MariaDB"), store=Store.MARIADB),
    Suite(("workflow", "XA steps"), m.SDK_PATTERNS, ("workflow_of_xa", "-PostgreSQL"), store=Store.POSTGRESQL),
    Suite(("workflow", _ANY_ORDER), m.DISORDER, ("workflow",)),
)
"""Pattern, and what is shown; by the participants' database."""
