"""Many together, or one alone, in the order in which they came."""

from __future__ import annotations

import asyncio

import pytest

from txcoord.engine.gate import Gate


class Visitors:
    """Visits to a gate, and what can be seen of them."""

    def __init__(self, *, width: int) -> None:
        self._gate = Gate(width=width)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}
        self.inside: list[str] = []

    async def come(self, name: str, *, alone: bool = False) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._visit(name, alone=alone))
        await self._settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await self._settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await self._settle()

    async def _visit(self, name: str, *, alone: bool) -> None:
        async with self._gate.alone() if alone else self._gate.together():
            self.inside.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)

    async def _settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_as_many_are_in_together_as_it_is_wide() -> None:
    visitors = Visitors(width=2)
    for name in "abc":
        await visitors.come(name)
    assert visitors.inside == ["a", "b"]

    await visitors.leave("a")

    assert visitors.inside == ["b", "c"]


async def test_who_is_alone_waits_for_those_inside_and_keeps_out_those_that_come_later() -> None:
    visitors = Visitors(width=5)
    await visitors.come("a")
    await visitors.come("b")
    await visitors.come("alone", alone=True)
    await visitors.come("late")
    assert visitors.inside == ["a", "b"]

    await visitors.leave("a")
    assert visitors.inside == ["b"]
    await visitors.leave("b")
    assert visitors.inside == ["alone"]
    await visitors.leave("alone")
    assert visitors.inside == ["late"]


@pytest.mark.parametrize("alone", [False, True])
async def test_one_that_gives_up_holds_up_nobody(alone: bool) -> None:
    visitors = Visitors(width=1)
    await visitors.come("a")
    await visitors.come("b", alone=alone)
    await visitors.come("c")

    await visitors.give_up("b")
    await visitors.give_up("a")

    assert visitors.inside == ["c"]
