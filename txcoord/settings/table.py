"""The table: what each setting is called, may be, is by default, and means. docs/settings.md is made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from txcoord.protocol import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT

ENV_PREFIX: Final = "TXCOORD_"

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
        description="Database connections of each process for what clients ask; it has seven more for its own work.",
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


def without_password(url: str) -> str:
    """Hide the password of a URL, whatever else is in it."""
    url = re.sub(r"^([^:]*:/*[^:@/]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&](?:password|passwd|pw)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
