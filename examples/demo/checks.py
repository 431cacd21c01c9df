"""What must be true in the end, looked up where it is kept: in the services' databases and at the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from examples.demo.shop import Shop
from examples.order import PRICE, TOTAL
from txcoord_sdk import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must be so, and how it was found."""

    what: str
    expected: object
    found: object

    @property
    def is_ok(self) -> bool:
        return self.found == self.expected

    def __str__(self) -> str:
        if self.is_ok:
            return f"{self.what}: {self.found}"
        return f"{self.what}: {self.found}, and not {self.expected}"


def coordinator_says(shop: Shop, gid: str, expected: Status) -> Check:
    return Check(
        what="the coordinator's record of it", expected=str(expected), found=str(shop.coordinator.query(gid).status)
    )


def answered(code: int, *, expected: int) -> Check:
    return Check(what="the customer's answer", expected=f"HTTP {expected}", found=f"HTTP {code}")


def order_is(shop: Shop, gid: str, expected: str, *, product: int, quantity: int) -> Check:
    """The order's row and its only line."""
    found = shop.rows(
        "order",
        "select o.status, o.total, p.product_id, p.quantity, p.price "
        "from orders o left join order_products p on p.order_id = o.id where o.tx_id = ?",
        gid,
    )
    return Check(
        what="the order in the order database",
        expected=_order_words([(expected, TOTAL, product, quantity, PRICE)]),
        found=_order_words(found),
    )


def _order_words(rows: list[tuple[object, ...]]) -> str:
    return "; ".join("{}, total {}, product {}, {} pieces at {}".format(*row) for row in rows) or "none"


def stock_is(shop: Shop, product: int, *, before: int, expected: int) -> Check:
    return Check(what=f"stock of product {product}, {before} before", expected=expected, found=shop.stock(product))


def nothing_is_frozen(shop: Shop, product: int) -> Check:
    return Check(what=f"frozen of product {product}", expected=0, found=shop.frozen(product))


def calls_of_deduct(shop: Shop, gid: str, *, at_least: int) -> Check:
    """How often the storage service was asked to deduct; the stock shows how often it did."""
    calls = shop.ask("storage", "GET", f"/demo/calls/{gid}").json()
    expected = f"{at_least} or more"
    return Check(what="calls of /deduct", expected=expected, found=expected if calls >= at_least else calls)


def nothing_is_left(shop: Shop) -> Check:
    left = [
        found.gid
        for status in (Status.PREPARED, Status.SUBMITTED, Status.ABORTING)
        for found in shop.coordinator.list(status=status)
    ]
    return Check(what="transactions that have not ended", expected=0, found=len(left))
