"""Structured logs: one line for each status change and each failed call, cheap enough for that.

A busy coordinator changes ten thousand statuses a second, so a line may cost a few
microseconds: few processors, one encoder, and no system call in the event loop. Lines
gather in memory for at most `_GATHER_S`; a thread writes them. What is left at a normal
exit is written then; a process that is killed loses at most that last moment.

Never logged: payloads, passwords, and what a participant answered beyond a bounded piece.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from traceback import format_exception
from typing import Any, BinaryIO, Final, Literal, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

# gRPC's core reads this when it is imported. Without it, it writes lines of its own between ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

LogFormat = Literal["json", "text"]

_GATHER_S: Final = 0.05
_MAX_WAITING_LINES: Final = 200_000
_encoder: Final = msgspec.json.Encoder(enc_hook=str)


def get_logger() -> FilteringBoundLogger:
    """Return a logger: `log.info("status", gid=…, status=…)`, an event and its facts."""
    return cast(FilteringBoundLogger, structlog.get_logger())


class LineWriter:
    """Takes lines from any thread at once; writes them from a thread of its own, in order.

    Bounded: when whoever reads the stream has stopped reading, lines are dropped and their
    number is reported, because a coordinator must not stand still for its log.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: deque[bytes] = deque()
        self._something = threading.Event()
        self._dropped = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="txcoord-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        if len(self._lines) < _MAX_WAITING_LINES:
            self._lines.append(line)
        else:
            self._dropped += 1
        if not self._something.is_set():
            self._something.set()

    def close(self) -> None:
        """Write what has gathered. Does not wait for a reader that has stopped reading."""
        self._closed = True
        self._something.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._closed:
            self._something.wait()
            if not self._closed:
                time.sleep(_GATHER_S)
            # Before the lines are taken: one that comes later sets it again.
            self._something.clear()
            self._write_gathered()
        self._write_gathered()

    def _write_gathered(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if self._dropped:
            lines.append(b'{"level":"warning","event":"log lines dropped","count":%d}' % self._dropped)
            self._dropped = 0
        if not lines:
            return
        lines.append(b"")
        # A stream that is gone is not a reason to stop coordinating.
        with suppress(OSError, ValueError):
            self._stream.write(b"\n".join(lines))
            self._stream.flush()


class _Output:
    """What structlog calls a logger: it takes finished lines, whatever their level."""

    __slots__ = ("critical", "debug", "error", "exception", "info", "msg", "warning")

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.msg = self.warning = self.error = self.exception = self.critical = write


class _Clock:
    """RFC 3339 with milliseconds; the part that changes once a second is kept."""

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def now(self) -> str:
        milliseconds = time.time_ns() // 1_000_000
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            # The prefix first: another thread must not find the new second with the old text.
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{rest:03d}Z"


_clock: Final = _Clock()


def _add_exception(event: EventDict) -> None:
    info = event.pop("exc_info", None)
    if not info:
        return
    error = info if isinstance(info, BaseException) else sys.exc_info()[1]
    if error is not None:
        event["exception"] = "".join(format_exception(error))


def _render_json(_logger: WrappedLogger, level: str, event: EventDict) -> bytes:
    if "exc_info" in event:
        _add_exception(event)
    line = {"time": _clock.now(), "level": level, "event": event.pop("event"), **event}
    try:
        return _encoder.encode(line)
    except (TypeError, ValueError, RecursionError):
        return _encoder.encode({key: repr(value) for key, value in line.items()})


def _render_text(_logger: WrappedLogger, level: str, event: EventDict) -> bytes:
    if "exc_info" in event:
        _add_exception(event)
    exception = event.pop("exception", "")
    name = event.pop("event")
    facts = " ".join([f"{key}={_quoted(value)}" for key, value in event.items()])
    line = f"{_clock.now()} {level:<7} {name} {facts}".rstrip()
    return (f"{line}\n{exception.rstrip()}" if exception else line).encode(errors="backslashreplace")


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isalnum() or (text and text.isprintable() and " " not in text) else repr(text)


class _StandardLibraryBridge(logging.Handler):
    """What libraries log through `logging` (uvicorn, SQLAlchemy) becomes lines of ours."""

    def __init__(self) -> None:
        super().__init__()
        self._log = get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            facts["exc_info"] = record.exc_info[1]
        self._log.log(record.levelno, record.getMessage().strip(), **facts)


def configure(*, level: str, log_format: LogFormat, stream: BinaryIO | None = None) -> LineWriter:
    """Send all logs of this process to `stream` (standard error unless told otherwise).

    Call it once, before the first line is logged: loggers are cached on first use.
    """
    writer = LineWriter(stream or sys.stderr.buffer)
    atexit.register(writer.close)
    output = _Output(writer.write)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[_render_json if log_format == "json" else _render_text],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_StandardLibraryBridge()], level=max(number, logging.WARNING), force=True)
    return writer
