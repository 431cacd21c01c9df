"""The users service: registers users, and sends a message with each, so that a gift and a mail follow for certain.

python -m examples.users --port 8083 --database sqlite:///users.db
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import APIRouter, FastAPI, HTTPException, Request
from sqlalchemy import Column, MetaData, String, Table, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from examples.service import BARRIER_TABLE, Database, NewUser, make_app, make_parser, serve
from txcoord_sdk import AsyncCoordinator, CoordinatorUnreachableError, Message
from txcoord_sdk.barrier import create_table
from txcoord_sdk.fastapi import query_prepared_router

CHECK_BACK = "/query-prepared"
CHECK_BACK_AFTER_S = 10
"""How long after the prepare the coordinator asks back if it has heard nothing."""

metadata = MetaData()

users = Table("users", metadata, Column("name", String(60), primary_key=True))


class NameTakenError(Exception):
    """Somebody else has the name; what is raised within the local transaction aborts the message, too."""


async def prepare(engine: AsyncEngine) -> None:
    """Create the tables that are not there."""
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_table(engine, table=BARRIER_TABLE)


def make_users_service(
    database: str,
    *,
    coordinator: str | None,
    own_url: str,
    gift_url: str,
    mail_url: str,
    check_back_after_s: int = CHECK_BACK_AFTER_S,
    http: httpx.AsyncClient | None = None,
) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncCoordinator(coordinator, http=http) as app.state.coordinator:
            yield

    pages = APIRouter(lifespan=lifespan)

    @pages.post("/users")
    async def register(user: NewUser, request: Request, database: Database) -> dict[str, str]:
        """200 registered, and gift and mail will come; 409 the name is taken; 503 not registered: try again."""
        message = Message(concurrent=True, timeout_to_fail=check_back_after_s, retry_interval=1)
        message.step(f"{gift_url}/grant", user)
        message.step(f"{mail_url}/send", user)

        async def work(connection: AsyncConnection) -> None:
            try:
                await connection.execute(insert(users).values(name=user.name))
            except IntegrityError as error:
                raise NameTakenError(f"there is a user {user.name} already") from error

        client: AsyncCoordinator = request.app.state.coordinator
        async with database.connect() as connection:
            try:
                await client.do_and_submit(message, own_url + CHECK_BACK, connection, work, table=BARRIER_TABLE)
            except NameTakenError as error:
                raise HTTPException(409, str(error)) from error
            except CoordinatorUnreachableError as error:
                raise HTTPException(503, "no coordinator answers, and nobody was registered: try again") from error
        return {"gid": message.gid, "name": user.name}

    @pages.get("/users")
    async def show(database: Database) -> list[str]:
        async with database.connect() as connection:
            return list((await connection.execute(select(users.c.name).order_by(users.c.name))).scalars())

    app = make_app("users service", database, prepare)
    app.include_router(query_prepared_router(app.state.engine, path=CHECK_BACK, table=BARRIER_TABLE))
    app.include_router(pages)
    return app


def command_line() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, port=8083)
    parser.add_argument("--database", default="sqlite:///users.db", help="its URL (default: %(default)s)")
    parser.add_argument("--coordinator", help="its URL (default: TXCOORD_URL, else http://127.0.0.1:36789)")
    parser.add_argument("--own-url", help="where the coordinator reaches this service (default: as it listens)")
    parser.add_argument("--gift", default="http://127.0.0.1:8084", help="the gift service (default: %(default)s)")
    parser.add_argument("--mail", default="http://127.0.0.1:8085", help="the mailbox service (default: %(default)s)")
    return parser


def main() -> None:
    options = command_line().parse_args()
    app = make_users_service(
        options.database,
        coordinator=options.coordinator,
        own_url=options.own_url or f"http://{options.host}:{options.port}",
        gift_url=options.gift,
        mail_url=options.mail,
    )
    serve(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
