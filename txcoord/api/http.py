"""The DTM HTTP API, and the process's own pages, as one plain ASGI application.

These paths are hot: a request costs one dictionary look-up to route, and no framework.
An adapter holds no rule: it parses, calls the service, and maps what comes back by the
tables in `txcoord.api.replies`. Nothing that a client sends may end in a 500.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import Any, Final
from urllib.parse import parse_qs

from txcoord import __version__, metrics
from txcoord.api import answers, replies
from txcoord.api.answers import Answer
from txcoord.api.jsonrpc import JsonRpcApi, of_unread
from txcoord.api.openapi import OPENAPI_PATH, document
from txcoord.api.operations import Operations
from txcoord.api.queries import (
    Query,
    gid_of,
    list_transactions,
    optional_number,
    query_kv,
    query_transaction,
    scan_kv,
    whole_number,
)
from txcoord.api.replies import Reply
from txcoord.api.views import branch_views, transaction_view
from txcoord.api.wire import decode_branch, decode_trans
from txcoord.errors import InvalidRequestError, RequestTooLargeError
from txcoord.protocol import API_BASE, JSON_RPC_PATH, RESULT_KEY, ResultWord
from txcoord.service import Service

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

RESET_LIMIT: Final = 100
RESET_LIMIT_MAX: Final = 10_000
BODY_TIMEOUT_S: Final = 30.0
_DROPPED_AT_MOST: Final = 16
"""How much of a body that is too large is read, in multiples of what is allowed."""
_QUERY_FIELDS_MAX: Final = 100
_CENTURY_S: Final = 100 * 366 * 24 * 3600

_PING_PATH: Final = "/api/ping"
_TOPIC_PATH: Final = f"{API_BASE}/topic/"


class _ClientGoneError(Exception):
    """The connection ended before the request did: there is nobody to answer."""


class _Route:
    """One method and path: who handles it, and the metrics of it."""

    __slots__ = ("metrics", "of_error", "on_body", "on_name", "on_query")

    def __init__(
        self,
        api: str,
        *,
        on_body: Callable[[bytes], Awaitable[Answer]] | None = None,
        on_query: Callable[[Query], Awaitable[Answer]] | None = None,
        on_name: Callable[[str], Awaitable[Answer]] | None = None,
        of_error: Callable[[Reply], Answer] = answers.of_reply,
    ) -> None:
        self.metrics = metrics.ApiMetrics(api)
        self.on_body = on_body
        self.on_query = on_query
        self.on_name = on_name
        """Gets the rest of the path."""
        self.of_error = of_error


class HttpApi:
    """ASGI application: requests in, calls of the service, answers out."""

    def __init__(self, service: Service, *, max_body_bytes: int) -> None:
        self._service = service
        self._operations = Operations(service)
        self._max_body_bytes = max_body_bytes
        posts: Mapping[str, Callable[[bytes], Awaitable[Answer]]] = {
            "prepare": self._prepare,
            "submit": self._submit,
            "abort": self._abort,
            "registerBranch": self._register_branch,
            # The names that old clients in PHP and Node use.
            "registerTccBranch": self._register_branch,
            "registerXaBranch": self._register_branch,
            "prepareWorkflow": self._prepare_workflow,
            "forceStop": self._force_stop,
            "resetNextCronTime": self._reset_next_cron_time,
        }
        gets: Mapping[str, Callable[[Query], Awaitable[Answer]]] = {
            f"{API_BASE}/version": self._version,
            f"{API_BASE}/newGid": self._new_gid,
            f"{API_BASE}/query": self._query,
            f"{API_BASE}/all": self._all,
            f"{API_BASE}/resetCronTime": self._reset_cron_time,
            f"{API_BASE}/subscribe": self._subscribe,
            f"{API_BASE}/unsubscribe": self._unsubscribe,
            f"{API_BASE}/queryKV": self._query_kv,
            f"{API_BASE}/scanKV": self._scan_kv,
            "/api/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            OPENAPI_PATH: self._openapi,
        }
        # The label is DTM's: the last segment of the path, in lower case.
        self._routes = {("POST", f"{API_BASE}/{name}"): _Route(name.lower(), on_body=on) for name, on in posts.items()}
        self._routes["POST", JSON_RPC_PATH] = _Route("json-rpc", on_body=JsonRpcApi(service).answer, of_error=of_unread)
        for path, on_query in gets.items():
            self._routes["GET", path] = _Route(path.rpartition("/")[2].lower(), on_query=on_query)
        # DTM changes topics by GET. A POST says the same, and no proxy, cache or browser repeats it unasked.
        for path in (f"{API_BASE}/subscribe", f"{API_BASE}/unsubscribe"):
            self._routes["POST", path] = self._routes["GET", path]
        self._topic_route = _Route("topic", on_name=self._delete_topic)
        self._ping_route = _Route("ping", on_query=self._ping)
        self._other_route = _Route("other", on_query=self._not_found)
        self._document = answers.ok(document())

    @property
    def offered(self) -> frozenset[tuple[str, str]]:
        """Method and path of each route, as the document has them."""
        return frozenset((*self._routes, ("GET", _PING_PATH), ("DELETE", f"{_TOPIC_PATH}{{topic}}")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"only HTTP is served here, not {scope['type']}")
        started = perf_counter()
        route = self._routes.get((scope["method"], scope["path"])) or self._find(scope["method"], scope["path"])
        try:
            answer = await self._answer(route, scope, receive)
        except _ClientGoneError:
            return
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", answer.content_type),
                    (b"content-length", b"%d" % len(answer.body)),
                    *answer.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})
        route.metrics.answered(answer.status, perf_counter() - started)

    def _find(self, method: str, path: str) -> _Route:
        path = _plain(path)
        if path == _PING_PATH:
            return self._ping_route
        if method == "DELETE" and path.startswith(_TOPIC_PATH):
            return self._topic_route
        return self._routes.get((method, path), self._other_route)

    async def _answer(self, route: _Route, scope: Scope, receive: Receive) -> Answer:
        try:
            if route.on_body is not None:
                return await route.on_body(await self._read_body(receive))
            if route.on_name is not None:
                return await route.on_name(_plain(scope["path"]).removeprefix(_TOPIC_PATH))
            assert route.on_query is not None
            return await route.on_query(_parse_query(scope["query_string"]))
        except _ClientGoneError:
            raise
        except Exception as error:  # noqa: BLE001 - the last resort, which logs it
            return route.of_error(replies.of_error(error) or replies.of_bug(error, where=scope["path"]))

    async def _read_body(self, receive: Receive) -> bytes:
        # From the start: a client that announces a body and sends none would be kept for ever.
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body, more = await _read_piece(receive)
                if more:
                    return await self._read_on(receive, body)
        except TimeoutError:
            raise InvalidRequestError(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return body

    async def _read_on(self, receive: Receive, body: bytes) -> bytes:
        pieces, size, more = [body], len(body), True
        while more:
            body, more = await _read_piece(receive)
            size += len(body)
            if size <= self._max_body_bytes:
                pieces.append(body)
                continue
            # The rest is read and dropped: closing on a client that still sends would reset
            # the connection, and the answer with it. But not for ever.
            pieces.clear()
            if size > _DROPPED_AT_MOST * self._max_body_bytes:
                break
        if size > self._max_body_bytes:
            raise self._too_large()
        return b"".join(pieces)

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"the body is larger than {self._max_body_bytes} bytes, the most that max_body_bytes allows"
        )

    # -- transactions ----------------------------------------------------------------

    async def _prepare(self, body: bytes) -> Answer:
        return answers.of_reply(await self._operations.prepare(decode_trans(body)))

    async def _prepare_workflow(self, body: bytes) -> Answer:
        workflow = await self._operations.prepare_workflow(decode_trans(body))
        view = {"progresses": branch_views(workflow), "transaction": transaction_view(workflow)}
        return answers.ok_with_words(view)

    async def _submit(self, body: bytes) -> Answer:
        return answers.of_reply(await self._operations.submit(decode_trans(body)))

    async def _abort(self, body: bytes) -> Answer:
        return answers.of_reply(await self._operations.abort(decode_trans(body)))

    async def _register_branch(self, body: bytes) -> Answer:
        return answers.of_reply(await self._operations.register_branch(decode_branch(body)))

    async def _force_stop(self, body: bytes) -> Answer:
        await self._service.force_stop(gid_of(decode_trans(body).gid))
        return answers.SUCCESS

    async def _reset_next_cron_time(self, body: bytes) -> Answer:
        await self._service.reset_next_cron_time(gid_of(decode_trans(body).gid))
        return answers.SUCCESS

    async def _reset_cron_time(self, query: Query) -> Answer:
        timeout_s = optional_number(query, "timeout", highest=_CENTURY_S)
        limit = min(whole_number(query, "limit", default=RESET_LIMIT, lowest=1), RESET_LIMIT_MAX)
        count = await self._service.reset_cron_time(timeout_s=timeout_s, limit=limit)
        return answers.ok({"has_remaining": count == limit, "succeed_count": count})

    async def _query(self, query: Query) -> Answer:
        return answers.ok(await query_transaction(self._service, query.get("gid", "")))

    async def _all(self, query: Query) -> Answer:
        return answers.ok(await list_transactions(self._service, query))

    # -- topics ----------------------------------------------------------------------

    async def _subscribe(self, query: Query) -> Answer:
        topic, url, remark = (query.get(name, "") for name in ("topic", "url", "remark"))
        return answers.of_reply(await self._operations.subscribe(topic, url, remark))

    async def _unsubscribe(self, query: Query) -> Answer:
        return answers.of_reply(await self._operations.unsubscribe(query.get("topic", ""), query.get("url", "")))

    async def _delete_topic(self, topic: str) -> Answer:
        return answers.of_reply(await self._operations.delete_topic(topic))

    async def _query_kv(self, query: Query) -> Answer:
        return answers.ok(await query_kv(self._service, query))

    async def _scan_kv(self, query: Query) -> Answer:
        return answers.ok(await scan_kv(self._service, query))

    # -- the process -----------------------------------------------------------------

    async def _version(self, _query: Query) -> Answer:
        return answers.ok({"version": __version__})

    async def _new_gid(self, _query: Query) -> Answer:
        # Strings only: the Go client decodes this into a map of strings.
        return answers.ok({RESULT_KEY: ResultWord.SUCCESS, "gid": self._service.new_gid()})

    async def _ping(self, _query: Query) -> Answer:
        return answers.ok({"msg": "pong"})

    async def _metrics(self, _query: Query) -> Answer:
        return Answer(200, metrics.exposition(await self._service.unfinished.by_status()), metrics.CONTENT_TYPE)

    async def _healthz(self, _query: Query) -> Answer:
        return answers.ok({"status": "ok"})

    async def _readyz(self, _query: Query) -> Answer:
        await self._service.check_ready()
        return answers.ok({"status": "ready"})

    async def _openapi(self, _query: Query) -> Answer:
        return self._document

    async def _not_found(self, _query: Query) -> Answer:
        return answers.NOT_FOUND


def _plain(path: str) -> str:
    # Clients that are told a base URL that ends with a slash add a second one.
    return re.sub("/{2,}", "/", path).rstrip("/")


async def _read_piece(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise _ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


# -- what stands in a query string ----------------------------------------------------


def _parse_query(query_string: bytes) -> Query:
    if not query_string:
        return {}
    try:
        fields = parse_qs(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX)
    except ValueError as error:
        raise InvalidRequestError(f"the query string cannot be read: {error}") from error
    return {name: values[0] for name, values in fields.items()}
