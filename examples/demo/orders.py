"""Orders of the shop: as sagas, and in two phases (TCC)."""

from __future__ import annotations

import httpx

from examples.demo.checks import (
    Check,
    answered,
    calls_of,
    coordinator_says,
    nothing_is_frozen,
    order_is,
    stock_is,
)
from examples.demo.shop import Shop
from examples.demo.story import Scenario, Story, Visitor
from examples.order import CONFIRMED, NOT_CONFIRMED
from txcoord_sdk import Pattern, Status

QUANTITY = 20

PLENTY = 3
"""A product of which there is enough for four orders."""
SCARCE = 8

DEDUCT = "02"
"""The branch of the saga that takes the goods."""

TCC_PATH = "/orders?pattern=tcc"

_NEEDS = ("order", "storage", "bff")


def _customer(shop: Shop, story: Story, product: int, *, path: str = "/orders") -> Visitor:
    body = {"id": product, "quantity": QUANTITY}
    return Visitor(shop, story, "bff", path, body, wants=f"{QUANTITY} of product {product}")


def it_succeeds(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(PLENTY)
    answer = _customer(shop, story, PLENTY).wait()
    _must_be_done(shop, story, answer, before=before)
    return story


def stock_is_lacking(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(SCARCE)
    answer = _customer(shop, story, SCARCE).wait()
    _must_be_undone(shop, story, answer, before=before)
    return story


def it_succeeds_in_two_phases(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(PLENTY)
    answer = _customer(shop, story, PLENTY, path=TCC_PATH).wait()
    _must_be_done(shop, story, answer, before=before)
    story.checks.append(nothing_is_frozen(shop, PLENTY))
    return story


def stock_is_lacking_in_two_phases(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(SCARCE)
    answer = _customer(shop, story, SCARCE, path=TCC_PATH).wait()
    _must_be_undone(shop, story, answer, before=before)
    story.checks.append(nothing_is_frozen(shop, SCARCE))
    return story


def storage_is_away(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(PLENTY)
    seen = shop.gids()
    shop.kill("storage")
    story.strike("the storage service is killed")
    customer = _customer(shop, story, PLENTY)
    shop.wait_for_calls(shop.newest_gid(besides=seen), DEDUCT, failed=2)
    story.strike("the storage service is started again")
    shop.start("storage")
    story.strike("the storage service is back")
    _must_be_done(shop, story, customer.wait(), before=before)
    return story


def coordinator_is_killed(shop: Shop) -> Story:
    story = Story(initiator="bff")
    before = shop.stock(PLENTY)
    shop.ask("storage", "POST", "/demo/hold?path=/deduct")
    customer = _customer(shop, story, PLENTY)
    shop.ask("storage", "GET", "/demo/holding")
    taken = before - shop.stock(PLENTY)
    story.strike(f"/deduct has taken {taken} from the stock; its answer is held back")
    shop.kill("coordinator")
    story.strike("the coordinator is killed (SIGKILL), and does not know of it")
    shop.ask("storage", "POST", "/demo/let-go")
    shop.start("coordinator")
    story.strike("the coordinator is started again, and ready")
    answer = customer.wait()
    story.checks.append(Check(what="taken before the kill", expected=QUANTITY, found=taken))
    _must_be_done(shop, story, answer, before=before)
    story.checks.append(calls_of(shop, story.gid, "/deduct", at_least=2))
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


ORDERS = (
    Scenario(
        pattern=Pattern.SAGA,
        title="an order that succeeds",
        about="The BFF opens a saga: create the order, take the goods, confirm the order.",
        run=it_succeeds,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.SAGA,
        title="an order that lacks stock",
        about="There are 10 of product 8. The storage service refuses; what was done is undone, last step first.",
        run=stock_is_lacking,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.SAGA,
        title="the storage service is down, and comes back",
        about="It is killed before the order. The coordinator calls it again, after longer and longer pauses.",
        run=storage_is_away,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.SAGA,
        title="the coordinator is killed in mid-saga",
        about="It dies when the goods are taken and it has not heard of it. It starts again and calls once more: "
        "the barrier sees that this has been done.",
        run=coordinator_is_killed,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.TCC,
        title="an order in two phases (TCC)",
        about="The BFF has the order created and the goods frozen by two tries, which the coordinator does not see. "
        "Then it submits, and the coordinator calls the confirms.",
        run=it_succeeds_in_two_phases,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.TCC,
        title="an order in two phases that lacks stock",
        about="The storage service refuses to freeze more than is free. The BFF aborts, and the coordinator calls "
        "the cancels, also that of the try which froze nothing: the barrier knows.",
        run=stock_is_lacking_in_two_phases,
        needs=_NEEDS,
    ),
)
