"""Two-phase messages: users who register, and what follows from it."""

from __future__ import annotations

from examples.demo.checks import Check, answered, coordinator_says, rows_of
from examples.demo.shop import Shop
from examples.demo.story import Scenario, Story, Visitor
from txcoord_sdk import Message, Pattern, Status

MOST_ATTEMPTS = 2


def _user(shop: Shop, story: Story, name: str) -> Visitor:
    return Visitor(shop, story, "users", "/users", {"name": name}, who="user", wants=f"register as {name}")


def all_of_it_follows(shop: Shop) -> Story:
    story = Story(initiator="users")
    answer = _user(shop, story, "ada").wait()
    shop.coordinator.wait(story.gid)
    story.checks += [
        answered(answer.status_code, expected=200, who="user"),
        coordinator_says(shop, story.gid, Status.SUCCEEDED),
        *_everywhere(shop, "ada"),
    ]
    return story


def the_name_is_taken(shop: Shop) -> Story:
    story = Story(initiator="users")
    seen = shop.gids()
    answer = _user(shop, story, "ada").wait()
    story.gid = shop.newest_gid(besides=seen)
    story.checks += [
        answered(answer.status_code, expected=409, who="user"),
        coordinator_says(shop, story.gid, Status.FAILED),
        *_everywhere(shop, "ada"),
    ]
    return story


def the_initiator_dies(shop: Shop) -> Story:
    story = Story(initiator="users")
    seen = shop.gids()
    shop.ask("users", "POST", "/demo/die-before-submit")
    user = _user(shop, story, "grace")
    shop.wait_until_dead("users")
    user.wait_in_vain()
    story.gid = shop.newest_gid(besides=seen)
    registered = rows_of(shop, "users", "grace", expected=1)
    story.strike("the users service has committed, and died before it could submit the message")
    story.checks += [
        Check(what="the coordinator's record then", expected="prepared", found=shop.status(story.gid)),
        Check(what="rows of grace in the users database then", expected=1, found=registered.found),
    ]
    shop.start("users")
    story.strike("the users service is back")
    shop.coordinator.wait(story.gid)
    story.checks += [coordinator_says(shop, story.gid, Status.SUCCEEDED), *_everywhere(shop, "grace")]
    return story


def the_mailbox_is_away(shop: Shop) -> Story:
    story = Story(initiator="demo")
    shop.kill("mail")
    story.strike("the mailbox service is killed, and stays away")
    message = Message(concurrent=True, retry_interval=1, max_attempts=MOST_ATTEMPTS)
    message.step(f"{shop.url('gift')}/grant", {"name": "joan"})
    message.step(f"{shop.url('mail')}/send", {"name": "joan"})
    story.gid = shop.coordinator.submit(message)
    reason = shop.coordinator.wait(story.gid).reason
    story.checks += [
        coordinator_says(shop, story.gid, Status.FAILED),
        Check(what="its reason", expected=f"gave up branch 02 (called {MOST_ATTEMPTS} times in vain)", found=reason),
        rows_of(shop, "gift", "joan", expected=1),
        rows_of(shop, "mail", "joan", expected=0),
    ]
    shop.start("mail")
    return story


def _everywhere(shop: Shop, name: str) -> list[Check]:
    """Once in each database, however often it was called."""
    return [rows_of(shop, service, name, expected=1) for service in ("users", "gift", "mail")]


_NEEDS = ("gift", "mail", "users")

MESSAGES = (
    Scenario(
        pattern=Pattern.MSG,
        title="a user registers, and gets a gift and a mail (message)",
        about="The users service prepares a message, commits the user in its own database, and submits. Then the "
        "coordinator calls the others until they have done it.",
        run=all_of_it_follows,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.MSG,
        title="the name is taken",
        about="The users service rolls its local transaction back, and aborts the message: no second gift.",
        run=the_name_is_taken,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.MSG,
        title="the users service dies between its commit and the submit",
        about="Nobody is left who could say what became of it. So the coordinator asks back, and the barrier's row in "
        "the users database tells: it was committed.",
        run=the_initiator_dies,
        needs=_NEEDS,
    ),
    Scenario(
        pattern=Pattern.MSG,
        title="a message that is not worth repeating for ever",
        about=f"Best effort: at most {MOST_ATTEMPTS} calls each. The mailbox is away: it is given up, for all to see.",
        run=the_mailbox_is_away,
        needs=_NEEDS,
    ),
)
