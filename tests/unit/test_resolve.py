from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from bundler.cache import BlobCache
from bundler.lock import Blob, Lock, check_lock_fits, encode_lock, read_lock
from bundler.pins import pins
from bundler.resolve import merge_blobs, number, resolve
from bundler.sources.upstream import Upstream
from bundler.spec import Spec
from installer.bundle.digest import Digest
from installer.documents import read_document
from installer.errors import Corrupt, InvalidInput, NotFound, NotTrusted, TransferFailed
from installer.oci.graph import OCI_EMPTY, OCI_MANIFEST, read_manifest
from installer.oci.hosts import RegistryConfig, RegistryHosts
from installer.oci.http import Patience
from tests import programs
from tests.bundles import public_pem, signing_key
from tests.upstream import Upstream as World
from tests.upstream import charts, images, trivy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from installer.bundle.manifest import Content

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(hours=6)
QUICK = Patience(connect=5, read=5, attempts=2, backoff=0.01, longest=1)


# Pure parts


def blob(name: str, **more: Any) -> Blob:
    values: dict[str, Any] = {
        "size": 5,
        "media_type": "application/octet-stream",
        "repository": "h/r",
    } | more
    return Blob(str(Digest.of(name.encode())), **values)


def test_blobs_are_there_once_whatever_the_order() -> None:
    first, second = blob("x", repository="h/a"), blob("x", repository="h/b")
    text = blob("x", repository="", text="x")
    assert merge_blobs([second, first]) == merge_blobs([first, second]) == (first,)
    assert merge_blobs([first, text]) == (text,)
    many = [blob(str(i)) for i in range(20)]
    assert merge_blobs(reversed(many)) == tuple(sorted(many, key=lambda b: b.digest))


def test_two_sizes_for_one_digest_are_refused() -> None:
    with pytest.raises(Corrupt, match="5 bytes in h/a, 6 in h/b"):
        merge_blobs([blob("x", repository="h/b", size=6), blob("x", repository="h/a")])


def draft(**more: Any) -> Lock:
    lock = Lock(
        api_version="bundle/v1",
        kind="BundleLock",
        name="demo",
        channel="stable",
        serial=0,
        created="2026-03-01T12:00:00Z",
        spec_digest=str(Digest.of(b"")),
        platforms=("linux/amd64",),
        blobs=(),
    )
    return msgspec.structs.replace(lock, **more)


def test_serials_grow_and_stay() -> None:
    first = number(draft(), None, NOW)
    assert (first.serial, first.created) == (int(NOW.timestamp()), "2026-03-01T12:00:00Z")
    assert number(draft(), first, LATER) == first
    second = number(draft(blobs=(blob("x"),)), first, LATER)
    assert (second.serial, second.created) == (int(LATER.timestamp()), "2026-03-01T18:00:00Z")
    back = number(draft(), second, NOW)  # a clock that was set back
    assert (back.serial, back.created) == (second.serial + 1, "2026-03-01T12:00:00Z")


# With an upstream on loopback and the real Helm


@pytest.fixture(scope="module")
def helm() -> Path:
    try:
        return programs.helm(4)
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def world(tmp_path: Path, helm: Path) -> Iterator[World]:
    del helm
    with World(tmp_path / "builder", scale=0.01) as world:
        yield world


@pytest.fixture
def lock(world: World, tmp_path: Path) -> Callable[..., Lock]:
    """Resolve the spec as it is now, after ``change`` was made to it."""

    def run(
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        *,
        now: dt.datetime = NOW,
        previous: Lock | None = None,
        update: tuple[str, ...] = (),
        cache: str = "cache",
    ) -> Lock:
        document = yaml.safe_load(world.spec.read_text())
        change(document)
        world.spec.write_text(yaml.safe_dump(document))
        spec = Spec.load(world.spec)
        hosts = RegistryHosts(read_document(world.registries, RegistryConfig))
        with Upstream(hosts, BlobCache(tmp_path / cache), world.folder, patience=QUICK) as upstream:
            return resolve(spec, upstream, now=now, previous=previous, update=update)

    return run


