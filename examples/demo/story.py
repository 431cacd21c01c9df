"""What a scenario is, and who acts in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from examples.demo.checks import Check
from examples.demo.shop import DemoError, Shop
from examples.demo.timeline import Event
from txcoord_sdk import Pattern


@dataclass(slots=True, kw_only=True)
class Story:
    """One global transaction: what the demo did meanwhile, and what is to be true in the end."""

    gid: str = ""
    initiator: str
    """Who opens the transaction; a service, or the demo itself."""
    events: list[Event] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def note(self, who: str, text: str, *, style: str = "") -> None:
        self.events.append(Event(at=datetime.now(UTC), who=who, text=text, style=style))

    def strike(self, text: str) -> None:
        """Note what the demo does to the services."""
        self.note("demo", text, style="magenta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    pattern: Pattern
    title: str
    about: str
    run: Callable[[Shop], Story]
    needs: tuple[str, ...]
    """The processes that take part, besides the coordinator."""


class Visitor:
    """Somebody who sends one request to a service and waits for the answer, in a thread of its own."""

    def __init__(
        self,
        shop: Shop,
        story: Story,
        service: str,
        path: str,
        body: object,
        *,
        method: str = "POST",
        who: str = "customer",
        wants: str,
    ) -> None:
        self._shop = shop
        self._story = story
        self._who = who
        self._request = (service, method, path, body)
        self._answer: httpx.Response | DemoError | None = None
        story.note(who, f"{method} {path}: {wants}", style="bold")
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        try:
            self._answer = self._shop.ask(*self._request)
        except DemoError as error:
            self._answer = error
            return
        self._story.note(self._who, f"has the answer: HTTP {self._answer.status_code}", style="bold")

    def wait(self) -> httpx.Response:
        """Return the answer; the story is about the transaction that it names, if it names one."""
        self._thread.join()
        assert self._answer is not None, "the thread leaves an answer"
        if isinstance(self._answer, DemoError):
            raise self._answer
        answered = self._answer.json()
        if self._answer.status_code >= 500 or not isinstance(answered, dict):
            raise DemoError(f"the service answered {self._answer.status_code}: {self._answer.text[:200]}")
        self._story.gid = answered.get("gid", self._story.gid)
        return self._answer

    def wait_in_vain(self) -> None:
        """Return when the connection is lost, as it has to be."""
        self._thread.join()
        if not isinstance(self._answer, DemoError):
            raise DemoError(f"the {self._request[0]} service has answered, and was to die before that")
        self._story.note(self._who, "gets no answer: the connection is lost", style="bold")
