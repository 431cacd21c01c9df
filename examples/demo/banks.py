"""XA: money that moves between two banks, each with a database that prepares."""

from __future__ import annotations

from examples.demo.checks import Check, balance_is, coordinator_says, is_prepared
from examples.demo.databases import BANKS
from examples.demo.shop import Shop
from examples.demo.story import Scenario, Story
from txcoord_sdk import ActionFailedError, Pattern, Status

AMOUNT = 30

PAYS, IS_PAID = BANKS


def money_moves(shop: Shop) -> Story:
    story = Story(initiator="customer")
    before = _balances(shop)
    _note_wish(story)
    with shop.coordinator.xa(wait_result=True) as xa:
        story.gid = xa.gid
        xa.call(f"{shop.url(PAYS)}/withdraw", {"amount": AMOUNT})
        xa.call(f"{shop.url(IS_PAID)}/deposit", {"amount": AMOUNT})
        story.checks += _prepared(shop, xa.gid, when="before the commit", expected={PAYS: "yes", IS_PAID: "yes"})
        meanwhile = _balances(shop)
        story.strike(f"looks into the databases: {_shown(meanwhile)}")
    story.note("customer", "is told: moved", style="bold")
    story.checks += [
        Check(what="what others saw of it then", expected=_shown(before), found=_shown(meanwhile)),
        *_ended(shop, story.gid, Status.SUCCEEDED, before=before, moved=AMOUNT),
    ]
    return story


def a_bank_is_away(shop: Shop) -> Story:
    story = Story(initiator="customer")
    before = _balances(shop)
    shop.kill(IS_PAID)
    story.strike(f"{IS_PAID} is killed; its database is not")
    _note_wish(story)
    outcome = "moved"
    try:
        with shop.coordinator.xa() as xa:
            story.gid = xa.gid
            xa.call(f"{shop.url(PAYS)}/withdraw", {"amount": AMOUNT})
            story.checks += _prepared(shop, xa.gid, when="before the end", expected={PAYS: "yes", IS_PAID: "no"})
            xa.call(f"{shop.url(IS_PAID)}/deposit", {"amount": AMOUNT})
    except ActionFailedError:
        outcome = "not moved"
    story.note("customer", f"is told: {outcome}", style="bold")
    shop.wait_until_ended(story.gid)
    shop.start(IS_PAID)
    story.checks += [
        Check(what="the customer is told", expected="not moved", found=outcome),
        *_ended(shop, story.gid, Status.FAILED, before=before, moved=0),
    ]
    return story


def _note_wish(story: Story) -> None:
    story.note("customer", f"moves {AMOUNT} from {PAYS} to {IS_PAID}", style="bold")


def _ended(shop: Shop, gid: str, status: Status, *, before: dict[str, int], moved: int) -> list[Check]:
    return [
        coordinator_says(shop, gid, status),
        balance_is(shop, PAYS, before=before[PAYS], expected=before[PAYS] - moved),
        balance_is(shop, IS_PAID, before=before[IS_PAID], expected=before[IS_PAID] + moved),
        *_prepared(shop, gid, when="in the end", expected={PAYS: "no", IS_PAID: "no"}),
    ]


def _prepared(shop: Shop, gid: str, *, when: str, expected: dict[str, str]) -> list[Check]:
    # The names of the branches in the databases.
    xids = {PAYS: f"{gid}-01", IS_PAID: f"{gid}-02"}
    return [is_prepared(shop, bank, xids[bank], when=when, expected=expected[bank]) for bank in BANKS]


def _balances(shop: Shop) -> dict[str, int]:
    return {bank: shop.balance(bank) for bank in BANKS}


def _shown(balances: dict[str, int]) -> str:
    return ", ".join(f"{bank} {balance}" for bank, balance in balances.items())


TRANSFERS = (
    Scenario(
        pattern=Pattern.XA,
        title="money moves between two banks (XA)",
        about="Each bank's database prepares its part, and the coordinator has all of them commit. Until then nobody "
        "sees any of it, and no crash loses it.",
        run=money_moves,
        needs=BANKS,
    ),
    Scenario(
        pattern=Pattern.XA,
        title="the bank that is to be paid is down",
        about="The other one's database has prepared by then. The coordinator has it rolled back.",
        run=a_bank_is_away,
        needs=BANKS,
    ),
)
