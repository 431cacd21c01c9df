"""Alerts as the webhook gets them: DTM's rows on every store, and the sender alone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from localservers.processes import free_port
from tests.e2e.harness import Process, coordinator, store_for
from tests.integration.dtm import Dtm
from tests.integration.http_participant import answer, never, participant, plays
from tests.integration.scripted import ERROR, Participant
from txcoord.alert import Alert
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.webhook import Webhook

HOOK_PORT = free_port()


@pytest.fixture(scope="module", params=["sqlite", "mysql", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("coordinator")
    url = f"http://127.0.0.1:{HOOK_PORT}/hook?to=us"
    with coordinator(store_for(request, folder), folder, TXCOORD_ALERT_WEBHOOK=url) as process:
        yield process


@pytest.fixture
async def hook(server: Process) -> AsyncIterator[Participant]:
    async with Participant(HOOK_PORT) as made:
        yield made


def alerts_of(hook: Participant, gid: str) -> list[dict[str, object]]:
    alerts = [json.loads(call.body) for call in hook.received]
    return [alert for alert in alerts if alert["gid"] == gid]


async def told(hook: Participant, gid: str, *, times: int = 1) -> None:
    async with asyncio.timeout(15):
        while len(alerts_of(hook, gid)) < times:
            await asyncio.sleep(0.02)


def of_two_actions(participant: Participant) -> dict[str, object]:
    url = participant.url
    return {
        "trans_type": "msg",
        "steps": [{"action": f"{url}/out"}, {"action": f"{url}/in"}],
        "payloads": ["{}", "{}"],
        "query_prepared": f"{url}/query",
    }


async def test_webhook(dtm: Dtm, participant: Participant, hook: Participant) -> None:
    participant.script("in", ERROR, ERROR, ERROR)

    await dtm.post("submit", **of_two_actions(participant))

    await told(hook, dtm.gid)
    await dtm.ends("succeed", "SS")
    assert alerts_of(hook, dtm.gid) == [
        {
            "gid": dtm.gid,
            "status": "submitted",
            "branch": f"{participant.url}/in",
            "error": "HTTP 500: out of order",
            "retry_count": 3,
        }
    ]
    call = hook.received[-1]
    assert (call.path, call.method, call.query) == ("hook", "POST", {"to": "us"})
    assert call.headers["content-type"] == "application/json"


async def test_webhook_error(dtm: Dtm, participant: Participant, hook: Participant) -> None:
    hook.script("hook", ERROR)
    participant.script("in", ERROR, ERROR, ERROR, ERROR)

    await dtm.post("submit", **of_two_actions(participant))

    await dtm.ends("succeed", "SS")
    await told(hook, dtm.gid, times=2)
    assert [alert["retry_count"] for alert in alerts_of(hook, dtm.gid)] == [3, 4]


async def test_webhook_that_does_not_answer(dtm: Dtm, participant: Participant, hook: Participant) -> None:
    gate = hook.hold("hook")
    participant.script("in", ERROR, ERROR, ERROR)

    await dtm.post("submit", **of_two_actions(participant))

    await dtm.ends("succeed", "SS")
    gate.set()


async def test_check_backs_are_told_of(dtm: Dtm, participant: Participant, hook: Participant) -> None:
    participant.script("query", ERROR, ERROR, ERROR)

    await dtm.post("prepare", **of_two_actions(participant) | {"timeout_to_fail": 1})

    await told(hook, dtm.gid)
    await dtm.ends("succeed", "SS")
    [alert] = alerts_of(hook, dtm.gid)
    assert (alert["status"], alert["branch"]) == ("prepared", f"{participant.url}/query")


async def test_metrics_count_them(server: Process, dtm: Dtm, participant: Participant, hook: Participant) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:

        async def sent() -> float:
            lines = (await http.get("/api/metrics")).text.splitlines()
            [value] = [line.split()[-1] for line in lines if line.startswith('txcoord_alerts_total{result="sent"}')]
            return float(value)

        before = await sent()
        participant.script("in", ERROR, ERROR, ERROR)
        await dtm.post("submit", **of_two_actions(participant))
        async with asyncio.timeout(15):
            while await sent() == before:
                await asyncio.sleep(0.02)

    assert len(alerts_of(hook, dtm.gid)) == 1
    await dtm.ends("succeed", "SS")


# -- the sender ----------------------------------------------------------------------------


def alert(count: int = 3) -> Alert:
    return Alert(gid="g1", status="submitted", branch="http://p/x", error='"é"\n', retry_count=count)


async def test_alerts_are_sent_one_after_another() -> None:
    async with participant(plays(answer(204))) as it:
        webhook = Webhook(f"http://user:secret@127.0.0.1:{it.port}/hook")
        for count in range(3, 8):
            webhook.raised(alert(count))
        await it.wait_until(lambda: len(it.received) == 5)
        await webhook.close()

    assert [json.loads(seen.body)["retry_count"] for seen in it.received] == [3, 4, 5, 6, 7]
    assert json.loads(it.received[0].body)["error"] == '"é"\n'
    assert (it.most_open, it.connections) == (1, 1)
    assert it.received[0].header("authorization") == "Basic dXNlcjpzZWNyZXQ="


async def test_what_does_not_fit_into_the_queue_is_dropped_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async with participant(never) as it:
        webhook = Webhook(it.base, most_waiting=2)
        webhook.raised(alert(1))
        await it.wait_until(lambda: len(it.received) == 1)
        for count in range(2, 9):
            webhook.raised(alert(count))
        it.play = plays(answer())
        await webhook.close()
        webhook.raised(alert())

    lines = [record.getMessage() for record in caplog.records if "alert" in record.getMessage()]
    assert lines == [
        "alert of g1 dropped: 2 others wait to be sent",
        "2 alerts were not sent: the coordinator is stopping",
    ]
    assert len(it.received) == 1


@pytest.mark.parametrize("port_is_open", [True, False])
async def test_a_webhook_that_fails_is_logged(caplog: pytest.LogCaptureFixture, port_is_open: bool) -> None:
    async with participant(plays(answer(500))) as it:
        webhook = Webhook(it.base if port_is_open else f"http://127.0.0.1:{free_port()}/hook")
        with caplog.at_level(logging.WARNING):
            webhook.raised(alert())
            async with asyncio.timeout(10):
                while "was not delivered" not in caplog.text:
                    await asyncio.sleep(0.01)
        await webhook.close()

    assert ("answered HTTP 500" in caplog.text) is port_is_open


async def test_a_webhook_that_hangs_is_given_up_in_time() -> None:
    async with participant(never) as it:
        webhook = Webhook(it.base, timeout_s=0.2)
        webhook.raised(alert(1))
        webhook.raised(alert(2))
        await it.wait_until(lambda: len(it.received) == 2)
        await webhook.close()


@pytest.mark.parametrize("url", ["hooks.example/x", "ftp://h/x", "http:///x"])
def test_a_url_that_cannot_be_called_is_refused_at_start(url: str) -> None:
    with pytest.raises(ValueError, match=r"alert_webhook: the URL .* cannot be called"):
        Webhook(url, DispatchSettings())
