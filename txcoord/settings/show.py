"""How settings are shown: what each may be, what it is, and the page docs/settings.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast, get_args

from annotated_types import Ge, Le

from txcoord.settings.table import ENV_PREFIX, FIELDS, without_password


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

<!-- Made from txcoord/settings/ by `txcoord settings --markdown`; a test fails when it is out of date. -->

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
