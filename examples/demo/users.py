"""The users service with a weak moment, so that the demo can strike at the worst one.

Told to, it dies when it has registered a user and is about to submit the message: what the user
was promised is committed, and the coordinator has not heard of it.

    python -m examples.demo.users --port 8083 --database sqlite:///users.db
"""

from __future__ import annotations

import os
import signal

import httpx
from fastapi import FastAPI

from examples.service import serve
from examples.users import command_line, make_users_service

CHECK_BACK_AFTER_S = 3
"""Long enough for a submit that comes, short enough to be waited for."""


class WeakMoment:
    """Kills its own process, as a power cut would, at the next submit."""

    def __init__(self) -> None:
        self._is_armed = False

    def arm(self) -> None:
        self._is_armed = True

    async def pass_on(self, request: httpx.Request) -> None:
        if self._is_armed and request.url.path.endswith("/submit"):
            os.kill(os.getpid(), signal.SIGKILL)


def make_weak_users_service(
    database: str, *, coordinator: str | None, own_url: str, gift_url: str, mail_url: str
) -> FastAPI:
    moment = WeakMoment()
    app = make_users_service(
        database,
        coordinator=coordinator,
        own_url=own_url,
        gift_url=gift_url,
        mail_url=mail_url,
        check_back_after_s=CHECK_BACK_AFTER_S,
        http=httpx.AsyncClient(event_hooks={"request": [moment.pass_on]}),
    )

    @app.post("/demo/die-before-submit")
    async def die_before_submit() -> None:
        moment.arm()

    return app


def main() -> None:
    options = command_line().parse_args()
    app = make_weak_users_service(
        options.database,
        coordinator=options.coordinator,
        own_url=options.own_url or f"http://{options.host}:{options.port}",
        gift_url=options.gift,
        mail_url=options.mail,
    )
    serve(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
