"""Participants of a TCC with balances in a real database, behind the SDK's barrier."""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tests.integration.scripted import Participant
from txcoord_sdk.barrier import BranchBarrier, create_table_at

TABLE = "barrier"
BALANCE = 10_000

_DRIVERS = {"sqlite": "sqlite", "mysql": "mysql+pymysql", "postgresql": "postgresql+psycopg"}

# `reserved` is what tries would add to the balance: negative for money that is to leave.
_WORK = {
    "try": "update purse set reserved = reserved + :amount where name = :name and balance + reserved + :amount >= 0",
    "confirm": "update purse set reserved = reserved - :amount, balance = balance + :amount where name = :name",
    "cancel": "update purse set reserved = reserved - :amount where name = :name",
}


class NoMoneyError(Exception):
    pass


class Purses(Participant):
    """Answers at /{name} for the purse of that name, unless a script says otherwise."""

    def __init__(self, url: str) -> None:
        super().__init__()
        create_table_at(url, table=TABLE)
        scheme, rest = url.split("://", 1)
        self._engine = create_engine(f"{_DRIVERS[scheme]}://{rest}", poolclass=NullPool)
        with self._engine.begin() as connection:
            connection.execute(text("create table purse (name varchar(20) primary key, balance int, reserved int)"))
            for name in ("out", "in"):
                connection.execute(text("insert into purse values (:name, :balance, 0)"), _row(name))
        self.fails_after: set[str] = set()
        """Ops whose business raises when its writes are done: nothing of them may stay."""

    def balances(self) -> dict[str, tuple[int, int]]:
        """Balance and reserved amount of each purse."""
        with self._engine.connect() as connection:
            found = connection.execute(text("select name, balance, reserved from purse"))
            return {name: (balance, reserved) for name, balance, reserved in found}

    async def _answer(self, request: Request) -> Response:
        scripted = await super()._answer(request)
        if scripted.status_code != 200:
            return scripted
        query = dict(request.query_params)
        amount = int(json.loads(await request.body())["amount"])
        name = request.path_params["path"]
        try:
            await asyncio.to_thread(self._work, query, name, -amount if name == "out" else amount)
        except NoMoneyError:
            return Response('{"dtm_result":"FAILURE"}', status_code=409)
        return scripted

    def _work(self, query: dict[str, str], name: str, amount: int) -> None:
        op = query["op"]

        def work(session: Session) -> None:
            done = session.execute(text(_WORK[op]), {"name": name, "amount": amount})
            if not done.rowcount:  # type: ignore[attr-defined]
                raise NoMoneyError
            if op in self.fails_after:
                raise RuntimeError(f"{op} of {name} breaks")

        with Session(self._engine) as session:
            barrier = BranchBarrier(query["trans_type"], query["gid"], query["branch_id"], op, table=TABLE)
            barrier.call_sync(session, work)
            session.commit()


def _row(name: str) -> dict[str, object]:
    return {"name": name, "balance": BALANCE}
