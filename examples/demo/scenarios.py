"""The orders of the demo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from examples.demo.checks import (
    Check,
    answered,
    calls_of_deduct,
    coordinator_says,
    nothing_is_frozen,
    order_is,
    stock_is,
)
from examples.demo.shop import DemoError, Shop
from examples.demo.timeline import Event
from examples.order import CONFIRMED, NOT_CONFIRMED
from txcoord_sdk import Status

QUANTITY = 20

PLENTY = 3
"""A product of which there is enough for four orders."""
SCARCE = 8

DEDUCT = "02"
"""The branch of the saga that takes the goods."""

TCC_PATH = "/orders?pattern=tcc"


@dataclass(slots=True, kw_only=True)
class Story:
    """One order: what the demo did meanwhile, and what is to be true in the end."""

    gid: str = ""
    events: list[Event] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def note(self, who: str, text: str, *, style: str = "") -> None:
        self.events.append(Event(at=datetime.now(UTC), who=who, text=text, style=style))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    title: str
    about: str
    run: Callable[[Shop], Story]


class Customer:
    """Somebody who sends an order to the BFF and waits for the answer, in a thread of its own."""

    def __init__(self, shop: Shop, story: Story, product: int, *, path: str = "/orders") -> None:
        self._shop = shop
        self._story = story
        self._path = path
        self._body = {"id": product, "quantity": QUANTITY}
        self._answer: httpx.Response | DemoError | None = None
        story.note("customer", f"POST {path}: {QUANTITY} of product {product}", style="bold")
        self._thread = threading.Thread(target=self._order, daemon=True)
        self._thread.start()

    def _order(self) -> None:
        try:
            self._answer = self._shop.ask("bff", "POST", self._path, self._body)
        except DemoError as error:
            self._answer = error
            return
        self._story.note("customer", f"has the answer: HTTP {self._answer.status_code}", style="bold")

    def wait(self) -> httpx.Response:
        self._thread.join()
        assert self._answer is not None, "the thread leaves an answer"
        if isinstance(self._answer, DemoError):
            raise self._answer
        if "gid" not in self._answer.text:
            raise DemoError(f"the BFF answered {self._answer.status_code}: {self._answer.text[:200]}")
        self._story.gid = self._answer.json()["gid"]
        return self._answer


def it_succeeds(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(PLENTY)
    answer = Customer(shop, story, PLENTY).wait()
    _must_be_done(shop, story, answer, before=before)
    return story


def stock_is_lacking(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(SCARCE)
    answer = Customer(shop, story, SCARCE).wait()
    _must_be_undone(shop, story, answer, before=before)
    return story


def it_succeeds_in_two_phases(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(PLENTY)
    answer = Customer(shop, story, PLENTY, path=TCC_PATH).wait()
    _must_be_done(shop, story, answer, before=before)
    story.checks.append(nothing_is_frozen(shop, PLENTY))
    return story


def stock_is_lacking_in_two_phases(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(SCARCE)
    answer = Customer(shop, story, SCARCE, path=TCC_PATH).wait()
    _must_be_undone(shop, story, answer, before=before)
    story.checks.append(nothing_is_frozen(shop, SCARCE))
    return story


def storage_is_away(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(PLENTY)
    seen = _gids(shop)
    shop.kill("storage")
    story.note("demo", "the storage service is killed", style="magenta")
    customer = Customer(shop, story, PLENTY)
    shop.wait_for_calls(shop.newest_gid(besides=seen), DEDUCT, failed=2)
    story.note("demo", "the storage service is started again", style="magenta")
    shop.start("storage")
    story.note("demo", "the storage service is back", style="magenta")
    _must_be_done(shop, story, customer.wait(), before=before)
    return story


def coordinator_is_killed(shop: Shop) -> Story:
    story = Story()
    before = shop.stock(PLENTY)
    shop.ask("storage", "POST", "/demo/hold")
    customer = Customer(shop, story, PLENTY)
    shop.ask("storage", "GET", "/demo/holding")
    taken = before - shop.stock(PLENTY)
    story.note("demo", f"/deduct has taken {taken} from the stock; its answer is held back", style="magenta")
    shop.kill("coordinator")
    story.note("demo", "the coordinator is killed (SIGKILL), and does not know of it", style="magenta")
    shop.ask("storage", "POST", "/demo/let-go")
    shop.start("coordinator")
    story.note("demo", "the coordinator is started again, and ready", style="magenta")
    answer = customer.wait()
    story.checks.append(Check(what="taken before the kill", expected=QUANTITY, found=taken))
    _must_be_done(shop, story, answer, before=before)
    story.checks.append(calls_of_deduct(shop, story.gid, at_least=2))
    return story


def _must_be_done(shop: Shop, story: Story, answer: httpx.Response, *, before: int) -> None:
    story.checks += [
        answered(answer.status_code, expected=200),
        coordinator_says(shop, story.gid, Status.SUCCEEDED),
        order_is(shop, story.gid, CONFIRMED, product=PLENTY, quantity=QUANTITY),
        stock_is(shop, PLENTY, before=before, expected=before - QUANTITY),
    ]


def _must_be_undone(shop: Shop, story: Story, answer: httpx.Response, *, before: int) -> None:
    story.checks += [
        answered(answer.status_code, expected=409),
        coordinator_says(shop, story.gid, Status.FAILED),
        order_is(shop, story.gid, NOT_CONFIRMED, product=SCARCE, quantity=QUANTITY),
        stock_is(shop, SCARCE, before=before, expected=before),
    ]


def _gids(shop: Shop) -> Sequence[str]:
    return [found.gid for found in shop.coordinator.list()]


SCENARIOS = (
    Scenario(
        title="an order that succeeds",
        about="The BFF opens a saga: create the order, take the goods, confirm the order.",
        run=it_succeeds,
    ),
    Scenario(
        title="an order that lacks stock",
        about="There are 10 of product 8. The storage service refuses; what was done is undone, last step first.",
        run=stock_is_lacking,
    ),
    Scenario(
        title="the storage service is down, and comes back",
        about="It is killed before the order. The coordinator calls it again, after longer and longer pauses.",
        run=storage_is_away,
    ),
    Scenario(
        title="the coordinator is killed in mid-saga",
        about="It dies when the goods are taken and it has not heard of it. It starts again and calls once more: "
        "the barrier sees that this has been done.",
        run=coordinator_is_killed,
    ),
    Scenario(
        title="an order in two phases (TCC)",
        about="The BFF has the order created and the goods frozen by two tries, which the coordinator does not see. "
        "Then it submits, and the coordinator calls the confirms.",
        run=it_succeeds_in_two_phases,
    ),
    Scenario(
        title="an order in two phases that lacks stock",
        about="The storage service refuses to freeze more than is free. The BFF aborts, and the coordinator calls "
        "the cancels, also that of the try which froze nothing: the barrier knows.",
        run=stock_is_lacking_in_two_phases,
    ),
)
