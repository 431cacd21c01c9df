"""Calls over TLS, with certificates made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.integration.http_participant import answer, never, participant, plays, request
from txcoord.dispatch.http import DispatchSettings, HttpDispatcher
from txcoord.model import Outcome


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "participant")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "participant.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_a_participant_with_a_trusted_certificate_is_called(
    certificate: Path, server_side: ssl.SSLContext
) -> None:
    dispatcher = HttpDispatcher(DispatchSettings(tls_ca_file=str(certificate)))
    async with participant(plays(answer(409, b"no")), tls=server_side) as it:
        results = [await dispatcher.call(request(it.base)) for _ in range(3)]
        await dispatcher.close()

    assert {(result.outcome, result.detail) for result in results} == {(Outcome.FAILURE, "no")}
    assert [seen.connection for seen in it.received] == [1, 1, 1]


def test_on_uvloop_too(certificate: Path, server_side: ssl.SSLContext) -> None:
    uvloop.run(test_a_participant_with_a_trusted_certificate_is_called(certificate, server_side))


async def test_a_certificate_that_is_not_trusted_is_unknown(server_side: ssl.SSLContext) -> None:
    dispatcher = HttpDispatcher()
    async with participant(plays(answer()), tls=server_side) as it:
        result = await dispatcher.call(request(it.base))
        await dispatcher.close()

    assert (result.outcome, result.called) == (Outcome.UNKNOWN, True)
    assert "its certificate is not valid: self-signed certificate" in result.detail
    assert not it.received


async def test_a_certificate_for_another_host_is_unknown(certificate: Path, server_side: ssl.SSLContext) -> None:
    dispatcher = HttpDispatcher(DispatchSettings(tls_ca_file=str(certificate)))
    async with participant(plays(answer()), tls=server_side) as it:
        result = await dispatcher.call(request(f"https://localhost:{it.port}/"))
        await dispatcher.close()

    assert result.outcome is Outcome.UNKNOWN
    assert "its certificate is not valid: " in result.detail
    assert not it.received


async def test_verification_can_be_switched_off(server_side: ssl.SSLContext) -> None:
    dispatcher = HttpDispatcher(DispatchSettings(tls_verify=False))
    async with participant(plays(answer()), tls=server_side) as it:
        result = await dispatcher.call(request(it.base))
        await dispatcher.close()

    assert result.outcome is Outcome.SUCCESS


async def test_a_participant_that_does_not_speak_tls_is_unknown() -> None:
    dispatcher = HttpDispatcher()
    async with participant(never) as it:

        async def no_tls(*_: object) -> None:
            raise AssertionError("a handshake is no request")

        it.play = no_tls
        result = await dispatcher.call(request(f"https://127.0.0.1:{it.port}/", timeout_s=0.3))
        await dispatcher.close()

    assert (result.outcome, result.code) == (Outcome.UNKNOWN, 0)
    assert "no connection" in result.detail


async def test_a_time_out_over_tls_closes_the_connection(certificate: Path, server_side: ssl.SSLContext) -> None:
    dispatcher = HttpDispatcher(DispatchSettings(tls_ca_file=str(certificate)))
    async with participant(never, tls=server_side) as it:
        result = await dispatcher.call(request(it.base, timeout_s=0.3))
        await it.wait_until(lambda: it.open_connections == 0)
        await dispatcher.close()

    assert result.outcome is Outcome.UNKNOWN


def test_authorities_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.pem cannot be read"):
        HttpDispatcher(DispatchSettings(tls_ca_file=str(tmp_path / "nothing.pem")))
