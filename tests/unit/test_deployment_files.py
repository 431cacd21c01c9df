"""Dockerfile and docker-compose.yml, checked without an engine: what they name exists, and fits together."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from txcoord import cli
from txcoord.settings.load import load

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"

Instruction = tuple[str, str]


# -- reading them ------------------------------------------------------------------------


def instructions() -> list[Instruction]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[Instruction]]:
    """Instructions by the stage's name, those of the stage it is made from included; "" is what is built by default."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        found[name].append((word, rest))
    return found


def last(stage: str, word: str) -> str:
    return [rest for each, rest in stages()[stage] if each == word][-1]


def image_environment(stage: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for word, rest in stages()[stage]:
        if word == "ENV":
            values |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    return values


def interpolated(text: str) -> str:
    """Fill in `${NAME:-default}` as compose does when NAME is not set; every variable has a default."""
    filled = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)
    assert "${" not in filled, f"a variable without a default in {text!r}"
    return filled.replace("$$", "$")


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


SERVICES = services()
OWN = {name: service for name, service in SERVICES.items() if "build" in service}
EXAMPLES = {name: service for name, service in OWN.items() if service["build"]["target"] == "examples"}
COORDINATORS = {name: service for name, service in OWN.items() if name not in EXAMPLES}


def example_options(name: str) -> argparse.Namespace:
    module, *arguments = (interpolated(word) for word in EXAMPLES[name]["command"])
    options: argparse.Namespace = importlib.import_module(module).command_line().parse_args(arguments)
    return options


def container_environment(service: Mapping[str, Any]) -> dict[str, str]:
    own = {name: interpolated(value) for name, value in service.get("environment", {}).items()}
    return image_environment(service["build"]["target"]) | own


def listens_on(name: str) -> int:
    if name in EXAMPLES:
        port: int = example_options(name).port
        return port
    return int(container_environment(OWN[name])["TXCOORD_PORT"])


def all_ports_of(name: str) -> set[int]:
    if name in EXAMPLES:
        return {listens_on(name)}
    environment = container_environment(OWN[name])
    return {int(environment["TXCOORD_PORT"]), int(environment["TXCOORD_GRPC_PORT"])}


def known_names() -> set[str]:
    aliases = {
        alias
        for service in SERVICES.values()
        for network in service.get("networks", {}).values()
        for alias in network.get("aliases", ())
    }
    return {*SERVICES, *aliases}


# -- Dockerfile --------------------------------------------------------------------------


def sources() -> list[str]:
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_exists_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out unless it is named"
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert any(fnmatch.fnmatch(source, line) or line.startswith(f"{source}/") for line in let_in)


def test_modules_that_the_examples_import_are_copied() -> None:
    copied = {Path(source).stem for source in sources() if source.startswith("examples/")}
    imported = {
        module
        for name in copied
        for module in re.findall(
            r"^from examples\.(\w+) import", (ROOT / f"examples/{name}.py").read_text(), re.MULTILINE
        )
    }
    assert imported <= copied


@pytest.mark.parametrize("stage", stages())
def test_nothing_runs_as_root(stage: str) -> None:
    assert last(stage, "USER") == "txcoord"


@pytest.mark.parametrize("stage", ["", "coordinator"])
def test_the_image_runs_the_server(stage: str) -> None:
    assert json.loads(last(stage, "ENTRYPOINT")) == ["txcoord"]
    assert resolved(json.loads(last(stage, "CMD"))) == "serve"
    environment = image_environment(stage)
    assert last(stage, "EXPOSE").split() == [environment["TXCOORD_PORT"], environment["TXCOORD_GRPC_PORT"]]


def test_extras_that_are_installed_exist() -> None:
    for folder, extra in re.findall(r'"/build/?(\w*)\[(\w+)\]"', DOCKERFILE.read_text()):
        assert re.search(rf"^{extra} = \[", (ROOT / folder / "pyproject.toml").read_text(), re.MULTILINE)


# -- docker-compose.yml ------------------------------------------------------------------


