"""TLS towards single participants: which table of the file holds, mTLS, and what is refused at start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority, Certificate
from tests.integration.grpc_participant import GrpcParticipant
from tests.integration.http_participant import answer, participant, plays
from tests.integration.http_participant import request as http_request
from tests.integration.test_grpc_dispatch import request as grpc_request
from txcoord.app import build
from txcoord.dispatch.base import CallResult
from txcoord.dispatch.router import RoutingDispatcher
from txcoord.dispatch.settings import DispatchSettings
from txcoord.dispatch.tls import ParticipantTls
from txcoord.model import Outcome
from txcoord.settings.load import load


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Certificate:
    return authority.sign("participant")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Certificate:
    return authority.sign("coordinator")


Write = Callable[[str], DispatchSettings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a participant_tls_file."""

    def written(text: str) -> DispatchSettings:
        path = tmp_path / "participants.toml"
        path.write_text(text, encoding="utf-8")
        return DispatchSettings(participant_tls_file=str(path))

    return written


async def call_http(settings: DispatchSettings, port: int, host: str = "127.0.0.1") -> CallResult:
    dispatcher = RoutingDispatcher(settings)
    result = await dispatcher.call(http_request(f"https://{host}:{port}/in"))
    await dispatcher.close()
    return result


async def call_grpc(settings: DispatchSettings, it: GrpcParticipant) -> CallResult:
    dispatcher = RoutingDispatcher(settings)
    result = await dispatcher.call(grpc_request(it.url("In")))
    await dispatcher.close()
    return result


# -- HTTP ----------------------------------------------------------------------------------


async def test_a_participant_has_an_authority_of_its_own(
    authority: Authority, shown: Certificate, write: Write
) -> None:
    async with participant(plays(answer()), tls=authority.server_context(shown)) as it:
        trusted = await call_http(write(f'["127.0.0.1:{it.port}"]\nca_file = "{authority.ca_file}"'), it.port)
        other = await call_http(write(f'["127.0.0.1:{it.port + 1}"]\nca_file = "{authority.ca_file}"'), it.port)

    assert trusted.outcome is Outcome.SUCCESS
    assert "its certificate is not valid" in other.detail


async def test_a_certificate_is_shown_to_a_participant_that_wants_one(
    authority: Authority, shown: Certificate, ours: Certificate, write: Write
) -> None:
    plain = f'["127.0.0.1"]\nca_file = "{authority.ca_file}"\n'
    mutual = f'{plain}cert_file = "{ours.cert_file}"\nkey_file = "{ours.key_file}"'
    async with participant(plays(answer()), tls=authority.server_context(shown, wants_client=True)) as it:
        known = await call_http(write(mutual), it.port)
        unknown = await call_http(write(plain), it.port)

    assert known.outcome is Outcome.SUCCESS
    assert (unknown.outcome, unknown.code) == (Outcome.UNKNOWN, 0)
    assert len(it.received) == 1


async def test_another_name_is_asked_for(authority: Authority, write: Write) -> None:
    shown = authority.sign("by-name", host="orders.internal")
    text = f'["*"]\nca_file = "{authority.ca_file}"\n'
    async with participant(plays(answer()), tls=authority.server_context(shown)) as it:
        named = await call_http(write(f'{text}server_name = "orders.internal"'), it.port)
        unnamed = await call_http(write(text), it.port)

    assert (named.outcome, unnamed.outcome) == (Outcome.SUCCESS, Outcome.UNKNOWN)


async def test_verification_can_be_switched_off_for_one(authority: Authority, shown: Certificate, write: Write) -> None:
    settings = write('["127.0.0.1"]\nverify = false')
    async with participant(plays(answer()), tls=authority.server_context(shown)) as it:
        unverified = await call_http(settings, it.port)
        verified = await call_http(settings, it.port, host="localhost")

    assert (unverified.outcome, verified.outcome) == (Outcome.SUCCESS, Outcome.UNKNOWN)


# -- gRPC ----------------------------------------------------------------------------------


async def test_grpc_over_tls(authority: Authority, shown: Certificate, write: Write) -> None:
    settings = write(f'["127.0.0.1"]\ntls = true\nca_file = "{authority.ca_file}"')
    async with GrpcParticipant(credentials=authority.server_credentials(shown)) as it:
        over_tls = await call_grpc(settings, it)
        plainly = await call_grpc(DispatchSettings(), it)
        untrusted = await call_grpc(write('["127.0.0.1"]\ntls = true'), it)

    assert over_tls.outcome is Outcome.SUCCESS
    assert [(each.outcome, each.code) for each in (plainly, untrusted)] == [(Outcome.UNKNOWN, 0)] * 2
    assert len(it.received) == 1


async def test_grpc_shows_a_certificate(
    authority: Authority, shown: Certificate, ours: Certificate, write: Write
) -> None:
    plain = f'["127.0.0.1"]\ntls = true\nca_file = "{authority.ca_file}"\n'
    mutual = f'{plain}cert_file = "{ours.cert_file}"\nkey_file = "{ours.key_file}"'
    async with GrpcParticipant(credentials=authority.server_credentials(shown, wants_client=True)) as it:
        known = await call_grpc(write(mutual), it)
        unknown = await call_grpc(write(plain), it)

    assert (known.outcome, unknown.outcome) == (Outcome.SUCCESS, Outcome.UNKNOWN)
    assert len(it.received) == 1


