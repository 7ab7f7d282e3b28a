"""Lock to bundle as a person does it: processes, exit codes, kills, resumes; upstream is ours."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from installer.bundle.catalog import catalog
from installer.bundle.digest import Digest
from installer.oci.bundle_store import BundleStore
from installer.oci.copy import CopyItem, copy
from installer.oci.registry import RegistryStore
from tests.bundles import open_bundle
from tests.unit.test_cli import run
from tests.upstream import Upstream
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CORE = "docker.io/demo/core:v1.2.3"
EXTRA = "docker.io/library/toolbox:1.36"


class Builder:
    """A folder with spec, key and upstream; verbs run as processes."""

    def __init__(self, folder: Path, upstream: Upstream) -> None:
        self.folder = folder
        self.upstream = upstream
        self.out = folder / "out.tar"
        self.spec: dict[str, Any] = yaml.safe_load(upstream.spec.read_text())
        self.spec |= {"charts": [], "profiles": {}, "tools": [], "images": [CORE, EXTRA]}
        self.write()
        (folder / "pass").write_text("words\n")
        self.env = {"AIRGAP_CACHE_DIR": str(folder / "cache")}
        made = run("bundler", "keygen", "--passphrase-file", "pass", cwd=folder)
        assert made.returncode == 0, made.stderr

    def write(self) -> None:
        self.upstream.spec.write_text(yaml.safe_dump(self.spec))

    def lock(self, *more: str) -> subprocess.CompletedProcess[str]:
        config = ("--registry-config", "registries.yaml")
        return run("bundler", "lock", "bundle.yaml", *config, *more, cwd=self.folder, **self.env)

    def build_argv(self, out: str = "out.tar") -> tuple[str, ...]:
        return (
            "build", "bundle.yaml", "--key", "release.key", "--passphrase-file", "pass",
            "--out", out, "--registry-config", "registries.yaml",
        )  # fmt: skip

    def build(
        self, *more: str, out: str = "out.tar", installer: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        # To pack this environment takes long; tests/integration/test_installer_file.py does it.
        which = ("--installer", str(installer)) if installer else ("--no-installer",)
        arguments = (*self.build_argv(out), *which, *more)
        return run("bundler", *arguments, cwd=self.folder, **self.env)

    def start(self) -> subprocess.Popen[str]:
        # Whoever runs the tests in the background has SIGINT ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = "from bundler.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *self.build_argv(), "--no-installer"],
            cwd=self.folder, env=os.environ | self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def verify(self, name: str = "out.tar") -> subprocess.CompletedProcess[str]:
        return run("installer", "verify", name, "--key", "release.pub", cwd=self.folder)

    def assert_no_bundle(self) -> None:
        assert not self.out.exists()

    def served(self) -> int:
        return self.upstream.docker_io.bytes_sent


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    with Upstream(tmp_path, helm=False, scale=0.5) as upstream:
        yield Builder(tmp_path, upstream)


def test_locks_first_then_builds_what_verifies(builder: Builder) -> None:
    done = builder.build()
    assert done.returncode == 0, done.stderr
    assert (builder.folder / "bundle.lock").exists()
    assert builder.verify().returncode == 0
    assert sorted(p.name for p in builder.folder.glob("out.tar*")) == ["out.tar"]
    pem = (builder.folder / "release.pub").read_bytes()
    with open_bundle(builder.out, pem) as bundle:
        assert {i.reference for i in bundle.manifest.images} == {CORE, EXTRA}
        for image in (CORE, EXTRA):
            for content in builder.upstream.images[image].everything:
                assert bundle.read(f"blobs/sha256/{content.digest[7:]}") == content.data


def test_same_lock_and_key_same_bytes(builder: Builder) -> None:
    assert builder.build(out="a.tar").returncode == 0
    assert builder.build(out="b.tar").returncode == 0
    a, b = ((builder.folder / n).read_bytes() for n in ("a.tar", "b.tar"))
    assert a == b
    words = ("installer", "inspect", "a.tar", "--key", "release.pub")
    bill, origin = (
        json.loads(run(*words, option, cwd=builder.folder).stdout)
        for option in ("--sbom", "--provenance")
    )
    images = {one["name"] for one in bill["components"] if one["type"] == "container"}
    names = {one["name"] for one in origin["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert images
    assert all(any(one.startswith(f"image {image}") for one in names) for image in images)


def test_locking_again_without_a_change_keeps_the_file(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    before = (builder.folder / "bundle.lock").read_bytes()
    again = builder.lock()
    assert "unchanged" in again.stdout
    assert (builder.folder / "bundle.lock").read_bytes() == before


def test_a_lock_that_no_longer_fits_is_refused(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    builder.spec["images"] = [CORE]
    builder.write()
    done = builder.build()
    assert done.returncode == 2
    assert "bundler lock" in done.stderr
    builder.assert_no_bundle()


def test_a_lock_edited_by_hand_is_refused(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    lock = builder.folder / "bundle.lock"
    lock.write_text(lock.read_text().replace('"serial": 1', '"serial":  1', 1))
    assert builder.build().returncode == 2
    builder.assert_no_bundle()


def test_a_wrong_passphrase_is_found_before_anything_is_fetched(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    before = builder.served()
    (builder.folder / "pass").write_text("other\n")
    done = builder.build()
    assert done.returncode == 2
    assert "wrong passphrase" in done.stderr
    assert "other" not in done.stderr
    assert builder.served() == before
    builder.assert_no_bundle()


@pytest.mark.parametrize("missing", ["docker.io/demo/none:1", "docker.io/demo/core:v9"])
def test_a_missing_image_is_named(builder: Builder, missing: str) -> None:
    builder.spec["images"].append(missing)
    builder.write()
    done = builder.build()
    assert done.returncode == 6, done.stderr
    assert missing in done.stderr
    assert not (builder.folder / "bundle.lock").exists()
    builder.assert_no_bundle()


def test_a_digest_that_is_no_longer_served(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    layer = builder.upstream.images[CORE].blobs[-1].digest
    builder.upstream.docker_io.fail(f"blobs/{layer}", status=404)
    done = builder.build()
    assert done.returncode == 6, done.stderr
    assert layer[:19] in done.stderr
    builder.assert_no_bundle()


def test_wrong_bytes_for_a_digest(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    layer = builder.upstream.images[CORE].blobs[-1].digest
    builder.upstream.docker_io.fail(f"blobs/{layer}", flip_at=1000)
    done = builder.build()
    assert done.returncode == 4, done.stderr
    assert layer[7:] in done.stderr
    builder.assert_no_bundle()


def test_a_bundle_for_another_architecture_is_refused_at_lock_time(builder: Builder) -> None:
    builder.spec["platforms"] = ["linux/s390x"]
    builder.write()
    done = builder.lock()
    assert done.returncode == 2
    assert "linux/s390x" in done.stderr
    assert "linux/amd64" in done.stderr


def test_a_tool_that_runs_on_no_node_is_told(builder: Builder) -> None:
    tools = []
    for machine, number in (("arm64", 183), ("amd64", 62)):
        head = b"\x7fELF\x02\x01" + bytes(12) + number.to_bytes(2, "little")
        (builder.folder / f"kubectl-{machine}").write_bytes(head)
        tools.append({"name": "kubectl", "source": f"./kubectl-{machine}"})
    told = "note: the bundle is for linux/amd64, and kubectl in it only for linux/arm64"
    for carried, note in ((tools[:1], True), (tools, False)):
        builder.spec["tools"] = carried
        builder.write()
        done = builder.lock()
        assert done.returncode == 0, done.stderr
        assert (told in done.stderr) == note
        assert all(f"kubectl (linux/{t['source'][10:]})" in done.stdout for t in carried)


def test_a_misspelt_key_is_refused_with_the_nearest(builder: Builder) -> None:
    builder.spec["imagse"] = builder.spec.pop("images")
    builder.write()
    done = builder.lock()
    assert done.returncode == 2
    assert "imagse" in done.stderr
    assert "images" in done.stderr
    assert "bundle.yaml:" in done.stderr


def test_a_cut_line_is_gone_on_with(builder: Builder) -> None:
    layer = builder.upstream.images[CORE].blobs[-1]
    builder.upstream.docker_io.fail(
        f"blobs/{layer.digest}", cut_after=len(layer.data) // 2, times=1
    )
    assert builder.build().returncode == 0
    assert builder.verify().returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_then_run_again(builder: Builder, number: signal.Signals) -> None:
    assert builder.lock().returncode == 0
    layer = builder.upstream.images[CORE].blobs[-1]
    rate = max(1, len(layer.data) // 4)
    builder.upstream.docker_io.fail(f"blobs/{layer.digest}", bytes_per_second=rate, times=1)
    process = builder.start()
    partial = builder.folder / "out.tar.partial"
    deadline = time.monotonic() + 20
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(number)
    _, words = process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), words
    assert "Traceback" not in words
    builder.assert_no_bundle()
    assert partial.exists()
    again = builder.build("--output", "json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["reused"] > 0
    assert builder.verify().returncode == 0
    fresh = builder.build(out="fresh.tar")
    assert fresh.returncode == 0
    a, b = ((builder.folder / n).read_bytes() for n in ("out.tar", "fresh.tar"))
    assert a[64 * 1024 :] == b[64 * 1024 :]


def test_two_builds_of_one_file_keep_apart(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    with (builder.folder / "out.tar.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = builder.build()
        assert second.returncode == 2
        assert "another build" in second.stderr
    assert builder.build().returncode == 0
    assert builder.verify().returncode == 0


def test_an_upstream_that_is_down(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    config = yaml.safe_load(builder.upstream.registries.read_text())
    config["registries"]["docker.io"]["endpoints"] = ["http://127.0.0.1:9"]
    builder.upstream.registries.write_text(yaml.safe_dump(config))
    done = builder.build("--outage", "3")
    assert done.returncode == 6
    assert "docker.io" in done.stderr
    assert "tried" in done.stderr
    assert "attempt 2 failed, again in" in done.stderr
    builder.assert_no_bundle()


def next_release(builder: Builder) -> tuple[str, int]:
    """One image more than in ``out.tar``, which is built; its name and the bytes of its content."""
    builder.spec["images"] = [CORE]
    builder.write()
    assert builder.build().returncode == 0
    builder.spec["images"] = [CORE, EXTRA]
    builder.write()
    assert builder.lock().returncode == 0
    shutil.rmtree(builder.folder / "cache")
    there = {content.digest for content in builder.upstream.images[CORE].everything}
    new = [c for c in builder.upstream.images[EXTRA].everything if c.digest not in there]
    return EXTRA, sum(len(content.data) for content in new)


def test_what_an_earlier_bundle_has_is_not_fetched_again(builder: Builder) -> None:
    _, new = next_release(builder)
    before = builder.served()
    done = builder.build("--reuse", "out.tar", "--output", "json", out="next.tar")
    assert done.returncode == 0, done.stderr
    assert builder.served() - before == new
    found = json.loads(done.stdout)
    assert found["fetched"] == new
    with open_bundle(
        builder.folder / "next.tar", (builder.folder / "release.pub").read_bytes()
    ) as bundle:
        sizes = {member.path: member.size for member in bundle.manifest.members}
    assert found["made"] == sum(n for path, n in sizes.items() if not path.startswith("blobs/"))
    assert found["copied"] == sum(sizes.values()) - found["made"] - new
    assert builder.verify("next.tar").returncode == 0
    assert builder.build(out="fresh.tar").returncode == 0
    a, b = ((builder.folder / n).read_bytes() for n in ("next.tar", "fresh.tar"))
    assert a[64 * 1024 :] == b[64 * 1024 :]


def test_everything_that_is_here_needs_no_network(builder: Builder) -> None:
    assert builder.build().returncode == 0
    shutil.rmtree(builder.folder / "cache")
    layout = builder.folder / "layout"
    layout.mkdir()
    subprocess.run(["tar", "-xf", builder.out, "-C", layout], check=True)
    before = builder.served()
    for reuse in ("layout", "out.tar"):
        assert builder.build("--reuse", reuse, out="again.tar").returncode == 0
        assert builder.verify("again.tar").returncode == 0
    assert builder.served() == before


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_a_damaged_bundle_is_no_source(builder: Builder, harm: str) -> None:
    next_release(builder)
    layer = max(builder.upstream.images[CORE].blobs, key=lambda blob: len(blob.data))
    data = builder.out.read_bytes()
    at = data.index(layer.data) + len(layer.data) // 2
    builder.out.write_bytes(
        data[:at] if harm == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    )
    done = builder.build("--reuse", "out.tar", out="next.tar")
    assert done.returncode == 0, done.stderr
    assert builder.verify("next.tar").returncode == 0


def test_a_source_that_is_none_is_named(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    (builder.folder / "empty").mkdir()
    for name, words in (("pass", "no blobs"), ("empty", "no blobs"), ("none", "does not exist")):
        done = builder.build("--reuse", name)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr


def test_the_difference_of_locks_and_bundles(builder: Builder) -> None:
    name, _ = next_release(builder)
    assert builder.build(out="next.tar").returncode == 0
    diff = ("diff", "out.tar", "next.tar")
    refused = run("bundler", *diff, cwd=builder.folder)
    assert (refused.returncode, "--key release.pub" in refused.stderr) == (2, True)
    shown = run("bundler", *diff, "--key=release.pub", cwd=builder.folder)
    assert shown.returncode == 0, shown.stderr
    assert "added" in shown.stdout
    assert name.rpartition(":")[0] in shown.stdout
    said = run("bundler", *diff, "--key=release.pub", "--output=json", cwd=builder.folder)
    (change,) = json.loads(said.stdout)["changes"]
    assert (change["change"], change["kind"]) == ("added", "image")
    other = run(
        "bundler", "diff", "bundle.lock", "next.tar", "--key=release.pub", cwd=builder.folder
    )
    assert "the same artefacts; 0 B are new" in other.stdout
    (builder.folder / "next.tar").write_bytes(b"x" * 100_000)
    assert run("bundler", *diff, "--key=release.pub", cwd=builder.folder).returncode in (3, 4)


def test_a_dry_run_says_what_a_build_takes(builder: Builder) -> None:
    _, new = next_release(builder)
    (builder.folder / "pass").write_text("not asked for\n")
    done = builder.build("--dry-run", "--reuse=out.tar", "--output=json", out="next.tar")
    assert done.returncode == 0, done.stderr
    assert not list(builder.folder.glob("next.tar*"))
    found = json.loads(done.stdout)
    (builder.folder / "pass").write_text("words\n")
    before = builder.served()
    built = builder.build("--reuse", "out.tar", "--output=json", out="next.tar")
    said = json.loads(built.stdout)
    assert found["bundle"] == said["bytes"]
    manifests = new - found["download"]
    assert builder.served() - before - manifests == found["download"] > 0
    assert found["copied"] == said["copied"]
    assert found["fits"]
    table = builder.build("--dry-run", out="next.tar")
    assert "to download" in table.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk_is_found_before_anything_is_fetched(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    small = builder.folder / "small"
    small.mkdir()
    mount = shutil.which("mount")
    assert mount is not None
    subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        before = builder.served()
        done = builder.build(out="small/out.tar")
        assert done.returncode == 6, done.stderr
        assert "free" in done.stderr
        assert not list(small.glob("*.tar"))
        assert builder.served() - before < 100_000  # manifests only
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_programs_and_people_are_told(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    layer = builder.upstream.images[CORE].blobs[-1]
    builder.upstream.docker_io.fail(f"blobs/{layer.digest}", status=503, times=1)
    done = builder.build("--output", "json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (retry,) = (event for event in events if event["event"] == "retry")
    assert "503" in retry["reason"]
    finished = {e["artefact"]: e for e in events if e["event"] == "finished"}
    assert sum(e["bytes"] for e in finished.values()) <= json.loads(done.stdout)["bytes"]
    told = json.loads(done.stdout)
    (host,) = told["hosts"]
    assert told["hosts"][host]["retries"] == 1
    assert told["alone"] > told["bytes"] * 0.9
    (builder.folder / "bundle.lock").unlink()
    done = builder.build("--output", "json")
    notes = [e for e in map(json.loads, done.stderr.splitlines()) if e["event"] == "note"]
    assert "locking first" in notes[0]["text"]
    (builder.folder / "bundle.lock").unlink()
    silent = builder.build("--quiet", "--concurrency=2", "--per-host=1", "--limit-rate=100MB")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    people = builder.build()
    assert "docker.io" in people.stderr
    assert "a connection" in people.stderr


def test_nothing_that_is_no_bundle_is_overwritten(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    before = builder.served()
    for name in ("release.key", "bundle.yaml", "registries.yaml", "none/out.tar", "cache"):
        path = builder.folder / name
        kept = path.read_bytes() if path.is_file() else None
        done = builder.build(out=name)
        assert done.returncode == 2, (name, done.stderr)
        assert (path.read_bytes() if path.is_file() else None) == kept
    assert builder.served() == before
    for name in ("release.key", "bundle.yaml"):
        kept = (builder.folder / name).read_bytes()
        assert builder.lock("--lock", name).returncode == 2
        assert (builder.folder / name).read_bytes() == kept
    assert builder.build().returncode == 0
    assert builder.build().returncode == 0  # a bundle may be built anew


def test_links_in_the_way_are_not_followed(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    victim = builder.folder / "victim"
    for name in ("out.tar.partial", "out.tar.partial.journal"):
        victim.write_text("precious")
        link = builder.folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        done = builder.build()
        assert done.returncode == 6, done.stderr
        assert victim.read_text() == "precious"
        link.unlink()


def test_a_date_that_has_passed_is_refused_at_lock_time(builder: Builder) -> None:
    builder.spec["expires"] = "2020-01-01"
    builder.write()
    done = builder.lock()
    assert done.returncode == 2
    assert "2020-01-01" in done.stderr


def test_signatures_and_sboms_come_along_and_out_again(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    assert builder.build().returncode == 0
    core = builder.upstream.images[CORE]
    signature = core.digest.replace(":", "-") + ".sig"
    with open_bundle(builder.out, (builder.folder / "release.pub").read_bytes()) as bundle:
        store = BundleStore(bundle)
        (sbom,) = store.referrers(Digest.parse(core.digest))
        assert signature in store.tags("demo/core")
        assert signature in store.tags("docker.io/demo/core")
        with Registry() as site, RegistryStore(site.host) as target:
            items = [
                CopyItem(n.repository, n.repository, n.content.root, (n.tag,) if n.tag else ())
                for n in catalog(bundle.manifest)
            ]
            copy(store, target, items)
            pushed = target.referrers("demo/core", Digest.parse(core.digest))
            assert [one.digest for one in pushed] == [sbom.descriptor.digest]
            there = target.resolve("demo/core", signature)
            assert there == store.resolve("demo/core", signature)

    builder.spec["referrers"] = {"artifactTypes": [], "cosignTags": []}
    builder.write()
    told = json.loads(builder.lock("--output", "json").stdout)
    assert told["changed"]
    lock = json.loads((builder.folder / "bundle.lock").read_text())
    assert all("accessories" not in image for image in lock["images"])