def resolved(words: Sequence[str]) -> str:
    """Follow a command of ours to its end, options checked; return its name."""
    command: Any = typer.main.get_command(cli.app)
    path = []
    words = list(words)
    while words and hasattr(command, "commands"):
        path.append(words.pop(0))
        assert path[-1] in command.commands, f"`txcoord {' '.join(path)}` is not a command"
        command = command.commands[path[-1]]
    command.make_context(path[-1], words, resilient_parsing=False)
    return " ".join(path)


def test_there_are_two_coordinators_and_the_example_services() -> None:
    assert set(EXAMPLES) == {"order", "storage", "bff"}
    assert set(COORDINATORS) == {"schema", "coordinator-1", "coordinator-2"}


@pytest.mark.parametrize("name", COORDINATORS)
def test_settings_of_a_coordinator_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("TXCOORD_"):
            monkeypatch.delenv(variable)
    for variable, value in container_environment(COORDINATORS[name]).items():
        monkeypatch.setenv(variable, value)

    settings = load().values

    assert settings.host == "0.0.0.0"
    assert urlsplit(settings.store)[:2] == ("mysql", "txcoord:local-only@mysql:3306")


def test_tables_are_made_before_a_coordinator_starts() -> None:
    assert resolved(SERVICES["schema"]["command"]) == "db upgrade"
    for name in ("coordinator-1", "coordinator-2"):
        assert "command" not in SERVICES[name], "it serves, as the image does"
        assert SERVICES[name]["depends_on"]["schema"]["condition"] == "service_completed_successfully"


def test_a_coordinator_is_given_the_time_to_drain() -> None:
    for name in ("coordinator-1", "coordinator-2"):
        grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > load().values.drain_s


@pytest.mark.parametrize("name", EXAMPLES)
def test_urls_given_to_a_service_lead_to_one_that_listens_there(name: str) -> None:
    options = vars(example_options(name))
    urls = {key: urlsplit(value) for key, value in options.items() if "://" in str(value)}
    assert options["host"] == "0.0.0.0"
    assert urls
    for key, url in urls.items():
        assert url.hostname in known_names(), key
        expected = (
            3306 if url.hostname == "mysql" else listens_on(str(url.hostname).replace("coordinator", "coordinator-1"))
        )
        assert url.port == expected, key


def test_every_database_and_its_user_are_made() -> None:
    script = (ROOT / "examples/mysql-init.sh").read_text()
    made = set(re.search(r"^for name in (.*); do$", script, re.MULTILINE)[1].split())  # type: ignore[index]
    text = interpolated(COMPOSE.read_text())
    used = re.findall(r"mysql://(\w+):[\w-]+@mysql:3306/(\w+)", text)

    assert {name for pair in used for name in pair} == made
    assert all(user == database for user, database in used)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_happen(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        service = SERVICES[other]
        if condition["condition"] == "service_healthy":
            check = service.get("healthcheck", {})
            from_image = "build" in service and last(service["build"]["target"], "HEALTHCHECK") != "NONE"
            assert check.get("test") or (from_image and not check.get("disable"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_health_is_asked_for_where_the_service_listens(name: str) -> None:
    [port] = re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", SERVICES[name]["healthcheck"]["test"][-1])
    assert int(port) == listens_on(name)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_only(name: str) -> None:
    published = [port.split(":") for port in SERVICES[name].get("ports", ())]

    assert {address for address, _, _ in published} <= {"127.0.0.1"}
    assert not published or {int(inside) for _, _, inside in published} == all_ports_of(name)


def test_no_port_of_this_machine_is_published_twice() -> None:
    outside = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", ())]

    assert len(outside) == len(set(outside))


def test_folders_and_files_that_are_mounted_exist() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in volumes


def test_every_password_can_be_set_from_outside() -> None:
    text = COMPOSE.read_text()
    assert text.count("local-only") == len(re.findall(r"\$\{[A-Z_]+PASSWORD:-local-only\}", text))
    assert not re.search(r"PASSWORD: (?!\$\{)", text)


def test_the_command_checker_notices_a_wrong_option() -> None:
    # Which click it is depends on the version of typer, so not by class.
    with pytest.raises(Exception, match="No such option"):
        resolved(["serve", "--no-such-option"])