def test_everything_is_found_and_complete(world: World, lock: Callable[..., Lock]) -> None:
    made = lock()
    assert {image.reference for image in made.images} == world.expected()
    blobs = {item.digest: item for item in made.blobs}
    originals = {
        content.digest: content.data
        for image in world.images.values()
        for content in image.everything
    }
    accessories = [accessory for image in made.images for accessory in image.accessories]
    signed = [accessory.subject for accessory in accessories]
    assert signed == [world.images["docker.io/demo/core:v1.2.3"].digest] * 2
    for there in world.docker_io.repositories["demo/core"].manifests.values():
        originals.setdefault(there.digest, there.data)
    artefacts = (*made.charts, *made.tools, *made.databases, *made.files)
    contents: tuple[Content, ...] = (*made.images, *artefacts, *accessories)
    reached = set()
    for content in contents:
        root = blobs[content.digest]
        data = originals[root.digest] if root.text is None else root.text.encode()
        document = read_manifest(data, root.media_type, content.digest)
        reached |= {content.digest, *(str(child.digest) for child in document.children)}
    assert reached | {image.index for image in made.images if image.index} == blobs.keys()
    assert [t.name for t in made.tools] == ["helm"]
    assert [(d.kind, d.schema) for d in made.databases] == [("trivy-db", 2)]
    assert made.charts[0].profiles.keys() == charts.PROFILES.keys()
    references = [image.reference for image in made.images]
    assert references == sorted(references)


def test_origins_say_where_an_image_is_from(world: World, lock: Callable[..., Lock]) -> None:
    made = {image.reference: image for image in lock().images}
    (sidecar,) = {(o.chart, o.object, o.field) for o in made["ghcr.io/demo/sidecar:v1.2.3"].origins}
    assert sidecar[0] == "anchorage"
    assert sidecar[1] == "Deployment/anchorage-core"
    assert sidecar[2].endswith("env[SIDECAR_IMAGE].value")
    exporter = made["docker.io/demo/exporter:v1.2.3"].origins
    assert {origin.profile for origin in exporter} == {"metrics"}
    extra = made["docker.io/library/toolbox:1.36"].origins[0]
    assert (extra.chart, extra.profile, extra.object) == ("", "", "BundleSpec/demo")
    del world


def test_a_second_time_nothing_changes(world: World, lock: Callable[..., Lock]) -> None:
    first = lock()
    assert lock(now=LATER, previous=first) == first
    assert encode_lock(lock(cache="another")) == encode_lock(first)
    world.release("1.2.3", changed=("demo/core",))
    second = lock(now=LATER, previous=first)
    assert second.serial > first.serial
    different = {i.reference for i in {*first.images} ^ {*second.images}}
    assert different == {"docker.io/demo/core:v1.2.3"}


def test_a_lock_belongs_to_its_spec(
    world: World, lock: Callable[..., Lock], tmp_path: Path
) -> None:
    path = tmp_path / "bundle.lock"
    path.write_bytes(encode_lock(lock()))
    check_lock_fits(read_lock(path), Spec.load(world.spec))
    lock(lambda spec: spec.update(channel="other"))
    with pytest.raises(InvalidInput, match="made from another"):
        check_lock_fits(read_lock(path), Spec.load(world.spec))


def test_expiry_is_the_end_of_the_day(lock: Callable[..., Lock]) -> None:
    assert lock(lambda s: s.update(expires=dt.date(2027, 1, 31))).expires == "2027-01-31T23:59:59Z"


def test_all_missing_images_are_told_with_their_origins(
    world: World, lock: Callable[..., Lock]
) -> None:
    del world.docker_io.repositories["demo/exporter"]
    del world.docker_io.repositories["demo/db"].tags["v1.2.3"]
    with pytest.raises(NotFound) as caught:
        lock(lambda spec: spec["images"].append("docker.io/demo/nowhere:1"))
    message = caught.value.message
    assert message.startswith("3 of 15 failed:")
    assert "demo/exporter:v1.2.3" in message
    assert "chart anchorage, profile metrics: Deployment/anchorage-exporter spec." in message
    assert "demo/db:v1.2.3" in message
    assert "containers[database].image" in message
    assert "and 3 more places" in message
    assert "demo/nowhere:1" in message
    assert "for images in the spec" in message
    assert caught.value.exit_code == 6


