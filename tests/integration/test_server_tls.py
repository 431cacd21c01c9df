"""TLS of the coordinator's own servers, with certificates made on the spot: who is served, and what is said."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from localservers.servers import Server
from tests.e2e.harness import upgrade
from tests.integration.callers import DTM, ask
from tests.integration.test_cli import Serving, only_sentence, txcoord
from txcoord import __version__
from txcoord_sdk import AsyncCoordinator, Coordinator, CoordinatorUnreachableError

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def issue(self, name: str, *, password: bytes | None = None) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key).add_extension(addresses, critical=False).sign(self._key, hashes.SHA256())
        identity = Identity(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        identity.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        identity.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
        )
        return identity


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Authority:
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def server_identity(ours: Authority) -> Identity:
    return ours.issue("coordinator")


@pytest.fixture(scope="module")
def client_identity(ours: Authority) -> Identity:
    return ours.issue("client")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Identity:
    return Authority(folder, "theirs").issue("stranger")


def settings_of(identity: Identity, **more: Path) -> list[str]:
    values: Mapping[str, Path] = {"tls_cert_file": identity.certificate, "tls_key_file": identity.key, **more}
    return [word for name, path in values.items() for word in ("--set", f"{name}={path}")]


def serve(*arguments: str) -> Iterator[Serving]:
    process = Serving("--store", "memory://", *arguments)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def serving(server_identity: Identity) -> Iterator[Serving]:
    yield from serve(*settings_of(server_identity))


@pytest.fixture(scope="module")
def strict(server_identity: Identity, ours: Authority) -> Iterator[Serving]:
    """One that serves only those who show a certificate of our authority."""
    yield from serve(*settings_of(server_identity, tls_client_ca_file=ours.file))


def context_of(authority: Authority, identity: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


async def new_gid_over_http(serving: Serving, authority: Authority, identity: Identity | None = None) -> bool:
    try:
        async with httpx.AsyncClient(verify=context_of(authority, identity)) as http:
            return (await http.get(f"{serving.url}/api/dtmsvr/newGid")).status_code == 200
    except httpx.TransportError:
        return False


async def new_gid_over_grpc(
    serving: Serving, authority: Authority, identity: Identity | None = None
) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(),
        identity.key.read_bytes() if identity else None,
        identity.certificate.read_bytes() if identity else None,
    )
    async with grpc.aio.secure_channel(serving.grpc, credentials) as channel:
        return (await ask(channel, DTM + "NewGid"))[0]


async def test_both_servers_speak_tls(serving: Serving, ours: Authority) -> None:
    assert serving.url.startswith("https://127.0.0.1:")
    assert f", grpcs://{serving.grpc}," in serving.said

    assert await new_gid_over_http(serving, ours)
    assert await new_gid_over_grpc(serving, ours) is OK


async def test_neither_is_understood_without_tls(serving: Serving) -> None:
    with pytest.raises(httpx.TransportError):
        async with httpx.AsyncClient() as http:
            await http.get(serving.url.replace("https", "http"))
    async with grpc.aio.insecure_channel(serving.grpc) as channel:
        assert (await ask(channel, DTM + "NewGid"))[0] is UNAVAILABLE


async def test_who_trusts_another_authority_does_not_talk_to_us(serving: Serving, folder: Path) -> None:
    other = Authority(folder, "other")

    assert not await new_gid_over_http(serving, other)
    assert await new_gid_over_grpc(serving, other) is UNAVAILABLE


async def test_a_client_with_a_certificate_is_served(
    strict: Serving, ours: Authority, client_identity: Identity
) -> None:
    assert await new_gid_over_http(strict, ours, client_identity)
    assert await new_gid_over_grpc(strict, ours, client_identity) is OK


@pytest.mark.parametrize("is_stranger", [False, True], ids=["none", "of another authority"])
async def test_a_client_without_a_certificate_of_ours_is_not(
    strict: Serving, ours: Authority, stranger: Identity, is_stranger: bool
) -> None:
    identity = stranger if is_stranger else None

    assert not await new_gid_over_http(strict, ours, identity)
    assert await new_gid_over_grpc(strict, ours, identity) is UNAVAILABLE


async def test_the_sdk_talks_over_tls_of_its_own(strict: Serving, ours: Authority, client_identity: Identity) -> None:
    with httpx.Client(verify=context_of(ours, client_identity)) as http, Coordinator(strict.url, http=http) as one:
        assert one.version() == __version__
    async with (
        httpx.AsyncClient(verify=context_of(ours, client_identity)) as ahttp,
        AsyncCoordinator(strict.url, http=ahttp) as other,
    ):
        assert await other.version() == __version__
    with Coordinator(strict.url, attempts=1) as stranger, pytest.raises(CoordinatorUnreachableError):
        stranger.version()


@pytest.fixture
def workers(server_identity: Identity, mariadb_server: Server) -> Iterator[Serving]:
    store = mariadb_server.create_database(f"store_{uuid4().hex[:8]}")
    upgrade(store)
    yield from serve(*settings_of(server_identity), "--store", store, "--workers", "2")


async def test_workers_speak_it_too(workers: Serving, ours: Authority) -> None:
    assert workers.url.startswith("https://")
    assert await new_gid_over_http(workers, ours)
    assert await new_gid_over_grpc(workers, ours) is OK


# -- what is wrong with the files ------------------------------------------------------------


def refusal(*arguments: str) -> tuple[int, str]:
    done = txcoord("serve", "--port", "0", "--grpc-port", "0", "--store", "memory://", *arguments)
    return done.returncode, only_sentence(done)


def test_files_that_cannot_be_used_end_the_start_with_a_sentence(
    folder: Path, ours: Authority, server_identity: Identity, client_identity: Identity
) -> None:
    missing, rubbish = folder / "missing.pem", folder / "rubbish.pem"
    rubbish.write_text("hello")
    hidden = ours.issue("hidden", password=b"secret")

    mixed = Identity(server_identity.certificate, client_identity.key)
    assert refusal(*settings_of(mixed)) == (
        1,
        f"txcoord: the private key {mixed.key} (tls_key_file) does not belong to the certificate"
        f" {mixed.certificate} (tls_cert_file)",
    )
    code, sentence = refusal(*settings_of(Identity(missing, server_identity.key)))
    assert (code, sentence) == (
        1,
        f"txcoord: the file {missing} (tls_cert_file) cannot be read: No such file or directory",
    )
    code, sentence = refusal(*settings_of(Identity(server_identity.certificate, rubbish)))
    assert (code, sentence.endswith("cannot be used: both must be in PEM form")) == (1, True)
    code, sentence = refusal(*settings_of(hidden))
    assert (code, "(tls_key_file) is encrypted: give one without a password" in sentence) == (1, True)
    code, sentence = refusal(*settings_of(server_identity, tls_client_ca_file=rubbish))
    assert (code, sentence) == (
        1,
        f"txcoord: the file {rubbish} (tls_client_ca_file) has no certificates in PEM form",
    )


def test_settings_that_do_not_go_together_are_refused(server_identity: Identity) -> None:
    assert refusal("--set", f"tls_cert_file={server_identity.certificate}") == (
        2,
        "txcoord: tls_cert_file and tls_key_file belong together: set both, or neither",
    )
    assert refusal("--set", f"tls_client_ca_file={server_identity.certificate}") == (
        2,
        "txcoord: tls_client_ca_file is set without tls_cert_file: clients show certificates over TLS only",
    )
