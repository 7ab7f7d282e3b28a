"""openssl judges what is made and what is said of what others made, and real clients connect."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from installer.deploy.certificates import HarborCertificate
from installer.deploy.nodes import TellNodes
from installer.site.authority import PEOPLE, ensure_certificates, utc_now
from installer.site.certificate import TlsFiles, Verdict, examine
from installer.site.harbor import Certificate, Harbor, Provided, SelfSigned
from installer.site.model import Cluster, Nodes, Seed, Serve, Site
from installer.site.state import State
from tests.integration.servers import _running, free_port, run
from tests.upstream.certificates import Certificates
from tests.upstream.images import image, layer, write_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.servers import Containerd, DockerRegistry

HOST = "harbor.plant.test"
# What Harbor's documentation has people write ("Configure HTTPS Access to Harbor").
V3_EXT = f"""authorityKeyIdentifier=keyid,issuer
basicConstraints=CA:FALSE
keyUsage = digitalSignature, nonRepudiation, keyEncipherment, dataEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:{HOST},IP:127.0.0.1
"""
AUTHORITY = "basicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=hash\n"


class Plant:
    """An authority, an intermediate and a leaf that openssl made, as a site's own people do."""

    def __init__(self, openssl: Path, folder: Path) -> None:
        self.openssl = openssl
        self.folder = folder
        self.ssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj",
                 "/O=Plant/CN=Plant Root", "-keyout", "root.key", "-out", "root.crt")  # fmt: skip
        self.issue("middle", "/O=Plant/CN=Plant Issuing CA", AUTHORITY, "root")
        self.issue("leaf", f"/O=Plant/CN={HOST}", V3_EXT, "middle")
        self.write("chain.crt", "leaf.crt", "middle.crt")

    def ssl(self, command: str, *arguments: str) -> str:
        named = {"-keyout", "-out", "-key", "-in", "-CA", "-CAkey", "-CAfile", "-untrusted"}
        named |= {"-extfile", "-inkey", "-certfile"}
        paths = [
            str(self.folder / text) if before in named else text
            for before, text in zip((command, *arguments), arguments, strict=False)
        ]
        return run(self.openssl, command, *paths)

    def issue(self, name: str, subject: str, extensions: str, issuer: str, *how: str) -> None:
        """Make ``NAME.key`` (RSA) and ``NAME.crt``; ``how`` are options of ``openssl x509``."""
        (self.folder / f"{name}.ext").write_text(extensions, encoding="ascii")
        self.ssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", f"{name}.key",
                 "-out", f"{name}.csr")  # fmt: skip
        self.ssl("x509", "-req", *(how or ("-sha256", "-days", "365")), "-CAcreateserial",
                 "-in", f"{name}.csr", "-CA", f"{issuer}.crt", "-CAkey", f"{issuer}.key",
                 "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip

    def write(self, name: str, *parts: str) -> None:
        (self.folder / name).write_bytes(
            b"".join((self.folder / part).read_bytes() for part in parts)
        )

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def files(
        self, chain: str = "chain.crt", key: str = "leaf.key", ca: str = "root.crt"
    ) -> TlsFiles:
        return TlsFiles(self.read(chain), self.read(key), self.read(ca))

    def verifies(self, files: TlsFiles, host: str = HOST, *options: str) -> bool:
        """What openssl says of the chain, with none of this machine's authorities."""
        for name, data in (("v.crt", files.chain), ("v.ca", files.ca)):
            (self.folder / name).write_bytes(data)
        kind = "-verify_ip" if host[0].isdigit() else "-verify_hostname"
        try:
            self.ssl("verify", "-no-CApath", "-no-CAstore", "-CAfile", "v.ca", "-purpose",
                     "sslserver", kind, host, *options, "-untrusted", "v.crt",
                     str(self.folder / "v.crt"))  # fmt: skip
        except RuntimeError:
            return False
        return True


@pytest.fixture(scope="module")
def plant(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return Plant(openssl, tmp_path_factory.mktemp("pki"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def look(files: TlsFiles, host: str = HOST) -> Verdict:
    return examine(files.chain, files.key, files.ca, f"https://{host}", utc_now())


def self_signed(state: State, url: str, *names: str) -> HarborCertificate:
    harbor = Harbor(url, certificate=Certificate(self_signed=SelfSigned(names)))
    return HarborCertificate(harbor, "harbor/harbor", state, "plant-7", utc_now)


def test_openssl_takes_what_is_made_strictly(plant: Plant, state: State) -> None:
    made = self_signed(state, "https://127.0.0.1:8443", HOST, "*.plant.test", "fd00::1")
    made.apply()
    files = made.files()
    assert files is not None
    for host in ("127.0.0.1", HOST, "x.plant.test"):
        assert plant.verifies(files, host, "-x509_strict")
        assert look(files, host) == Verdict((), ())
    for host in ("127.0.0.2", "a.b.plant.test", "plant.test"):
        assert not plant.verifies(files, host)
        assert look(files, host).problems


def test_openssl_takes_a_renewed_leaf_with_the_first_authority(
    plant: Plant, tmp_path: Path
) -> None:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    ensure_certificates(tmp_path, "s", [HOST], start, validity=PEOPLE)
    first = (tmp_path / "ca.crt").read_bytes()
    for days in (500, 3400):  # the leaf, then both
        now = start + dt.timedelta(days=days)
        ensure_certificates(tmp_path, "s", [HOST], now, validity=PEOPLE)
        files = TlsFiles((tmp_path / "tls.crt").read_bytes(), b"", first)
        assert plant.verifies(files, HOST, "-attime", str(int(now.timestamp())))
    assert (tmp_path / "ca.crt").read_bytes() != first


def test_what_people_make_by_harbors_documentation_is_good(plant: Plant) -> None:
    assert plant.verifies(plant.files())
    assert look(plant.files()).problems == ()


@pytest.mark.parametrize(
    ("extensions", "how", "words"),
    [
        (V3_EXT.replace("serverAuth", "clientAuth"), (), "is not for servers"),
        (V3_EXT.replace(HOST, "other.test"), (), "is for 'other.test', '127.0.0.1'"),
        (V3_EXT, ("-sha1", "-days", "365"), "is signed with SHA1"),
        (V3_EXT, ("-sha256", "-days", "-1"), "ended on"),
        (V3_EXT.replace("CA:FALSE", "CA:TRUE"), (), "is an authority (CA:TRUE)"),
    ],
    ids=["purpose", "name", "sha1", "ended", "authority"],
)
def test_a_defect_that_openssl_made_is_named(
    plant: Plant, extensions: str, how: tuple[str, ...], words: str
) -> None:
    plant.issue("bad", "/CN=bad", extensions, "middle", *how)
    plant.write("bad-chain.crt", "bad.crt", "middle.crt")
    files = plant.files("bad-chain.crt", "bad.key")
    (problem,) = look(files).problems
    assert words in problem
    # Level 2 is Debian's for TLS. An authority as a leaf passes openssl, but not browsers.
    assert plant.verifies(files, HOST, "-auth_level", "2") == ("CA:TRUE" in extensions)


@pytest.mark.parametrize(
    ("chain", "ca"),
    [
        (("leaf.crt",), ("root.crt",)),
        (("leaf.crt", "middle.crt"), ("middle.crt",)),
        (("leaf.crt", "middle.crt"), ("root.crt",)),
        (("leaf.crt",), ("middle.crt", "root.crt")),
        (("leaf.crt", "middle.crt", "root.crt"), ("root.crt",)),
        (("leaf.crt", "middle.crt", "root.crt"), ("leaf.crt",)),
    ],
)
def test_chains_are_good_if_openssl_says_so(
    plant: Plant, chain: tuple[str, ...], ca: tuple[str, ...]
) -> None:
    plant.write("some-chain.crt", *chain)
    plant.write("some-ca.crt", *ca)
    files = plant.files("some-chain.crt", ca="some-ca.crt")
    assert plant.verifies(files) == (not look(files).problems)


def test_other_formats_are_recognised(plant: Plant) -> None:
    plant.ssl("x509", "-in", "leaf.crt", "-outform", "DER", "-out", "leaf.der")
    plant.ssl("crl2pkcs7", "-nocrl", "-certfile", "chain.crt", "-out", "chain.p7b")
    plant.ssl("crl2pkcs7", "-nocrl", "-certfile", "chain.crt", "-outform", "DER", "-out", "der.p7b")
    plant.ssl("pkcs12", "-export", "-inkey", "leaf.key", "-in", "chain.crt", "-passout",
             "pass:secret", "-out", "all.p12")  # fmt: skip
    for name, words in {
        "leaf.der": "it is DER",
        "chain.p7b": "it is PKCS#7",
        "der.p7b": "it is PKCS#7",
        "all.p12": "it is PKCS#12",
        "leaf.csr": "it is a request (CSR)",
        "leaf.key": "there is a private key in it",
    }.items():
        (problem,) = look(plant.files(name)).problems
        assert words in problem


@pytest.mark.parametrize("how", ["rsa", "pkcs8"])
def test_an_encrypted_key_is_recognised_and_its_cure_works(plant: Plant, how: str) -> None:
    options = ("-traditional",) if how == "rsa" else ()
    plant.ssl("pkey", *options, "-in", "leaf.key", "-aes256", "-passout", "pass:secret", "-out",
             "encrypted.key")  # fmt: skip
    (problem,) = look(plant.files(key="encrypted.key")).problems
    assert "key: it is encrypted" in problem
    assert "`openssl pkey -in FILE -out NEW` decrypts it" in problem
    plant.ssl("pkey", "-in", "encrypted.key", "-passin", "pass:secret", "-out", "new.key")
    assert look(plant.files(key="new.key")).problems == ()


def test_attributes_that_pkcs12_leaves_are_taken_off(
    plant: Plant, state: State, tmp_path: Path
) -> None:
    plant.ssl("pkcs12", "-export", "-inkey", "leaf.key", "-in", "chain.crt", "-passout",
             "pass:secret", "-name", "h\u00e4fen", "-out", "all.p12")  # fmt: skip
    given = {"tls.crt": "-nokeys", "tls.key": "-nocerts"}
    for name, what in given.items():
        plant.ssl("pkcs12", "-in", "all.p12", "-passin", "pass:secret", "-nodes", what, "-out",
                  str(tmp_path / name))  # fmt: skip
        with pytest.raises(UnicodeDecodeError):
            (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / "ca.crt").write_bytes(plant.read("root.crt"))
    names = ("tls.crt", "tls.key", "ca.crt")
    provided = Provided(*(str(tmp_path / name) for name in names))
    harbor = Harbor(f"https://{HOST}", certificate=Certificate(provided=provided))
    made = HarborCertificate(harbor, "h/h", state, "s", utc_now)
    made.preflight()
    files = made.files()
    assert files is not None
    assert files.chain == plant.read("chain.crt")
    assert files.key == plant.read("leaf.key")
    with s_server(plant.openssl, tmp_path, files) as port:
        assert connects(port, HOST, tmp_path / "ca.crt", strictly=False)


# Real clients


@contextmanager
def s_server(openssl: Path, folder: Path, files: TlsFiles) -> Iterator[int]:
    """Run openssl's server with the one file that HAProxy takes."""
    pem, port = folder / "haproxy.pem", free_port()
    pem.write_bytes(files.pem)
    command: list[str | Path] = [openssl, "s_server", "-www", "-accept", f"127.0.0.1:{port}"]
    command += ["-cert", pem, "-key", pem, "-cert_chain", pem]

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True

    with _running(command, folder / "s_server.log", answers):
        yield port


def connects(port: int, host: str, ca: Path, *, strictly: bool = True) -> bool:
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if strictly:  # as Python does by default from 3.13 on
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        try:
            context.wrap_socket(plain, server_hostname=host).close()
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_clients_reach_what_is_made_and_refuse_the_rest(
    openssl: Path, plant: Plant, state: State, tmp_path: Path
) -> None:
    made = self_signed(state, "https://127.0.0.1:8443", "*.plant.test")
    made.apply()
    files = made.files()
    assert files is not None
    with s_server(openssl, tmp_path, files) as port, requests.Session() as session:
        session.trust_env = False
        url = f"https://127.0.0.1:{port}/"
        assert session.get(url, verify=made.ca_file(), timeout=10).ok
        with pytest.raises(requests.exceptions.SSLError):
            session.get(url, verify=str(plant.folder / "root.crt"), timeout=10)
        assert connects(port, HOST, state.path("tls/harbor/harbor/ca.crt"))
        assert not connects(port, "plant.test", state.path("tls/harbor/harbor/ca.crt"))


def test_clients_with_the_root_alone_reach_a_whole_chain(
    openssl: Path, plant: Plant, tmp_path: Path
) -> None:
    root = plant.folder / "root.crt"
    with s_server(openssl, tmp_path, plant.files()) as port:
        assert connects(port, HOST, root, strictly=False)
        # The warning is right: this authority was made without keyUsage.
        assert not connects(port, HOST, root)
        (warning,) = look(plant.files()).warnings
        assert "strict clients" in warning


def test_a_node_pulls_what_people_pushed(
    make_docker_registry: Callable[..., DockerRegistry],
    containerd: Containerd,
    skopeo: Callable[..., str],
    state: State,
    tmp_path: Path,
) -> None:
    made = self_signed(state, "https://127.0.0.1")
    made.apply()
    folder = state.path("tls/harbor/harbor")
    pair = Certificates(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    registry = make_docker_registry(certificates=pair)
    pushed = image([layer(3000, "people")])
    write_layout(tmp_path / "layout", {"app:v1": pushed})
    # Docker's folder has the same form: a ca.crt for the host.
    docker = tmp_path / "docker"
    docker.mkdir()
    (docker / "ca.crt").write_bytes(made.ca() or b"")
    reference = f"{registry.host}/people/app:v1"
    copy = ("copy", f"oci:{tmp_path}/layout:app:v1", f"docker://{reference}")
    with pytest.raises(RuntimeError, match="unknown authority"):
        skopeo(*copy)
    skopeo(*copy, f"--dest-cert-dir={docker}")

    certs = tmp_path / "certs.d"
    certs.mkdir()
    seed = Seed(serve=Serve("127.0.0.1:1", "127.0.0.1:1", tls=False))
    site = Site("site/v1", "Site", "s", Cluster("k"), seed, (), nodes=Nodes(str(certs)))
    told = TellNodes(site, state, lambda: None, harbors=[(registry.host, made.ca)])
    told.apply()
    assert told.check()
    pull = ("images", "pull", "--hosts-dir", certs, reference)
    try:
        containerd.ctr(*pull)
        lines = containerd.ctr("images", "list", f"name=={reference}").splitlines()
        assert lines[1].split()[2] == pushed.digest
    finally:
        containerd.ctr("images", "remove", "--sync", reference)
    (certs / registry.host / "ca.crt").write_bytes(other_authority(tmp_path))
    with pytest.raises(RuntimeError, match="unknown authority"):
        containerd.ctr(*pull)


def other_authority(folder: Path) -> bytes:
    (folder / "other").mkdir()
    ensure_certificates(folder / "other", "other", ["127.0.0.1"], utc_now())
    return (folder / "other" / "ca.crt").read_bytes()