def test_what_another_try_cannot_mend_decides_the_code(
    world: World, lock: Callable[..., Lock]
) -> None:
    del world.docker_io.repositories["demo/exporter"]
    other = images.image([images.layer(10, "x")], platform="linux/s390x")
    world.docker_io.put("demo/db", "v1.2.3", other)
    with pytest.raises(InvalidInput, match="2 of 14 failed") as caught:
        lock()
    assert "demo/db:v1.2.3: is not built for linux/amd64, only for linux/s390x" in str(caught.value)


def test_a_registry_in_trouble(world: World, lock: Callable[..., Lock]) -> None:
    world.ghcr_io.fail("/v2/demo", status=503)
    with pytest.raises(TransferFailed, match="503") as caught:
        lock()
    assert "ghcr.io" in caught.value.message


def test_a_chart_that_does_not_render(world: World, lock: Callable[..., Lock]) -> None:
    del world
    with pytest.raises(InvalidInput) as caught:
        lock(lambda spec: spec["profiles"].update(metrics={"values": {"core": "text"}}))
    assert "anchorage-1.2.3" in caught.value.message
    assert "metrics" in caught.value.message
    assert "can't evaluate field" in caught.value.message  # Helm's own words
    assert caught.value.exit_code == 2


def test_a_misspelt_value_is_refused(world: World, lock: Callable[..., Lock]) -> None:
    del world
    with pytest.raises(
        InvalidInput, match=r"profile metrics: .* no value metrics\.enable"
    ) as caught:
        lock(lambda s: s["profiles"].update(metrics={"values": {"metrics": {"enable": True}}}))
    assert "metrics.enabled" in caught.value.hint


def test_a_helm_that_is_none(world: World, lock: Callable[..., Lock]) -> None:
    (world.folder / "helm").write_bytes(b"#!/bin/sh\necho no\nexit 3\n")
    with pytest.raises(InvalidInput, match="helm version"):
        lock(lambda spec: spec["tools"][0].pop("sha256"))


def test_a_helm_for_another_machine(world: World, lock: Callable[..., Lock]) -> None:
    path = world.folder / "helm"
    data = bytearray(path.read_bytes())
    data[18:20] = (22).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="the tool helm is for linux/s390x"):
        lock(lambda spec: spec["tools"][0].pop("sha256"))


def test_a_tool_that_is_not_the_one_in_the_spec(world: World, lock: Callable[..., Lock]) -> None:
    with (world.folder / "helm").open("ab") as file:
        file.write(b"x")
    with pytest.raises(Corrupt, match=r"tool helm: \./helm: digest is"):
        lock()


def test_names_that_clash_at_the_site(world: World, lock: Callable[..., Lock]) -> None:
    other = images.image([images.layer(10, "not the same")])
    world.publish("ghcr.io/library/toolbox:1.36", other)
    with pytest.raises(InvalidInput, match=r"library/toolbox:1\.36 at the site"):
        lock(lambda spec: spec["images"].append("ghcr.io/library/toolbox:1.36"))