async def test_files_are_read_at_start(authority: Authority, ours: Certificate, write: Write, tmp_path: Path) -> None:
    shown = authority.sign("grpc-at-start")
    files = {"ca_file": authority.ca_file, "cert_file": ours.cert_file, "key_file": ours.key_file}
    for name, file in files.items():
        (tmp_path / name).write_bytes(file.read_bytes())
    settings = write('["*"]\ntls = true\n' + "\n".join(f'{name} = "{name}"' for name in files))
    dispatcher = RoutingDispatcher(settings)
    for name in files:
        (tmp_path / name).unlink()

    async with GrpcParticipant(credentials=authority.server_credentials(shown, wants_client=True)) as it:
        result = await dispatcher.call(grpc_request(it.url("In")))
    await dispatcher.close()

    assert result.outcome is Outcome.SUCCESS


async def test_grpc_asks_for_another_name(authority: Authority, write: Write) -> None:
    shown = authority.sign("grpc-by-name", host="orders.internal")
    text = f'["*"]\ntls = true\nca_file = "{authority.ca_file}"\n'
    async with GrpcParticipant(credentials=authority.server_credentials(shown)) as it:
        named = await call_grpc(write(f'{text}server_name = "orders.internal"'), it)
        unnamed = await call_grpc(write(text), it)

    assert (named.outcome, unnamed.outcome) == (Outcome.SUCCESS, Outcome.UNKNOWN)


# -- which table holds, and what is refused ------------------------------------------------------


def test_the_most_exact_table_holds(write: Write) -> None:
    names = ("a.b.c:1", "A.B.C", "*.b.c:1", "*.b.c", "*.c", "*", "[::1]:5")
    tls = ParticipantTls(write("\n".join(f'["{name}"]\nserver_name = "{name}"' for name in names)))

    found = {
        (host, port): tls.of(host, port).server_name
        for host, port in [
            ("a.b.c", 1), ("a.b.c", 2), ("x.b.c", 1), ("x.b.c", 2), ("y.x.b.c", 2), ("b.c", 1), ("c", 1), ("::1", 5)
        ]
    }  # fmt: skip

    assert list(found.values()) == ["a.b.c:1", "A.B.C", "*.b.c:1", "*.b.c", "*.b.c", "*.c", "*", "[::1]:5"]


def test_grpc_speaks_tls_only_where_the_file_says_so(write: Write) -> None:
    tls = ParticipantTls(write('["a"]\ntls = true\n["b"]\nserver_name = "x"'))

    assert tls.of_grpc("a", 1) is not None
    assert tls.of_grpc("b", 1) is None
    assert tls.of_grpc("c", 1) is None


def test_a_host_is_the_same_however_it_is_written(write: Write) -> None:
    names = ("a.b:1", "[::1]:1", "[0:0::2]", "c.:2")
    tls = ParticipantTls(write("\n".join(f'["{name}"]\ntls = true' for name in names)))

    for host, port in [
        ("A.b.", 1), ("::1", 1), ("[::1]", 1), ("0:0:0:0:0:0:0:1", 1), ("[0::0:1]", 1), ("::2", 7), ("C", 2)
    ]:  # fmt: skip
        assert tls.of_grpc(host, port) is not None, host


def test_paths_are_relative_to_the_file(authority: Authority, shown: Certificate) -> None:
    file = authority.ca_file.with_name("participants.toml")
    file.write_text(f'["*"]\ntls = true\nca_file = "{authority.ca_file.name}"\ncert_file = "{shown.cert_file.name}"\n'
                    f'key_file = "{shown.key_file.name}"')  # fmt: skip

    found = ParticipantTls(DispatchSettings(participant_tls_file=str(file))).of("any", 1)

    assert found.grpc_roots == authority.ca_file.read_bytes()
    assert found.grpc_certificate == (shown.key_file.read_bytes(), shown.cert_file.read_bytes())


def test_what_a_table_does_not_say_is_as_for_all(authority: Authority, write: Write) -> None:
    settings = write('["*"]\ntls = true')
    general = DispatchSettings(participant_tls_file=settings.participant_tls_file, tls_ca_file=str(authority.ca_file))

    assert ParticipantTls(general).of("any", 1).grpc_roots == authority.ca_file.read_bytes()


WRONG = {
    "no TOML": ("[", "cannot be read"),
    "no table": ('a = "b"', "cannot be read: Expected `object`"),
    "unknown key": ('["a"]\nca = "b"', "contains unknown field `ca`"),
    "wrong type": ('["a"]\ntls = "yes"', "Expected `bool`"),
    "wrong name": ('["https://a"]', "table 'https://a': its name must be of the form host:port"),
    "key without a certificate": ('["a"]\nkey_file = "b"', "key_file is of no use without cert_file"),
    "no verification over gRPC": ('["a"]\ntls = true\nverify = false', "is not possible over gRPC"),
    "no such authority": ('["a"]\nca_file = "nothing.pem"', "nothing.pem cannot be read"),
    "no such certificate": ('["a"]\ncert_file = "nothing.pem"', "nothing.pem .*cannot be used"),
    "no certificate in it": ('["a"]\ncert_file = "participants.toml"', "participants.toml .*cannot be used"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused_at_start(write: Write, name: str) -> None:
    text, sentence = WRONG[name]

    with pytest.raises(ValueError, match=sentence):
        RoutingDispatcher(write(text))


def test_the_coordinator_does_not_start_with_such_a_file(tmp_path: Path) -> None:
    settings = load({"store": "memory://", "participant_tls_file": str(tmp_path / "nothing.toml")}).values

    with pytest.raises(ValueError, match=r"nothing\.toml \(participant_tls_file\) cannot be read"):
        build(settings)


def test_a_file_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.toml \(participant_tls_file\) cannot be read"):
        RoutingDispatcher(DispatchSettings(participant_tls_file=str(tmp_path / "nothing.toml")))
