"""Several coordinator processes on one machine that share a port, each a node of its own.

Each worker has its own listening socket on the port (SO_REUSEPORT), so that the kernel
spreads connections evenly; on one shared socket the worker that happens to be awake takes
most of them. A worker that dies is replaced; what it owned is taken over by the others
when its lease has ended. Workers end when the supervisor does, however it ends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final

from txcoord import metrics
from txcoord.logs import configure, get_logger
from txcoord.process.server import check_start, run
from txcoord.process.sockets import Address, bind, grpc_reserved, reserved, urls_of
from txcoord.process.start import EXIT_NOT_STARTED, EXIT_OK, StartError
from txcoord.settings.load import resolved_log_format
from txcoord.settings.table import Settings

log = get_logger()

_KILL_AFTER_DRAIN_S: Final = 10.0
_FIRST_RESTART_DELAY_S: Final = 0.2
_LAST_RESTART_DELAY_S: Final = 10.0
_HEALTHY_AFTER_S: Final = 10.0


class _Worker:
    """One place for a process; which one fills it may change."""

    def __init__(self, start: Callable[[], tuple[BaseProcess, Connection]]) -> None:
        self._start = start
        self._delay_s = 0.0
        self.begin()

    def begin(self) -> None:
        self.started_at = time.monotonic()
        self.restart_at: float | None = None
        self.process, self.pipe = self._start()
        self.node_id: int | None = None

    def note_death(self) -> None:
        """Plan a new start: at once for the first death after a healthy time, later and later otherwise."""
        self.pipe.close()
        if time.monotonic() - self.started_at > _HEALTHY_AFTER_S:
            self._delay_s = 0.0
        self.restart_at = time.monotonic() + self._delay_s
        self._delay_s = min(max(2 * self._delay_s, _FIRST_RESTART_DELAY_S), _LAST_RESTART_DELAY_S)


class Supervisor:
    """Starts the workers, replaces the dead, ends them all. Runs in the main thread."""

    def __init__(self, settings: Settings, *, on_ready: Callable[[Sequence[str], list[int]], None]) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._signals = 0
        self._context = multiprocessing.get_context("spawn")

    def run(self) -> int:
        """Serve until a signal ends it; return the exit code.

        Raises:
            StartError: the address cannot be had, or the store or a certificate cannot be used.
        """
        settings = self._settings
        # Once, here, rather than a sentence from each worker.
        asyncio.run(check_start(settings))
        # The ports stay ours, also while no worker is alive.
        with (
            reserved(settings.host, settings.port) as address,
            grpc_reserved(settings) as grpc_address,
            tempfile.TemporaryDirectory(prefix="txcoord-") as folder,
        ):
            os.environ[metrics.MULTIPROCESS_DIR] = folder
            return self._supervise(address, grpc_address)

    def _supervise(self, address: Address, grpc_address: Address | None) -> int:
        waking, waker = socket.socketpair()
        with waking, waker:
            waking.setblocking(False)
            waker.setblocking(False)
            signal.set_wakeup_fd(waker.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note_signal)
            workers = [_Worker(lambda: self._spawn(address, grpc_address)) for _ in range(self._settings.workers)]
            try:
                return self._watch(workers, urls_of(self._settings, address, grpc_address), waking)
            finally:
                signal.set_wakeup_fd(-1)

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _spawn(self, address: Address, grpc_address: Address | None) -> tuple[BaseProcess, Connection]:
        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_work, args=(self._settings, address, grpc_address, sending), daemon=False
        )
        process.start()
        sending.close()
        return process, receiving

    def _watch(self, workers: list[_Worker], urls: Sequence[str], waking: socket.socket) -> int:
        announced = False
        while not self._signals:
            _wait_for_something(workers, waking)
            for worker in workers:
                _receive_node_id(worker)
                if worker.restart_at is not None:
                    if worker.restart_at <= time.monotonic():
                        worker.begin()
                elif worker.process.exitcode is not None:
                    metrics.forget_process(worker.process.pid or 0)
                    if not announced:
                        # It has said why. The others would fail in the same way, or serve half.
                        self._end(workers)
                        return EXIT_NOT_STARTED
                    log.error("worker died", pid=worker.process.pid, exit_code=worker.process.exitcode)
                    worker.note_death()
            node_ids = [worker.node_id for worker in workers if worker.node_id is not None]
            if not announced and len(node_ids) == len(workers):
                announced = True
                self._on_ready(urls, node_ids)
        return self._end(workers)

    def _end(self, workers: list[_Worker]) -> int:
        signals = self._signals
        running = [worker.process for worker in workers if worker.process.exitcode is None]
        for process in running:
            process.terminate()
        give_up_at = time.monotonic() + self._settings.drain_s + _KILL_AFTER_DRAIN_S
        for process in running:
            while process.exitcode is None and self._signals <= signals and time.monotonic() < give_up_at:
                process.join(timeout=0.1)
        killed = [process for process in running if process.exitcode is None]
        for process in killed:
            process.kill()
            process.join()
        return EXIT_NOT_STARTED if killed else EXIT_OK


def _wait_for_something(workers: list[_Worker], waking: socket.socket) -> None:
    until = [worker.restart_at for worker in workers if worker.restart_at is not None]
    timeout = max(0.0, min(until) - time.monotonic()) if until else None
    alive = [worker for worker in workers if worker.restart_at is None]
    starting = [worker.pipe for worker in alive if worker.node_id is None and not worker.pipe.closed]
    wait([waking, *starting, *(worker.process.sentinel for worker in alive)], timeout)


def _receive_node_id(worker: _Worker) -> None:
    if worker.node_id is None and not worker.pipe.closed and worker.pipe.poll():
        try:
            worker.node_id = worker.pipe.recv()
        except EOFError:
            worker.pipe.close()


def _work(settings: Settings, address: Address, grpc_address: Address | None, pipe: Connection) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the supervisor says when to end
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    configure(level=settings.log_level, log_format=resolved_log_format(settings))
    try:
        listener = bind(*address, shared=True)
        code = run(
            settings,
            listener,
            grpc_address=grpc_address,
            on_ready=lambda app: pipe.send(app.engine.node_id),
            is_worker=True,
        )
    except StartError as error:
        print(f"txcoord: {error}", file=sys.stderr)  # noqa: T201 - there is no other way to say it
        code = EXIT_NOT_STARTED
    sys.exit(code)


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        wait([supervisor.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
