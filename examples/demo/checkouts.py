"""Workflows: a checkout that takes each service as it is, and goes on where it was."""

from __future__ import annotations

from examples.demo.checks import (
    Check,
    answered,
    calls_of,
    coordinator_says,
    nothing_is_frozen,
    order_is,
    purse_is,
    stock_is,
)
from examples.demo.shop import Shop
from examples.demo.story import Scenario, Story, Visitor
from examples.order import CONFIRMED, NOT_CONFIRMED, PRICE
from txcoord_sdk import Pattern, Status

PRODUCT = 3
QUANTITY = 4

RICH, POOR = "ada", "bob"


def _customer(shop: Shop, story: Story, name: str) -> Visitor:
    body = {"customer": name, "id": PRODUCT, "quantity": QUANTITY}
    path = f"/checkouts/{story.gid}"
    return Visitor(
        shop, story, "checkout", path, body, method="PUT", wants=f"{QUANTITY} of product {PRODUCT}, for {name}"
    )


def it_succeeds(shop: Shop) -> Story:
    story = Story(initiator="checkout", gid="checkout-of-ada")
    stock, purse = shop.stock(PRODUCT), shop.purse(RICH)
    answer = _customer(shop, story, RICH).wait()
    story.checks.append(answered(answer.status_code, expected=200))
    _must_be_done(shop, story, stock=stock, purse=purse)
    return story


def the_purse_is_empty(shop: Shop) -> Story:
    story = Story(initiator="checkout", gid="checkout-of-bob")
    stock, purse = shop.stock(PRODUCT), shop.purse(POOR)
    answer = _customer(shop, story, POOR).wait()
    story.checks += [
        answered(answer.status_code, expected=409),
        coordinator_says(shop, story.gid, Status.FAILED),
        order_is(shop, story.gid, NOT_CONFIRMED, product=PRODUCT, quantity=QUANTITY),
        stock_is(shop, PRODUCT, before=stock, expected=stock),
        nothing_is_frozen(shop, PRODUCT),
        purse_is(shop, POOR, before=purse, expected=purse),
    ]
    return story


def it_goes_on(shop: Shop) -> Story:
    story = Story(initiator="checkout", gid="checkout-that-dies")
    stock, purse = shop.stock(PRODUCT), shop.purse(RICH)
    shop.ask("storage", "POST", "/demo/hold?path=/deduct-try")
    customer = _customer(shop, story, RICH)
    shop.ask("storage", "GET", "/demo/holding")
    shop.kill("checkout")
    story.strike("the checkout service is killed: the goods are frozen, and it does not know")
    customer.wait_in_vain()
    shop.ask("storage", "POST", "/demo/let-go")
    shop.start("checkout")
    story.strike("the checkout service is back")
    shop.coordinator.wait(story.gid)
    answer = _customer(shop, story, RICH).wait()
    story.checks += [
        Check(
            what="the receipt, when asked again",
            expected={"gid": story.gid, "paid": PRICE * QUANTITY, "left": purse - PRICE * QUANTITY},
            found=answer.json(),
        ),
        calls_of(shop, story.gid, "/deduct-try", at_least=2),
    ]
    _must_be_done(shop, story, stock=stock, purse=purse)
    return story


def _must_be_done(shop: Shop, story: Story, *, stock: int, purse: int) -> None:
    story.checks += [
        coordinator_says(shop, story.gid, Status.SUCCEEDED),
        order_is(shop, story.gid, CONFIRMED, product=PRODUCT, quantity=QUANTITY),
        stock_is(shop, PRODUCT, before=stock, expected=stock - QUANTITY),
        nothing_is_frozen(shop, PRODUCT),
        purse_is(shop, RICH, before=purse, expected=purse - PRICE * QUANTITY),
    ]


_NEEDS = ("order", "storage", "checkout")

CHECKOUTS = (
    Scenario(
        pattern=Pattern.WORKFLOW,
        title="a checkout (workflow)",
        about="A function of the checkout service: it has the order created as in a saga, and the goods frozen as in "
        "TCC, and takes the money in its own database, by XA if that can prepare. Then all of it is committed, "
        "last step first.",
        run=it_succeeds,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.WORKFLOW,
        title="a checkout of somebody who has not got the money",
        about="What was done is undone, last step first, in the way of each service.",
        run=the_purse_is_empty,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.WORKFLOW,
        title="the checkout service dies in mid-workflow",
        about="It starts again, and the coordinator asks it to go on. The function runs from its beginning: what is on "
        "record is not done again, and for what was under way the barrier sees that it has been done.",
        run=it_goes_on,
        needs=_NEEDS,
    ),
)
