"""Deltas as people make and use them: by content, refused with what is missing, nothing mixed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bundler.delta import read_held
from installer.bundle.manifest import decode
from installer.bundle.signature import PublicKey
from installer.bundle.trust import KeyTrust
from installer.deploy.push import PushBundle
from installer.errors import AirgapError, PreflightFailed
from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer
from installer.site.model import Push
from tests.bundles import make_bundle, open_bundle, public_pem, signing_key
from tests.unit.test_build import CORE, EXTRA, Builder
from tests.unit.test_cli import run
from tests.upstream import Upstream
from tests.upstream.images import image, layer
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """``out.tar`` with CORE, and its bundle.json; ``delta.tar`` to it, with EXTRA as well.

    What the builder said of the delta is in ``told.json``. Tests leave these files alone.
    """
    folder = tmp_path_factory.mktemp("release")
    with Upstream(folder, helm=False, scale=0.5) as upstream:
        made = Builder(folder, upstream)
        made.spec["images"] = [CORE]
        made.write()
        assert made.build().returncode == 0
        made.spec["images"] = [CORE, EXTRA]
        made.write()
        assert made.lock().returncode == 0
        extract = ["tar", "-xf", "out.tar", "bundle.json", "bundle.json.sig"]
        subprocess.run(extract, cwd=folder, check=True)
        done = made.build("--since", "out.tar", "--output", "json", out="delta.tar")
        assert done.returncode == 0, done.stderr
        (folder / "told.json").write_text(done.stdout)
        yield made


def told_of(builder: Builder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((builder.folder / "told.json").read_text())
    return found


def installer(builder: Builder, *words: str) -> subprocess.CompletedProcess[str]:
    return run("installer", *words, "--key", "release.pub", cwd=builder.folder)


def test_a_delta_has_what_is_new_and_requires_the_rest(builder: Builder) -> None:
    told = told_of(builder)
    pem = (builder.folder / "release.pub").read_bytes()
    with open_bundle(builder.folder / "delta.tar", pem) as bundle:
        required = {member.digest for member in bundle.manifest.required}
        assert {i.reference for i in bundle.manifest.images} == {CORE, EXTRA}
        layers = {
            c.digest for c in builder.upstream.images[CORE].blobs if "json" not in c.media_type
        }
        assert {str(d) for d in required} >= layers
        assert told["required"] == {
            "blobs": len(required),
            "bytes": sum(member.size for member in bundle.manifest.required),
        }
        assert bundle.missing == bundle.manifest.required
        words = bundle.read("README.txt").decode()
        assert re.search(r"DELTA to demo serial \d+ of channel stable", words)
        assert "docker load" in words
        for content in builder.upstream.images[EXTRA].everything:
            assert (content.digest in map(str, required)) or bundle.read(
                f"blobs/sha256/{content.digest[7:]}"
            ) == content.data


def test_a_blob_counts_by_content_never_by_tag(tmp_path: Path) -> None:
    before, after = (image([layer(5000, "kept"), layer(5000, n)]) for n in ("one", "two"))
    make_bundle(tmp_path / "old.tar", {"docker.io/a/b:1": before})
    make_bundle(tmp_path / "new.tar", {"docker.io/a/b:1": after})
    held = held_by(tmp_path / "old.tar")
    there = {str(digest) for digest, _ in held.blobs}
    assert [blob.digest in there for blob in after.blobs] == [
        blob.digest in {b.digest for b in before.blobs} for blob in after.blobs
    ]
    assert after.blobs[-1].digest not in there


def test_a_delta_to_a_delta_needs_the_whole_chain(builder: Builder) -> None:
    assert builder.build("--since", "delta.tar", out="third.tar").returncode == 0
    alone = installer(builder, "verify", "third.tar", "--base", "delta.tar")
    assert alone.returncode == 5, alone.stderr
    done = installer(builder, "verify", "third.tar", "--base=delta.tar", "--base=out.tar")
    assert done.returncode == 0, done.stderr
    assert "have them" in done.stderr


def test_verify_looks_at_the_base_as_well(builder: Builder) -> None:
    alone = installer(builder, "verify", "delta.tar")
    assert alone.returncode == 0, alone.stderr
    assert "--base" in alone.stderr
    whole = installer(builder, "verify", "delta.tar", "--base", "out.tar")
    assert whole.returncode == 0, whole.stderr
    blob = max(builder.upstream.images[CORE].blobs, key=lambda b: len(b.data))
    data = (builder.folder / "out.tar").read_bytes()
    at = data.index(blob.data) + 100
    (builder.folder / "bad.tar").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    bad = installer(builder, "verify", "delta.tar", "--base", "bad.tar")
    assert bad.returncode == 4, bad.stderr
    assert "bad.tar" in bad.stderr
    assert blob.digest[7:] in bad.stderr


def test_inspect_shows_sizes_of_what_is_elsewhere(builder: Builder) -> None:
    shown = installer(builder, "inspect", "delta.tar", "--base", "out.tar")
    assert shown.returncode == 0, shown.stderr
    assert "out.tar have them" in shown.stdout
    told = json.loads(installer(builder, "inspect", "delta.tar", "--output", "json").stdout)
    assert told["requiredBytes"] > 0


def test_what_is_missing_is_named_before_anything_is_served(builder: Builder) -> None:
    done = installer(builder, "serve", "delta.tar", "--listen", "127.0.0.1:0")
    assert done.returncode == 5, done.stderr
    assert "demo/core:v1.2.3" in done.stderr
    assert "--base" in done.stderr


def test_a_run_is_refused_with_what_is_missing_and_changes_nothing(
    builder: Builder, tmp_path: Path
) -> None:
    site = {
        "apiVersion": "site/v1",
        "kind": "Site",
        "name": "plant",
        "channel": "stable",
        "cluster": {"kubeconfig": "none"},
        "seed": {"serve": {"listen": "127.0.0.1:5999", "address": "127.0.0.1:5999"}},
        "releases": [{"chart": "none"}],
    }
    (builder.folder / "site.yaml").write_text(json.dumps(site))
    for verb in ("run", "preflight"):
        done = installer(
            builder, verb, "delta.tar", "--site", "site.yaml", "--state", str(tmp_path / "state")
        )
        assert done.returncode == 5, done.stderr
        assert "requires" in done.stderr
        assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        ({"channel": "other"}, 3, "channel"),
        ({"serial": 9}, 2, "later"),
        ({"key": None}, 3, "signature"),
    ],
)
def test_foreign_bases_are_refused(
    tmp_path: Path, made: dict[str, Any], code: int, words: str
) -> None:
    if "key" in made:
        made = {"key": ec.generate_private_key(ec.SECP256R1())}
    content = image([layer(5000, "one")])
    omitted = [content.blobs[-1].digest]
    _, pem = make_bundle(
        tmp_path / "delta.tar", {"docker.io/a/b:1": content}, omit=omitted, serial=2
    )
    make_bundle(tmp_path / "base.tar", {"docker.io/a/b:1": content}, **made)
    (tmp_path / "release.pub").write_bytes(pem)
    verify = ("verify", "delta.tar", "--base", "base.tar", "--key", "release.pub")
    done = run("installer", *verify, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_base_may_have_expired_but_a_delta_may_not(tmp_path: Path) -> None:
    content = image([layer(5000, "one")])
    omitted = [content.blobs[-1].digest]
    named = {"docker.io/a/b:1": content}
    _, pem = make_bundle(tmp_path / "delta.tar", named, omit=omitted, serial=2)
    make_bundle(tmp_path / "base.tar", named, expires="2026-02-01T00:00:00Z")
    make_bundle(
        tmp_path / "late.tar", named, omit=omitted, serial=2, expires="2026-02-01T00:00:00Z"
    )
    (tmp_path / "release.pub").write_bytes(pem)
    for name, code in (("delta.tar", 0), ("late.tar", 3)):
        verify = ("verify", name, "--base", "base.tar", "--key", "release.pub")
        done = run("installer", *verify, cwd=tmp_path)
        assert done.returncode == code, done.stderr


def held_by(path: Path, trusted: bytes | None = None) -> Any:
    key = PublicKey.parse(trusted or public_pem(signing_key()), "test.pub")
    return read_held(path, KeyTrust(key, "test.pub"), key)


def receipt(blobs: Sequence[tuple[str, int]]) -> bytes:
    document = {
        "apiVersion": "receipt/v1",
        "kind": "Receipt",
        "site": "plant",
        "created": "2026-03-01T00:00:00Z",
        "blobs": [{"sha256": sha256, "size": size} for sha256, size in blobs],
    }
    return json.dumps(document).encode()


def test_a_receipt_says_what_a_site_has(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(receipt([("a" * 64, 5)]))
    found = held_by(path)
    assert found.name == "the receipt of site plant"
    assert [(d.hex, size) for d, size in found.blobs] == [("a" * 64, 5)]


@pytest.mark.parametrize("since", ["receipt.json", "bundle.json"])
def test_every_form_makes_the_same_delta(builder: Builder, since: str) -> None:
    manifest = decode((builder.folder / "bundle.json").read_bytes())
    blobs = [(m.sha256, m.size) for m in manifest.members if m.path.startswith("blobs/")]
    (builder.folder / "receipt.json").write_bytes(receipt(blobs))
    done = builder.build("--since", since, "--output=json", out="other.tar")
    assert done.returncode == 0, done.stderr
    assert (builder.folder / "other.tar").stat().st_size == pytest.approx(
        (builder.folder / "delta.tar").stat().st_size, abs=1024
    )


@pytest.mark.parametrize(
    ("data", "signed", "words"),
    [
        (b"{}", None, "receipt"),
        (b'{"apiVersion": "bundle/v1"', None, "receipt"),
        (b"{}", b"no signature", "no signature over it"),
        (b"hello" * 200, None, "not a bundle"),
        (b"", None, "empty"),
    ],
)
def test_what_says_nothing_trustworthy_is_refused(
    tmp_path: Path, data: bytes, signed: bytes | None, words: str
) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(data)
    if signed is not None:
        (tmp_path / "bundle.json.sig").write_bytes(signed)
    with pytest.raises(AirgapError) as refused:
        held_by(path)
    assert words in f"{refused.value.message} {refused.value.hint}"


def test_an_earlier_bundle_of_another_key_needs_that_key(builder: Builder) -> None:
    moved = builder.folder / "old.pub"
    shutil.copy(builder.folder / "release.pub", moved)
    made = run(
        "bundler", "keygen", "--out", "new.key", "--passphrase-file", "pass", cwd=builder.folder
    )
    assert made.returncode == 0, made.stderr
    argv = [word.replace("release.key", "new.key") for word in builder.build_argv("x.tar")]
    argv.append("--no-installer")
    refused = run("bundler", *argv, "--since=out.tar", cwd=builder.folder, **builder.env)
    assert refused.returncode == 3, refused.stderr
    done = run(
        "bundler", *argv, "--since=out.tar", "--since-key=old.pub", cwd=builder.folder,
        **builder.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_dry_run_says_what_is_left_out(builder: Builder) -> None:
    told = told_of(builder)
    shown = builder.build("--dry-run", "--since=out.tar", "--output=json", out="again.tar")
    found = json.loads(shown.stdout)
    assert found["required"] == told["required"]
    assert found["bundle"] == told["bytes"]
    assert "left out" in builder.build("--dry-run", "--since=out.tar", out="again.tar").stdout


def test_served_together_with_its_base(builder: Builder) -> None:
    pem = (builder.folder / "release.pub").read_bytes()
    delta, base = (open_bundle(builder.folder / name, pem) for name in ("delta.tar", "out.tar"))
    delta.stand_on([base])
    with delta, BundleServer(BundleStore(delta), ("127.0.0.1", 0)) as server:
        for name in (CORE, EXTRA):
            path = name.removeprefix("docker.io/").rpartition(":")[0]
            for content in builder.upstream.images[name].blobs:
                url = f"{server.url}/v2/{path}/blobs/{content.digest}"
                with urllib.request.urlopen(url) as got:  # noqa: S310 (our server)
                    assert got.read() == content.data


def test_pushed_where_the_registry_has_the_rest(builder: Builder) -> None:
    pem = (builder.folder / "release.pub").read_bytes()
    with Registry() as registry:
        target = Push(registry=f"{registry.host}/site", plain_http=True)
        with open_bundle(builder.folder / "delta.tar", pem) as delta:
            with pytest.raises(PreflightFailed, match="demo/core"):
                PushBundle(target, delta).refuse_gaps()
            with open_bundle(builder.folder / "out.tar", pem) as base:
                PushBundle(target, base).apply()
            pushing = PushBundle(target, delta)
            pushing.refuse_gaps()
            pushing.apply()
            assert pushing.check()
