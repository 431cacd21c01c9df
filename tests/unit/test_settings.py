from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from txcoord import app
from txcoord.dispatch.settings import DispatchSettings
from txcoord.engine.settings import EngineSettings
from txcoord.request import Limits
from txcoord.settings.load import SettingsError, load
from txcoord.settings.show import documentation
from txcoord.settings.table import FIELDS, Settings, without_password

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TXCOORD_"):
            monkeypatch.delenv(name)


def refused(**flags: object) -> str:
    with pytest.raises(SettingsError) as error:
        load(flags)
    return str(error.value)


def file_with(folder: Path, text: str) -> Path:
    path = folder / "txcoord.toml"
    path.write_text(text)
    return path


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = file_with(tmp_path, "host = '10.0.0.1'\nport = 1\nlease_s = 7\n")
    monkeypatch.setenv("TXCOORD_PORT", "2")
    monkeypatch.setenv("TXCOORD_LEASE_S", "8")

    loaded = load({"lease_s": "9", "drain_s": None}, config=config)

    values = loaded.values
    assert (values.host, values.port, values.lease_s, values.drain_s) == ("10.0.0.1", 2, 9.0, 10.0)
    assert loaded.origin("host") == f"the file {config}"
    assert loaded.origin("port") == "TXCOORD_PORT"
    assert loaded.origin("lease_s") == "the command line"
    assert loaded.origin("drain_s") == "default"


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_CONFIG", str(file_with(tmp_path, "port = 5\n")))

    assert load().values.port == 5


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("port", "abc", "port is 'abc' (from the command line): it must be a whole number from 0 to 65535"),
        ("port", "70000", "port is '70000' (from the command line): it must be a whole number from 0 to 65535"),
        ("workers", "0", "a whole number from 1 to 64"),
        ("lease_s", "nan", "it must be a number from 1 to 600"),
        ("lease_s", "inf", "it must be a number from 1 to 600"),
        ("log_level", "loud", "it must be one of debug, info, warning, error"),
        ("log_format", "xml", "it must be one of auto, json, text"),
        ("store", "oracle://x", "it must be a URL of one of the forms sqlite:///file.db"),
        ("host", "http://x", "it must be a host name or an IP address"),
        ("tls_verify", "maybe", "it must be true or false"),
        ("workers", "2", "the sqlite store works for one process only"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, sentence: str) -> None:
    assert sentence in refused(**{name: value})


def test_all_that_is_wrong_is_named_at_once() -> None:
    assert len(refused(port="x", workers="y").splitlines()) == 2


def test_workers_need_a_server_database() -> None:
    assert load({"workers": 2, "store": "mysql://u@h/db"}).values.workers == 2
    assert "the memory store works for one process only" in refused(workers=2, store="memory://")


def test_a_misspelled_variable_is_named_with_the_closest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_STROE", "memory://")

    assert refused() == "TXCOORD_STROE, from the environment, is not a setting: did you mean TXCOORD_STORE?"


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    config = file_with(tmp_path, "prot = 5\nzzzz = 1\n")

    with pytest.raises(SettingsError) as error:
        load(config=config)

    assert error.value.problems == [
        f"prot, from the file {config}, is not a setting: did you mean port?",
        f"zzzz, from the file {config}, is not a setting: `txcoord settings` lists all there are",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TXCOORD_URL", "http://coordinator"),
        ("TXCOORD_TEST_MYSQL", "mysql://x"),
        ("TXCOORD_PYTHON", "python3.12"),
        ("TXCOORD_NO_APT", "1"),
        ("TXCOORD_SIMULATION_SEEDS", "5000"),
        ("TXCOORD_SERVICE_HOST", "10.0.0.1"),
        ("TXCOORD_SERVICE_PORT_HTTP", "36789"),
        ("TXCOORD_PORT_36789_TCP_ADDR", "10.0.0.1"),
        ("TXCOORD_PORT", "tcp://10.0.0.1:36789"),
        ("TXCOORD_PORT", ""),
        ("TXCOORD_GRPC_SERVICE_HOST", "10.0.0.1"),
        ("TXCOORD_GRPC_PORT_36790_TCP_ADDR", "10.0.0.1"),
        ("TXCOORD_GRPC_PORT", "tcp://10.0.0.1:36790"),
    ],
)
def test_variables_of_others_are_left_alone(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    assert load().values == Settings()


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load(config=tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"txcoord\.toml cannot be read as TOML"):
        load(config=file_with(tmp_path, "port 5"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://user:pa:ss@word@host:3306/db", "mysql://user:***@host:3306/db"),
        ("postgresql://user:a/b@host/db", "postgresql://user:***@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        (
            "postgresql://u@h/db?sslmode=require&password=secret&x=1",
            "postgresql://u@h/db?sslmode=require&password=***&x=1",
        ),
        ("mysql:/user:secret@host", "mysql:/user:***@host"),
        ("sqlite:////var/lib/txcoord.db", "sqlite:////var/lib/txcoord.db"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_refused_store_does_not_show_its_password() -> None:
    assert "secret" not in refused(store="mysq://user:secret@host/db")


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == documentation(), "run: txcoord settings --markdown > docs/settings.md"


def test_every_setting_is_documented() -> None:
    assert [name for name, field in FIELDS.items() if not field.description] == []


def test_defaults_agree_with_those_of_the_parts() -> None:
    settings = Settings()

    assert app.engine_settings(settings) == EngineSettings()
    assert app.dispatch_settings(settings) == DispatchSettings()
    assert app.limits(settings) == Limits()


def test_every_setting_reaches_a_part() -> None:
    """A setting that is documented and read by nothing would be a lie."""
    source = "".join(
        path.read_text() for folder in (ROOT / "txcoord", ROOT / "txcoord" / "process") for path in folder.glob("*.py")
    )
    read = {*re.findall(r"settings\.(\w+)", source), "log_format"}  # the last one by settings.resolved_log_format

    assert [name for name in FIELDS if name not in read] == []
