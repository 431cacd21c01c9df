"""All settings of the coordinator: one table, and three ways to set each besides its default.

A flag wins over an environment variable (`TXCOORD_<NAME>`), that over the TOML file that
`--config` or `TXCOORD_CONFIG` names, and that over the default. Whatever is wrong, a
misspelled name included, is refused at start with a sentence that says where it stands
and what is allowed. docs/settings.md is made from this module.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast, get_args

from annotated_types import Ge, Le
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from txcoord.protocol import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT

ENV_PREFIX: Final = "TXCOORD_"
CONFIG_VARIABLE: Final = "TXCOORD_CONFIG"

# Not the coordinator's: the SDK, scripts/ and the tests read them. Kubernetes adds the rest to every
# container beside a service named "txcoord" or "txcoord-grpc", TXCOORD_PORT=tcp://… among them.
_FOREIGN_VARIABLE: Final = re.compile(
    r"TXCOORD_(CONFIG|URL|PYTHON|NO_APT|(TEST|SIMULATION)_.*"
    r"|(GRPC_)?(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.*|PORT_[0-9]+_.*))",
    re.IGNORECASE,
)
_KUBERNETES_PORT: Final = re.compile(r"(tcp|udp)://.*")

KIB: Final = 1024
MIB: Final = 1024 * KIB
DAY_S: Final = 24 * 3600

_STORE_URL: Final = re.compile(r"(sqlite:///.+|memory://|(mysql|mariadb|postgresql|postgres)(\+[a-z]+)?://.+)")
STORE_URL_FORMS: Final = "sqlite:///file.db, mysql://…, mariadb://…, postgresql://… or memory://"


def _check_store(url: str) -> str:
    if not _STORE_URL.fullmatch(url):
        raise ValueError(f"it must be a URL of one of the forms {STORE_URL_FORMS}")
    return url


def _check_host(host: str) -> str:
    if not host or not re.fullmatch(r"[0-9A-Za-z.:_-]+", host):
        raise ValueError("it must be a host name or an IP address to listen on")
    return host


Host = Annotated[str, AfterValidator(_check_host)]
StoreUrl = Annotated[str, AfterValidator(_check_store)]


class Settings(BaseSettings):
    """Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: Host = Field(
        "127.0.0.1",
        description="Address to listen on; 0.0.0.0 for all. Client certificates are the only authentication.",
    )
    port: int = Field(DEFAULT_HTTP_PORT, ge=0, le=65535, description="Port to listen on; 0 for a free one.")
    grpc: bool = Field(True, description="Whether the gRPC API is served too.")
    grpc_port: int = Field(
        DEFAULT_GRPC_PORT, ge=0, le=65535, description="Port of the gRPC API, on the same host; 0 for a free one."
    )
    workers: int = Field(
        1, ge=1, le=64, description="Processes that share the ports, each a node; more than 1 needs a server database."
    )
    store: StoreUrl = Field(
        "sqlite:///txcoord.db",
        description=f"Where transactions are kept: {STORE_URL_FORMS} (memory:// forgets everything when it stops; "
        "?ssl=… for TLS to a server: operating.md).",
    )
    store_pool: int = Field(
        4,
        ge=1,
        le=100,
        description="Database connections of each process for what clients ask; it has three more for its own work.",
    )
    store_timeout_s: float = Field(10.0, ge=0.1, le=600, description="Longest wait for one answer of the database.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important lines to log; info has one for each status change."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="How log lines look; auto is text on a terminal, otherwise json."
    )

    lease_s: float = Field(
        10.0, ge=1, le=600, description="How long a node may be silent before the others take over its transactions."
    )
    drain_s: float = Field(10.0, ge=0, le=600, description="Longest time after SIGTERM for calls under way to end.")
    request_timeout_s: float = Field(
        3.0, ge=0.1, le=3600, description="Time limit of a branch call when the transaction sets none."
    )
    timeout_to_fail_s: float = Field(
        35.0,
        ge=1,
        le=30 * DAY_S,
        description="Unless a transaction says so itself, how long it may stay prepared: then TCC and XA undo all, and "
        "a message has its initiator asked.",
    )
    retry_interval_s: float = Field(
        10.0, ge=0.05, le=DAY_S, description="Time until a branch that answered ONGOING is asked again, unless set."
    )
    error_backoff_s: float = Field(
        1.0, ge=0.01, le=3600, description="First delay after a failed call when the transaction sets no interval."
    )
    backoff_cap_s: float = Field(
        300.0, ge=1, le=DAY_S, description="Longest delay between two calls; delays double up to it."
    )
    max_live: int = Field(
        10_000, ge=1, le=1_000_000, description="Transactions that one process drives at once; more wait in the store."
    )
    max_wait_s: float = Field(
        60.0, ge=0.1, le=3600, description="Longest time that a submit with wait_result is kept waiting."
    )

    max_body_bytes: int = Field(4 * MIB, ge=KIB, le=1024 * MIB, description="Largest request body.")
    max_payload_bytes: int = Field(1 * MIB, ge=1, le=1024 * MIB, description="Largest payload of one step.")
    max_branches: int = Field(1000, ge=1, le=100_000, description="Most steps of one transaction.")
    max_url_length: int = Field(1024, ge=16, le=1024, description="Longest branch URL, in characters.")
    max_custom_data_bytes: int = Field(64 * KIB, ge=2, le=1 * MIB, description="Largest custom_data.")
    max_header_bytes: int = Field(
        8 * KIB, ge=0, le=64 * KIB, description="Most that branch_headers may add to a call, in bytes."
    )
    max_timeout_s: int = Field(
        30 * DAY_S, ge=1, le=366 * DAY_S, description="Longest time that a transaction may ask for in its options."
    )

    endpoint_connections: int = Field(
        256, ge=1, le=10_000, description="Most calls under way to one participant (scheme, host, port) at once."
    )
    connect_timeout_s: float = Field(
        3.0, ge=0.05, le=600, description="Time limit of name look-up, TCP and TLS together; the call's own holds too."
    )
    breaker_failures: int = Field(
        10, ge=1, le=1_000_000, description="Calls in a row without an answer after which a participant is left alone."
    )
    breaker_hold_s: float = Field(
        1.0, ge=0.01, le=3600, description="How long it is left alone at first; doubles with each probe that fails."
    )
    breaker_hold_max_s: float = Field(30.0, ge=0.01, le=3600, description="How long it is left alone at most.")
    max_response_bytes: int = Field(
        1 * MIB, ge=1 * KIB, le=1024 * MIB, description="Most of a participant's answer that is read."
    )
    failure_word_anywhere: bool = Field(
        False, description="DTM's rule: the words FAILURE and ONGOING count anywhere in an answer, whatever its status."
    )
    tls_verify: bool = Field(True, description="Whether certificates of https:// participants are checked.")
    tls_ca_file: str = Field("", description="PEM file of the authorities to trust; empty for the system's.")
    participant_tls_file: str = Field(
        "",
        description="TOML file on TLS towards single participants: authorities, our certificate, gRPC (operating.md).",
    )

    alert_webhook: str = Field(
        "",
        description="URL that alerts are POSTed to, of what fails again and again or needs an operator; empty: none.",
    )
    alert_retry_limit: int = Field(
        3, ge=1, le=1_000_000, description="Calls of one operation in a row that have to fail before there is an alert."
    )

    tls_cert_file: str = Field(
        "", description="PEM file of the server's own certificate and its chain; with it both ports speak TLS only."
    )
    tls_key_file: str = Field("", description="PEM file of that certificate's private key, not encrypted.")
    tls_client_ca_file: str = Field(
        "", description="PEM file of the authorities of clients' certificates; with it a client must show one."
    )

    keep_alive_s: int = Field(
        75, ge=1, le=3600, description="How long a client's connection is kept open with nothing to do."
    )

    def shown_store(self) -> str:
        """The store's URL as it may be shown: without its password."""
        return without_password(self.store)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file belong together: set both, or neither")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_client_ca_file is set without tls_cert_file: clients show certificates over TLS only")
        embedded = self.store.partition(":")[0]
        if self.workers > 1 and embedded in ("sqlite", "memory"):
            raise ValueError(
                f"workers is {self.workers}, but the {embedded} store works for one process only:"
                " set workers to 1, or store to a MySQL, MariaDB or PostgreSQL URL"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` reads the sources itself, because it has to say where a value came from.
        return (init_settings,)


FIELDS: Final[Mapping[str, FieldInfo]] = Settings.model_fields


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


# -- how settings are shown -----------------------------------------------------------


def without_password(url: str) -> str:
    """Hide the password of a URL, whatever else is in it."""
    url = re.sub(r"^([^:]*:/*[^:@/]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:password|passwd|pw)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def shown_value(name: str, value: object) -> object:
    return without_password(value) if name in ("store", "alert_webhook") and isinstance(value, str) else value


def allowed(name: str) -> str:
    """Say what values a setting may have."""
    field = FIELDS[name]
    if choices := get_args(field.annotation):
        return "one of " + ", ".join(map(str, choices))
    if field.annotation is bool:
        return "true or false"
    lowest = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    highest = next((item.le for item in field.metadata if isinstance(item, Le)), None)
    if lowest is None:
        return _TEXTS[name]
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} from {lowest} to {highest}"


_TEXTS: Final = {
    "host": "a host name or address",
    "store": "a URL",
    "tls_ca_file": "a path",
    "tls_cert_file": "a path",
    "tls_key_file": "a path",
    "tls_client_ca_file": "a path",
    "participant_tls_file": "a path",
    "alert_webhook": "a URL",
}


def shown(value: object) -> str:
    """Write a value as it is written in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or '""'


def resolved_log_format(settings: Settings) -> Literal["json", "text"]:
    if settings.log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return settings.log_format


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Name, what is allowed, default and meaning of every setting."""
    for name, field in FIELDS.items():
        meaning = cast(str, field.description)
        yield name, allowed(name), shown(field.default), meaning


def documentation() -> str:
    """Make docs/settings.md."""
    table = "\n".join(
        f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | {bounds} | `{default}` | {meaning} |"
        for name, bounds, default, meaning in rows()
    )
    return _PAGE.format(table=table)


_PAGE: Final = """\
# Settings

<!-- Made from txcoord/settings.py by `txcoord settings --markdown`; a test fails when it is out of date. -->

A setting has its value from the first of these that names it:

1. a flag of `txcoord serve`: `--port 8080`, or for those without a flag of their own `--set max_branches=50`;
2. an environment variable: `TXCOORD_PORT=8080`;
3. a TOML file, named by `--config` or `TXCOORD_CONFIG`: `port = 8080`;
4. the default.

`txcoord settings` prints what is in effect and where it came from. A value that is not allowed, or a name that is not
known, stops the start with a sentence and exit code 2. Names end in their unit: `_s` in seconds, which may have a
fraction, `_bytes` in bytes.

| In the file | Environment | Allowed | Default | Meaning |
|---|---|---|---|---|
{table}

Variables that Kubernetes makes for services named `txcoord` and `txcoord-grpc` (`TXCOORD_SERVICE_HOST`,
`TXCOORD_PORT=tcp://…` and their like), `TXCOORD_URL` (the SDK's), and `TXCOORD_PYTHON`, `TXCOORD_NO_APT`,
`TXCOORD_TEST_…` and `TXCOORD_SIMULATION_…` (those of scripts and tests) are not settings of the coordinator and are
ignored.
"""
