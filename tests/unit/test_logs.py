from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap

import msgspec
import pytest

from txcoord.logs import LineWriter

LOG_ALL_KINDS = """
    import logging
    from txcoord.logs import configure, get_logger
    from txcoord.model import Status

    configure(level="info", log_format="{log_format}")
    log = get_logger()
    log.debug("not shown")
    log.info("status", gid="g 1", status=Status.SUBMITTED, epoch=1)
    try:
        raise ValueError("boom")
    except ValueError:
        log.error("unexpected", exc_info=True)
    log.info("odd", value=object, raw=b"\\xff")
    logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
"""


def logged(log_format: str) -> str:
    script = textwrap.dedent(LOG_ALL_KINDS).replace("{log_format}", log_format)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr


def test_json_lines_hold_the_event_and_its_facts() -> None:
    lines = [msgspec.json.decode(line) for line in logged("json").splitlines()]

    assert [line["event"] for line in lines] == ["status", "unexpected", "odd", "from uvicorn"]
    assert lines[0].items() >= {"level": "info", "gid": "g 1", "status": "submitted", "epoch": 1}.items()
    assert lines[0]["time"].endswith("Z")
    assert "ValueError: boom" in lines[1]["exception"]
    assert lines[3].items() >= {"level": "warning", "logger": "uvicorn.error"}.items()


def test_text_lines_are_for_people() -> None:
    lines = logged("text").splitlines()

    assert lines[0].endswith("info    status gid='g 1' status=submitted epoch=1")
    assert "ValueError: boom" in lines


def test_lines_keep_their_order_and_none_is_lost() -> None:
    stream = io.BytesIO()
    writer = LineWriter(stream)

    for number in range(5000):
        writer.write(b"%d" % number)
    writer.close()

    assert stream.getvalue() == b"".join(b"%d\n" % number for number in range(5000))


def test_a_reader_that_stopped_does_not_stop_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txcoord.logs._MAX_WAITING_LINES", 100)
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as stream:
        writer = LineWriter(stream)
        for _ in range(1000):
            writer.write(b"x" * 4096)
        # The pipe holds 64 KiB; nobody reads, and yet all those calls came back.
        os.close(reading)
        writer.close()


def test_a_closed_stream_is_not_an_error() -> None:
    stream = io.BytesIO()
    writer = LineWriter(stream)
    stream.close()

    writer.write(b"line")
    writer.close()
