"""``installer serve`` as a process: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.bundles import make_bundle, public_pem
from tests.upstream import images as made
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APP = made.image([made.layer(1000, "command")])
COMMAND = [sys.executable, "-c", "from installer.cli import main; main()", "serve"]


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and the file of its public key."""
    path, pem = make_bundle(tmp_path / "bundle.tar", {"docker.io/goharbor/app:v1": APP})
    (tmp_path / "release.pub").write_bytes(pem)
    return path, tmp_path / "release.pub"


@contextmanager
def _serving(folder: Path, *arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    ready = folder / "ready"
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--listen", "127.0.0.1:0", "--ready-file", ready],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process, ready.read_text(encoding="utf-8").strip()
    finally:
        process.kill()
        process.communicate()


def _get(url: str, context: ssl.SSLContext | None = None) -> bytes:
    with urllib.request.urlopen(url, timeout=10, context=context) as got:  # noqa: S310 (our server)
        return bytes(got.read())


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGTERM, 0, "stopped"), (signal.SIGINT, 130, "interrupted")],
)
def test_serves_until_it_is_told_to_end(
    tmp_path: Path, bundle: tuple[Path, Path], number: signal.Signals, code: int, last: str
) -> None:
    path, key = bundle
    with _serving(tmp_path, path, "--key", key, "--access-log") as (process, url):
        assert _get(f"{url}/v2/goharbor/app/manifests/v1") == APP.top.data
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == code
    assert last in told.splitlines()[-1]
    assert f'server = "{url}"' in told
    assert "/etc/containerd/certs.d/docker.io/hosts.toml" in told
    assert re.search(r"127\.0\.0\.1 'GET /v2/goharbor/app/manifests/v1' 200 ", told)
    assert "Traceback" not in told
    assert not (tmp_path / "ready").exists()


def test_is_quiet_about_requests_unless_asked(tmp_path: Path, bundle: tuple[Path, Path]) -> None:
    path, key = bundle
    with _serving(tmp_path, path, "--key", key) as (process, url):
        assert _get(f"{url}/v2/") == b"{}"
        process.terminate()
        assert "GET" not in process.communicate(timeout=20)[1]


def test_tls(tmp_path: Path, bundle: tuple[Path, Path]) -> None:
    path, key = bundle
    tls = make_certificates(tmp_path / "tls")
    files = ("--tls-cert", tls.certificate, "--tls-key", tls.key)
    with _serving(tmp_path, path, "--key", key, *files) as (process, url):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tls.ca))
        assert _get(f"{url}/v2/", context) == b"{}"
        process.terminate()
        assert 'ca = "/etc/containerd/certs.d/ca.pem"' in process.communicate(timeout=20)[1]


def _refused(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("error: ", "Usage: "))
    return done.returncode, done.stderr


def test_a_ready_file_of_somebody_else_is_left_alone(
    tmp_path: Path, bundle: tuple[Path, Path]
) -> None:
    path, key = bundle
    start = (path, "--key", key, "--listen", "127.0.0.1:0", "--ready-file")
    folder = tmp_path / "folder"
    folder.mkdir()
    taken = folder / "taken"
    taken.write_text("http://is not a URL alone\n", encoding="utf-8")
    link = folder / "link"
    link.symlink_to(taken)
    before = sorted(folder.iterdir()), sorted(tmp_path.iterdir())
    for wrong in (taken, link, folder, folder / "none" / "ready", taken / "ready", path, Path("/")):
        code, told = _refused(*start, wrong)
        assert code == 2, told
        assert told.startswith(f"error: --ready-file {wrong}: ")
        assert "serving" not in told
    assert (sorted(folder.iterdir()), sorted(tmp_path.iterdir())) == before
    assert taken.read_text(encoding="utf-8") == "http://is not a URL alone\n"


def test_a_ready_file_that_a_killed_server_left(tmp_path: Path, bundle: tuple[Path, Path]) -> None:
    path, key = bundle
    with _serving(tmp_path, path, "--key", key) as (process, url):
        process.kill()
        process.wait()
    ready = tmp_path / "ready"
    assert ready.read_text(encoding="utf-8") == f"{url}\n"
    arguments: Sequence[str | Path]
    arguments = [*COMMAND, path, "--key", key, "--listen", "127.0.0.1:0", "--ready-file", ready]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while ready.read_text(encoding="utf-8") == f"{url}\n":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        again = ready.read_text(encoding="utf-8").strip()
        assert _get(f"{again}/v2/") == b"{}"
        ready.unlink()
        ready.write_text("somebody else's\n", encoding="utf-8")
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert ready.read_text(encoding="utf-8") == "somebody else's\n", "only what it wrote"
    assert list(tmp_path.glob(".*")) == []


def test_refusals(tmp_path: Path, bundle: tuple[Path, Path]) -> None:
    path, key = bundle
    other = tmp_path / "other.pub"
    other.write_bytes(public_pem(ec.generate_private_key(ec.SECP256R1())))
    assert _refused(path, "--key", other)[0] == 3
    assert _refused(tmp_path / "none.tar", "--key", key)[0] == 2
    assert _refused("--key", key)[0] == 2
    assert _refused(path, "--key", key, "--listen", "nonsense")[0] == 2
    code, told = _refused(path, "--key", key, "--listen", "0.0.0.0:0")
    assert code == 2
    assert "--plain-http" in told
    tls = make_certificates(tmp_path / "tls")
    assert _refused(path, "--key", key, "--tls-cert", tls.certificate)[0] == 2
    mixed = ("--tls-cert", tls.ca, "--tls-key", tls.key)
    assert _refused(path, "--key", key, *mixed)[0] == 2
    delta, _ = make_bundle(
        tmp_path / "delta.tar",
        {"docker.io/goharbor/app:v1": APP},
        omit=[APP.blobs[1].digest],
        serial=2,
    )
    code, told = _refused(delta, "--key", key, "--listen", "127.0.0.1:0")
    assert code == 5
    assert APP.blobs[1].digest in told
    path.write_bytes(path.read_bytes()[:-512])
    assert _refused(path, "--key", key, "--listen", "127.0.0.1:0")[0] == 4
