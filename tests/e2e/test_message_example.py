"""The services of the message example: users on one side, gift and mailbox on the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from examples.gift import make_gift_service
from examples.mail import make_mail_service
from examples.users import make_users_service
from sdk.tests.client_support import Answer, ScriptedCoordinator, scripted_coordinator

OK = Answer()
BUSY = Answer(503, {"message": "busy"})


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


@pytest.fixture
def served() -> Iterator[tuple[ScriptedCoordinator, str]]:
    with scripted_coordinator() as (server, url):
        yield server, url
        assert not server.unused


class Services:
    def __init__(self, server: ScriptedCoordinator, **clients: httpx.AsyncClient) -> None:
        self.server = server
        self._clients = clients

    async def register(self) -> httpx.Response:
        return await self._clients["users"].post("/users", json={"name": "ada"})

    async def get(self, service: str, path: str) -> object:
        return (await self._clients[service].get(path)).json()

    async def check_back(self) -> int:
        query = {"gid": self.gid, "trans_type": "msg", "branch_id": "00", "op": "msg"}
        return (await self._clients["users"].get("/query-prepared", params=query)).status_code

    async def deliver(self) -> list[str]:
        """Call what the message names, as the coordinator does."""
        message = self.server.requests[0].body
        passages = []
        for number, (step, payload) in enumerate(zip(message["steps"], message["payloads"], strict=True), start=1):
            url = httpx.URL(step["action"])
            query = {"gid": self.gid, "trans_type": "msg", "branch_id": f"{number:02d}", "op": "action"}
            answer = await self._clients[url.host].post(url.path, params=query, json=json.loads(payload))
            passages.append(answer.json()["barrier"])
        return passages

    @property
    def gid(self) -> str:
        return str(self.server.requests[0].body["gid"])


@pytest.fixture(params=["sqlite", "mysql", "postgres"])
async def services(
    request: pytest.FixtureRequest,
    make_database: Callable[[str], str],
    served: tuple[ScriptedCoordinator, str],
) -> AsyncIterator[Services]:
    server, url = served
    users = make_users_service(
        make_database(request.param),
        coordinator=url,
        own_url="http://users",
        gift_url="http://gift",
        mail_url="http://mail",
    )
    async with AsyncExitStack() as stack:
        clients = {
            "users": users,
            "gift": make_gift_service(make_database(request.param)),
            "mail": make_mail_service(make_database(request.param)),
        }
        yield Services(server, **{name: await stack.enter_async_context(client_of(clients[name])) for name in clients})


async def test_a_user_gets_one_gift_and_one_mail(services: Services) -> None:
    services.server.answers("/prepare", OK)
    services.server.answers("/submit", OK)

    assert (await services.register()).json() == {"gid": services.gid, "name": "ada"}
    assert await services.deliver() == ["run", "run"]
    assert await services.deliver() == ["duplicate", "duplicate"]

    assert await services.get("users", "/users") == ["ada"]
    assert await services.get("gift", "/gifts/ada") == [100]
    assert await services.get("mail", "/mails/ada") == ["Welcome, ada"]
    assert services.server.requests[0].body["query_prepared"] == "http://users/query-prepared"


async def test_a_name_is_given_once(services: Services) -> None:
    services.server.answers("/prepare", OK, OK)
    services.server.answers("/submit", OK)
    services.server.answers("/abort", OK)
    await services.register()
    again = await services.register()
    assert (again.status_code, again.json()) == (409, {"detail": "there is a user ada already"})
    assert services.server.paths == ["/prepare", "/submit", "/prepare", "/abort"]


async def test_a_user_whose_submit_is_lost_is_found_by_the_check_back(services: Services) -> None:
    services.server.answers("/prepare", OK)
    services.server.answers("/submit", *[BUSY] * 5)
    assert (await services.register()).status_code == 200
    assert await services.check_back() == 200


async def test_nobody_is_registered_without_a_coordinator(services: Services) -> None:
    services.server.answers("/prepare", *[BUSY] * 5)
    assert (await services.register()).status_code == 503
    assert await services.get("users", "/users") == []
    assert await services.check_back() == 409
