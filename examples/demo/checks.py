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


def answered(code: int, *, expected: int, who: str = "customer") -> Check:
    return Check(what=f"the {who}'s answer", expected=f"HTTP {expected}", found=f"HTTP {code}")


def order_is(shop: Shop, gid: str, expected: str, *, product: int, quantity: int) -> Check:
    """The order's row and its only line."""
    found = shop.rows(
        "order",
        "select o.status, o.total, p.product_id, p.quantity, p.price "
        "from orders o left join order_products p on p.order_id = o.id where o.tx_id = :gid",
        gid=gid,
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


def calls_of(shop: Shop, gid: str, path: str, *, at_least: int) -> Check:
    """How often the storage service was asked to do it; the stock shows how often it did."""
    calls = shop.ask("storage", "GET", f"/demo/calls/{gid}?path={path}").json()
    expected = f"{at_least} or more"
    return Check(what=f"calls of {path}", expected=expected, found=expected if calls >= at_least else calls)


_COUNTS = {
    "users": "select count(*) from users where name = :user",
    "gift": "select count(*) from gifts where name = :user",
    "mail": "select count(*) from mails where name = :user",
}


def rows_of(shop: Shop, name: str, user: str, *, expected: int) -> Check:
    """How often a user is in the database of a service."""
    found = shop.number(name, _COUNTS[name], user=user)
    return Check(what=f"rows of {user} in the {name} database", expected=expected, found=found)


def purse_is(shop: Shop, customer: str, *, before: int, expected: int) -> Check:
    return Check(what=f"purse of {customer}, {before} before", expected=expected, found=shop.purse(customer))


def balance_is(shop: Shop, bank: str, *, before: int, expected: int) -> Check:
    return Check(what=f"balance at {bank}, {before} before", expected=expected, found=shop.balance(bank))


def is_prepared(shop: Shop, bank: str, xid: str, *, when: str, expected: str) -> Check:
    """Neither committed nor rolled back; left so, it would hold its locks for ever."""
    found = "yes" if shop.databases.is_prepared(bank, xid) else "no"
    return Check(what=f"prepared in the database of {bank} {when}", expected=expected, found=found)


def nothing_is_left(shop: Shop) -> Check:
    left = [
        found.gid
        for status in (Status.PREPARED, Status.SUBMITTED, Status.ABORTING)
        for found in shop.coordinator.list(status=status)
    ]
    return Check(what="transactions that have not ended", expected=0, found=len(left))
