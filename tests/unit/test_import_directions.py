"""Imports point one way: api, console -> service -> engine -> store, dispatch -> pure modules.

Read from the source, so that an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PURE = frozenset(
    [
        "alert",
        "barrier",
        "decision",
        "errors",
        "gid",
        "grpc_call",
        "jsonrpc",
        "model",
        "msg",
        "outcome",
        "patterns",
        "protocol",
        "record",
        "request",
        "retry",
        "saga",
        "tcc",
        "two_phase",
        "url",
        "workflow",
        "xa",
    ]
)
"""Rules and values: they import each other, the standard library, msgspec and idna."""

SHELL = frozenset(["app", "cli", "process", "settings", "tls", "__main__"])
"""What puts the parts together: may import everything, and nothing imports it."""

MAY_IMPORT = {
    "logs": PURE,
    "metrics": PURE | {""},
    "store": PURE | {"logs", "metrics"},
    "dispatch": PURE | {"", "logs", "metrics", "proto"},
    "engine": PURE | {"logs", "metrics", "store.base", "dispatch.base"},
    # Queries go past the engine: it knows only what it drives.
    "service": PURE | {"logs", "metrics", "store.base", "engine", "topic_service", "unfinished"},
    "topic_service": PURE | {"logs", "metrics", "store.base", "engine"},
    "unfinished": PURE | {"store.base"},
    "proto": frozenset(),
    "api": PURE | {"", "logs", "metrics", "store.base", "service", "proto"},
    "console": PURE | {"", "logs", "metrics", "store.base", "service"},
}
"""A layer may import itself and these; `store.base` is the contract alone, "" the version in txcoord/__init__.py."""

IMPURE_STANDARD_LIBRARY = frozenset(
    [
        "asyncio",
        "http",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "select",
        "selectors",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "threading",
        "time",
    ]
)
"""Clocks, I/O and concurrency: pure modules are handed what they need."""

SDK_PACKAGES = frozenset(
    [
        "aiomysql",
        "aiosqlite",
        "asyncpg",
        "fastapi",
        "google",
        "grpc",
        "httpx",
        "idna",
        "msgspec",
        "psycopg",
        "pymysql",
        "redis",
        "sqlalchemy",
        "starlette",
    ]
)
"""All that the SDK and its extras depend on. Nothing of the server's is among it."""


def _modules(source: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield ".".join([package, *parts]).removesuffix(".__init__"), path


TXCOORD = dict(_modules(ROOT / "txcoord", "txcoord"))
SDK = dict(_modules(ROOT / "sdk" / "src" / "txcoord_sdk", "txcoord_sdk"))


def imported(source: str, modules: frozenset[str]) -> set[str]:
    """Names of the modules that a source imports; `from a import b` is a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found


def wrong_imports(module: str, source: str) -> set[str]:
    """Return what a module of txcoord imports although its layer may not."""
    wrong: set[str] = set()
    layer = _within(module).partition(".")[0]
    for name in imported(source, frozenset(TXCOORD)):
        if name.partition(".")[0] == "txcoord":
            target = _within(name)
            allowed = layer in SHELL or target.partition(".")[0] == layer
            if layer in PURE:
                allowed |= target.partition(".")[0] in PURE
            elif layer not in SHELL:
                allowed |= target in MAY_IMPORT[layer] or target.partition(".")[0] in MAY_IMPORT[layer]
        else:
            allowed = layer not in PURE or _is_pure_package(name)
        if not allowed:
            wrong.add(name)
    return wrong


def wrong_sdk_imports(source: str) -> set[str]:
    """Return what a module of the SDK imports although it may not."""
    wrong: set[str] = set()
    for name in imported(source, frozenset(TXCOORD) | frozenset(SDK)):
        top = name.partition(".")[0]
        if top == "txcoord":
            allowed = _within(name).partition(".")[0] in PURE | {"proto"}
        else:
            allowed = top == "txcoord_sdk" or top in SDK_PACKAGES or top in sys.stdlib_module_names
        if not allowed:
            wrong.add(name)
    return wrong


def _within(module: str) -> str:
    return module.removeprefix("txcoord").removeprefix(".")


def _is_pure_package(name: str) -> bool:
    top = name.partition(".")[0]
    return top in ("msgspec", "idna") or (top in sys.stdlib_module_names and top not in IMPURE_STANDARD_LIBRARY)


def test_every_module_has_a_layer() -> None:
    layers = {_within(module).partition(".")[0] for module in TXCOORD} - {""}

    unknown = layers - PURE - SHELL - MAY_IMPORT.keys()

    assert not unknown, f"say in this file what {sorted(unknown)} may import"


@pytest.mark.parametrize("module", TXCOORD)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    if module == "txcoord":
        assert not imported(TXCOORD[module].read_text(), frozenset()), "the package itself imports nothing"
    else:
        assert wrong_imports(module, TXCOORD[module].read_text()) == set()


@pytest.mark.parametrize("module", [name for name in TXCOORD if _within(name).partition(".")[0] in PURE])
def test_a_pure_module_awaits_nothing(module: str) -> None:
    tree = ast.parse(TXCOORD[module].read_text())

    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]


@pytest.mark.parametrize("module", SDK)
def test_the_sdk_takes_only_the_pure_modules_and_the_messages(module: str) -> None:
    assert wrong_sdk_imports(SDK[module].read_text()) == set()


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        pytest.param("txcoord.model", "from txcoord.store.base import Store", "txcoord.store.base", id="pure to store"),
        pytest.param("txcoord.saga.decide", "import asyncio", "asyncio", id="pure to asyncio"),
        pytest.param("txcoord.saga.decide", "import sqlalchemy", "sqlalchemy", id="pure to a package"),
        pytest.param("txcoord.store.memory", "from txcoord.engine import x", "txcoord.engine", id="store upwards"),
        pytest.param("txcoord.store.memory", "import txcoord.dispatch.base", "txcoord.dispatch.base", id="sideways"),
        pytest.param("txcoord.engine.journal", "from txcoord import service", "txcoord.service", id="engine upwards"),
        pytest.param(
            "txcoord.engine.journal", "import txcoord.store.memory", "txcoord.store.memory", id="past contract"
        ),
        pytest.param("txcoord.api.http", "from txcoord.engine.engine import Engine", "txcoord.engine.engine", id="api"),
        pytest.param("txcoord.service", "def f():\n  import txcoord.api.http", "txcoord.api.http", id="in a function"),
    ],
)
def test_the_check_sees_a_wrong_import(module: str, source: str, wrong: str) -> None:
    assert wrong_imports(module, source) == {wrong}


@pytest.mark.parametrize("name", ["txcoord.store.base", "uvicorn", "structlog", "alembic"])
def test_the_check_sees_a_wrong_import_of_the_sdk(name: str) -> None:
    assert wrong_sdk_imports(f"import {name}") == {name}
