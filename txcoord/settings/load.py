"""Reads the settings of a process from its flags, its environment and a file.

A flag wins over an environment variable (`TXCOORD_<NAME>`), that over the TOML file that
`--config` or `TXCOORD_CONFIG` names, and that over the default. Whatever is wrong, a
misspelled name included, is refused at start with a sentence that says where it stands
and what is allowed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from txcoord.settings.show import allowed, shown_value
from txcoord.settings.table import ENV_PREFIX, FIELDS, Settings

CONFIG_VARIABLE: Final = "TXCOORD_CONFIG"

# Not the coordinator's: the SDK, scripts/ and the tests read them. Kubernetes adds the rest to every
# container beside a service named "txcoord" or "txcoord-grpc", TXCOORD_PORT=tcp://… among them.
_FOREIGN_VARIABLE: Final = re.compile(
    r"TXCOORD_(CONFIG|URL|PYTHON|NO_APT|(TEST|SIMULATION)_.*"
    r"|(GRPC_)?(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*|PORT_[0-9]+_.*))",
    re.IGNORECASE,
)
_KUBERNETES_PORT: Final = re.compile(r"(tcp|udp)://.*")


class SettingsError(Exception):
    """A setting is wrong; the text has a sentence for each that is."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Loaded:
    """Settings, and where each of them came from."""

    def __init__(self, values: Settings, origins: Mapping[str, str]) -> None:
        self.values = values
        self._origins = origins

    def origin(self, name: str) -> str:
        return self._origins.get(name, "default")


def load(flags: Mapping[str, Any] | None = None, *, config: Path | None = None) -> Loaded:
    """Read the settings of this process.

    Args:
        flags: what the command line says, by the names of `Settings`; None for what it does not say.
        config: the TOML file; None for the one that `TXCOORD_CONFIG` names, if any.

    Raises:
        SettingsError: something is wrong; every problem has its sentence.
    """
    config = config or _config_from_environment()
    layers = {
        f"the file {config}": _read_file(config) if config else {},
        "the environment": _read_environment(),
        "the command line": {name: value for name, value in (flags or {}).items() if value is not None},
    }
    problems: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers.items():
        for name, value in layer.items():
            if name not in FIELDS:
                problems.append(_unknown(name, origin))
                continue
            values[name] = value
            origins[name] = f"{ENV_PREFIX}{name.upper()}" if origin == "the environment" else origin
    if problems:
        raise SettingsError(problems)
    try:
        return Loaded(Settings(**values), origins)
    except ValidationError as error:
        raise SettingsError([_problem(detail, origins) for detail in error.errors()]) from error


def _config_from_environment() -> Path | None:
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError([f"the settings file {path} does not exist"])
    try:
        return TomlConfigSettingsSource(Settings, path)()
    except (OSError, ValueError) as error:
        raise SettingsError([f"the settings file {path} cannot be read as TOML: {error}"]) from error


def _read_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in os.environ.items():
        if not variable.upper().startswith(ENV_PREFIX) or _FOREIGN_VARIABLE.fullmatch(variable):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name not in FIELDS:
            found[name] = value
    known = EnvSettingsSource(Settings)()
    for name in ("port", "grpc_port"):
        if _KUBERNETES_PORT.fullmatch(str(known.get(name, ""))):
            del known[name]
    return {**found, **known}


def _unknown(name: str, origin: str) -> str:
    shown = f"{ENV_PREFIX}{name.upper()}" if origin == "the environment" else name
    close = get_close_matches(name.lower(), FIELDS, n=1, cutoff=0.6)
    as_here = str.upper if origin == "the environment" else str
    prefix = ENV_PREFIX if origin == "the environment" else ""
    hint = f"did you mean {prefix}{as_here(close[0])}?" if close else "`txcoord settings` lists all there are"
    return f"{shown}, from {origin}, is not a setting: {hint}"


def _problem(detail: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    if not detail["loc"]:
        return str(detail["ctx"]["error"])
    name = str(detail["loc"][0])
    expected = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else f"it must be {allowed(name)}"
    return f"{name} is {shown_value(name, detail['input'])!r} (from {origins[name]}): {expected}"


def resolved_log_format(settings: Settings) -> Literal["json", "text"]:
    if settings.log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return settings.log_format
