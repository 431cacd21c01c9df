"""The participants of the interoperability tests, in the languages that this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from localservers.servers import Server
from tests.e2e.harness import Process, coordinator, store_for
from tests.interop.clients import CLIENTS, RegistryUnreachableError, ToolchainMissingError
from tests.interop.world import Books, Over, Participant, World


@pytest.fixture(scope="module")
def books(mariadb_server: Server) -> Iterator[Books]:
    made = Books(mariadb_server)
    yield made
    mariadb_server.drop_database(urlsplit(made.url).path.strip("/"))


def _start(name: str, books: Books, folder: Path) -> Participant:
    try:
        participant = Participant(name, books, folder / f"{name}.log")
    except ToolchainMissingError as error:
        # A toolchain is not a server: CI runs the languages that its machine has.
        pytest.skip(str(error))
    except RegistryUnreachableError as error:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            # A machine with the toolchain was meant to run this: skipped, it would go unnoticed for months.
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    participant.start()
    return participant


@pytest.fixture(scope="module", params=list(CLIENTS))
def language(request: pytest.FixtureRequest) -> str:
    """Of the client; a module may name fewer."""
    return str(request.param)


@pytest.fixture(scope="module")
def participant(language: str, books: Books, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Participant]:
    started = _start(language, books, tmp_path_factory.mktemp(language))
    yield started
    started.close()


@pytest.fixture(scope="module", params=["sqlite", "mysql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A coordinator."""
    folder = tmp_path_factory.mktemp(request.param)
    process = coordinator(store_for(request, folder), folder, TXCOORD_RETRY_INTERVAL_S="1")
    process.start()
    yield process
    process.close()


@pytest.fixture
def world(server: Process, books: Books, participant: Participant) -> World:
    return World(server.url, f"127.0.0.1:{server.grpc_port}", books, participant)


@pytest.fixture(params=["http", "grpc"])
def over(request: pytest.FixtureRequest, world: World) -> Over:
    return Over(world, request.param)


@pytest.fixture(scope="module")
def every(books: Books, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Participant]]:
    """A participant in each language that can be had here."""
    folder = tmp_path_factory.mktemp("every")
    started = []
    for name in CLIENTS:
        try:
            one = Participant(name, books, folder / f"{name}.log")
        except (ToolchainMissingError, RegistryUnreachableError):
            continue  # the tests of this language say so
        one.start()
        started.append(one)
    yield started
    for one in started:
        one.close()