def test_nothing_private_is_left_behind(
    world: World, lock: Callable[..., Lock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del world
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    lock()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_oci_chart_keeps_its_manifest(world: World, lock: Callable[..., Lock]) -> None:
    published = charts.chart_artefact(charts.chart("1.2.3", "v1.2.3"), "1.2.3", "v1.2.3")
    world.ghcr_io.put("charts/anchorage", "1.2.3", published)

    def change(spec: dict[str, Any]) -> None:
        spec["charts"][0]["source"] = "oci://ghcr.io/charts/anchorage"

    made = lock(change)
    assert made.charts[0].digest == published.digest
    assert {image.reference for image in made.images} == world.expected()
    root = next(item for item in made.blobs if item.digest == published.digest)
    assert (root.repository, root.text) == ("ghcr.io/charts/anchorage", None)


def test_without_charts_no_helm_is_needed(world: World, lock: Callable[..., Lock]) -> None:
    made = lock(lambda spec: spec.update(charts=[], tools=[], profiles={}))
    assert [image.reference for image in made.images] == ["docker.io/library/toolbox:1.36"]
    media_types = {item.media_type for item in made.blobs if item.text is not None}
    assert media_types == {OCI_EMPTY, OCI_MANIFEST}
    del world


def test_a_local_chart_archive(world: World, lock: Callable[..., Lock]) -> None:
    data = world.chart_repository.files["charts/anchorage-1.2.3.tgz"]
    (world.folder / "chart.tgz").write_bytes(data)

    def change(spec: dict[str, Any]) -> None:
        spec["charts"][0]["source"] = "./chart.tgz"
        del spec["charts"][0]["version"]

    made = lock(change)
    assert made.charts[0].sha256 == Digest.of(data).hex
    assert {image.reference for image in made.images} == world.expected()


def test_an_image_that_is_left_out_is_told_with_its_reason(
    world: World, lock: Callable[..., Lock]
) -> None:
    pattern = {"image": "docker.io/demo/core*", "reason": "has its own here"}
    made = lock(lambda s: s.update(exclude=[pattern]))
    (excluded,) = made.excluded
    assert (excluded.reference, excluded.reason) == (
        "docker.io/demo/core:v1.2.3",
        "has its own here",
    )
    assert excluded.origins
    assert {image.reference for image in made.images} == world.expected() - {excluded.reference}
    with pytest.raises(InvalidInput, match=r"exclude\[0\].*no image is left out"):
        lock(lambda s: s.update(exclude=[pattern | {"image": "docker.io/demo/cores*"}]))
    with pytest.raises(InvalidInput, match="listed under images as well"):
        lock(lambda s: s.update(exclude=[pattern], images=["demo/core:v1.2.3"]))


def test_images_of_a_chart_with_platforms_of_their_own(
    world: World, lock: Callable[..., Lock]
) -> None:
    both = images.index(
        [images.image([images.layer(10, p)], platform=p) for p in ("linux/amd64", "linux/arm64")]
    )
    world.publish("docker.io/demo/core:v1.2.3", both)
    world.publish("docker.io/library/toolbox:1.36", both)
    platforms = {"platforms": ["linux/amd64", "linux/arm64"]}
    with pytest.raises(InvalidInput, match=r"not built for linux/arm64") as caught:
        lock(lambda s: s.update(platforms))
    assert "imagePlatforms" in caught.value.hint
    rules = [
        {"match": "docker.io/demo/core", **platforms},
        {"match": "*/library/*", "platforms": ["linux/s390x"]},  # the entry's own come first
        {"match": "*", "platforms": ["linux/amd64"]},
    ]
    entry = {"reference": "docker.io/library/toolbox:1.36", "platforms": ["linux/arm64"]}
    made = lock(lambda s: s.update(platforms, imagePlatforms=rules, images=[entry]))
    assert made.platforms == ("linux/amd64", "linux/arm64")
    found = {image.reference: image.digest for image in made.images}
    assert found["docker.io/demo/core:v1.2.3"] == both.digest
    assert found["docker.io/library/toolbox:1.36"] == both.manifests[1].digest
    with pytest.raises(InvalidInput, match=r"imagePlatforms\[1\]: docker.io/none fits no image"):
        lock(lambda s: s["imagePlatforms"].insert(1, {"match": "docker.io/none", **platforms}))


def test_all_of_an_index_is_no_platform_of_the_bundle(
    world: World, lock: Callable[..., Lock]
) -> None:
    other = images.image([images.layer(10, "mips")], platform="linux/mips64le")
    index = images.index([world.images["docker.io/demo/db:v1.2.3"], other])
    world.publish("docker.io/demo/db:v1.2.3", index)
    made = lock(lambda s: s.update(platforms=["all", "linux/amd64"]))
    assert made.platforms == ("linux/amd64",)
    assert {i.digest for i in made.images if i.reference.startswith("docker.io/demo/db")} == {
        index.digest
    }
    assert {c.digest for c in other.everything} <= {blob.digest for blob in made.blobs}


def test_a_tool_for_each_platform(world: World, lock: Callable[..., Lock]) -> None:
    data = bytearray((world.folder / "helm").read_bytes())
    data[18:20] = (183).to_bytes(2, "little")
    (world.folder / "helm-arm64").write_bytes(data)
    arm = {"name": "helm", "source": "./helm-arm64"}
    first = lock(lambda s: s["tools"].append(arm))
    assert [(t.name, t.platform) for t in first.tools] == [
        ("helm", "linux/amd64"),
        ("helm", "linux/arm64"),
    ]
    held = pins(first, ("anchorage",))
    assert [held[f"tool helm {tool.source}"].hex for tool in first.tools] == [
        tool.sha256 for tool in first.tools
    ]
    (world.folder / "helm-arm64").write_bytes((world.folder / "helm").read_bytes() + b"newer")
    with pytest.raises(InvalidInput, match="contents would be tools/helm:linux-amd64"):
        lock()


def test_rules_and_reasons(lock: Callable[..., Lock], world: World) -> None:
    (world.folder / "k.pub").write_bytes(public_pem(signing_key()))
    rule = {"match": "docker.io/other/*", "key": "k.pub"}
    with pytest.raises(InvalidInput, match="fits no image"):
        lock(lambda s: s.update(verify={"images": [rule]}))
    rule = {"match": "docker.io/demo/*", "key": "k.pub"}
    with pytest.raises(NotTrusted, match=r"demo/core:v1\.2\.3: has no signature"):
        lock(lambda s: s.update(verify={"images": [rule]}))
    lock(lambda s: s.pop("verify"))
    entry = {"reference": "docker.io/library/toolbox:1.36", "reason": "to look around"}
    made = lock(lambda s: s.update(images=[entry]))
    assert [i.reason for i in made.images if "toolbox" in i.reference] == ["to look around"]
    with pytest.raises(NotTrusted, match=r"\n- image docker.io/demo/core"):
        lock(lambda s: s.update(verify={"required": True}))


def test_a_database_that_is_too_old(lock: Callable[..., Lock]) -> None:
    database = {"kind": "trivy-db", "source": "ghcr.io/aquasecurity/trivy-db:2"}
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=20)
    with pytest.raises(InvalidInput, match=r"is 20 days and \d+ hours old.* more than 14d"):
        lock(lambda s: s.update(databases=[database]), now=later)
    longer = database | {"maxAge": "30d"}
    assert lock(lambda s: s.update(databases=[longer]), now=later).databases


def test_only_what_is_named_is_taken_anew(world: World, lock: Callable[..., Lock]) -> None:
    first = lock()
    core, database = "docker.io/demo/core:v1.2.3", "ghcr.io/aquasecurity/trivy-db:2"
    for reference in (core, "docker.io/library/toolbox:1.36"):
        world.publish(reference, images.image([images.layer(200, f"moved {reference}")]))
    world.publish(database, trivy.database(size=2000, updated=NOW))

    def digests(made: Lock) -> dict[str, str]:
        found = {image.reference: image.digest for image in made.images}
        return found | {database.reference: database.digest for database in made.databases}

    named = lock(previous=first, update=("demo/core",))
    changed = {name for name, digest in digests(named).items() if digests(first)[name] != digest}
    assert changed == {core}
    assert digests(named)[core] == world.images[core].digest
    second = lock(previous=first, update=("trivy-*", "anchorage", "helm"))
    changed = {name for name, digest in digests(second).items() if digests(first)[name] != digest}
    assert changed == {database}
    with pytest.raises(InvalidInput, match=r"--update demo/cores") as caught:
        lock(previous=first, update=("demo/cores",))
    assert "demo/core" in caught.value.hint


def test_what_upstream_no_longer_has_under_its_digest(
    world: World, lock: Callable[..., Lock]
) -> None:
    first = lock()
    toolbox = "docker.io/library/toolbox:1.36"
    gone = world.images[toolbox].digest
    world.publish(toolbox, images.image([images.layer(200, "moved")]))
    del world.docker_io.repositories["library/toolbox"].manifests[gone]
    with pytest.raises(NotFound, match=gone):
        lock(previous=first, update=("helm",))
    assert lock(previous=first, update=("helm", "*/toolbox"))
