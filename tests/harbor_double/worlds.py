"""The Harbor that each recorded file began with, and what happened to it between the entries."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from gzip import GzipFile, decompress
from io import BytesIO
from typing import TYPE_CHECKING, Any

import requests

from tests.harbor_double.artifacts import remove
from tests.harbor_double.scanning import start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harbor_double.replay import Replay

_PATIENCE = 30
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
OCI = "application/vnd.oci.image.manifest.v1+json"
SIGNED = "application/vnd.dev.cosign.simplesigning.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True)
class Image:
    """An image of one layer, with its recorded digests."""

    manifest: bytes
    kind: str
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return digest(self.manifest)


def digest(data: bytes) -> str:
    """As registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: dict[str, str], size: int = 0) -> bytes:
    """A compressed tar of these bytes; the same each time. The name in gzip's header fills it."""

    def packed(name: str) -> bytes:
        out = BytesIO()
        with (
            GzipFile(name, "wb", fileobj=out, mtime=0) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            for path, text in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(text.encode())
                tar.addfile(member, BytesIO(text.encode()))
        return out.getvalue()

    short = packed("")
    return packed("x" * (size - len(short) - 1)) if size > len(short) + 1 else short


def image(files: dict[str, str], *, size: int = 0, bad: bytes = b"", kind: str = DOCKER) -> Image:
    """An image that has these files, or a layer that is no tar.

    With the ``size`` of its layer it is as large as a recorded one, to the byte.
    """
    data = bad or layer(files, size)
    if kind != DOCKER and not bad:
        data = decompress(data)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {},
         "history": [{"created_by": "x"}], "rootfs": {"diff_ids": [digest(data)]}},
        separators=(",", ":"),
    ).encode()  # fmt: skip
    docker = kind == DOCKER
    types = (
        (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        if docker
        else (
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar",
        )
    )
    if size:
        config = config.ljust(_CONFIG_BYTES)
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": types[0], "size": len(config), "digest": digest(config)},
        "layers": [{"mediaType": types[1], "size": len(data), "digest": digest(data)}],
    }
    text = json.dumps(manifest, separators=(",", ":")).encode()
    return Image(text.ljust(_MANIFEST_BYTES if size else 0), kind, (config, data))


_CONFIG_BYTES, _MANIFEST_BYTES = 207, 423
_APK = "P:musl\nV:1.2.3-r4\nA:x86_64\n\n"
ALPINE = image({"etc/alpine-release": "3.18.0\n", "lib/apk/db/installed": _APK}, size=291)
JAR = image(
    {"app/demo.jar": "jar", "etc/alpine-release": "3.18.0\n", "lib/apk/db/installed": _APK},
    size=453,
)
FRESH = image({"hello": "hello"}, kind="application/vnd.oci.image.manifest.v1+json")
BAD = image({}, bad=b"no tar at all", kind="application/vnd.oci.image.manifest.v1+json")
RECORDED = {
    "51318e2f4bec7e9c2842b6847cf2e385ab3ce2aa88dd8b5e7ccfe0b49705710a": ALPINE.digest[7:],
    "4b0515c884d4cd7674c98bee30d82df4e12c7469ef4382cf073d165a35daff13": JAR.digest[7:],
    "5752802438d1a8159caa9812361daab8bced1a2f566e86016cba54c281a7bfbb": FRESH.digest[7:],
    "dc92e55c939a0aa61cf91a8c42b31a0fa7981382fe8305fb4ad92df507dff558": BAD.digest[7:],
    "7ec37451aaf49624a3e1b388fe89c41fa8e646f8cc2292f77951c31e3f2a9f43": digest(ALPINE.blobs[0])[7:],
    "bb81978a9cb8bfe9fc1ae47a3e126b4c5d79e36140a9a768772c10d430c38c99": digest(ALPINE.blobs[1])[7:],
    "03d068fe0634b3d1506c36f048be8da759e0361e9d6bf06323c6b0647774d9eb": digest(JAR.blobs[0])[7:],
    "144a6e8691f4fc3a71880f5a8d23e8908653b26e0781ada61b7d3adc9f8fbdd0": digest(JAR.blobs[1])[7:],
    "519bbf4427ce65cd05f107f39ad9b781e44ef756339f8343303f898f41e110d0": digest(FRESH.blobs[0])[7:],
    "fa70626e8008e83b1a4885c04934ed5cf6c927f6346d51eb33055d76d2c8b417": digest(FRESH.blobs[1])[7:],
}
"""Digests of images whose bytes were not recorded → of ours, which are alike."""


class World:
    """Sets a double up by what tests may do to it, and by pushing as any client does."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.state = replay.harbor.state
        self.state.pace = 10.0
        replay.same.update(RECORDED)

    def project(self, name: str, number: int, public: str = "false", **metadata: str) -> None:
        """A project with this id."""
        self.replay.clock.pass_by(0.01)
        self.state.start_at("project", number + 1)
        self.state.start_at("quota", number)
        self.state.add_project(name, {"public": public, **metadata}, 1, -1, number=number)

    def push(self, name: str, what: Image, *tags: str) -> None:
        """Push an image."""
        self.replay.clock.pass_by(0.01)
        for data in what.blobs:
            assert self.replay.upload_blob(name, data)
        for tag in tags:
            self.manifest(name, what.manifest, tag, what.kind)

    def manifest(self, name: str, data: bytes, reference: str, kind: str = OCI) -> str:
        """Push a manifest alone, and give its digest."""
        done = requests.put(
            f"{self.replay.harbor.url}/v2/{name}/manifests/{reference}",
            data,
            auth=("admin", self.replay.harbor.password),
            headers={"Content-Type": kind},
            timeout=_PATIENCE,
        )
        assert done.status_code == 201, done.text
        return digest(data)

    def thing(
        self,
        name: str,
        tag: str,
        config: str,
        layers: dict[str, bytes],
        *,
        inner: bytes = b"{}",
        subject: Image | None = None,
        annotations: dict[str, str] | None = None,
        titles: tuple[str, ...] = (),
        **more: Any,
    ) -> str:
        """Push an artifact that is no image, as oras, helm and cosign do."""
        parts = []
        for place, (kind, data) in enumerate(layers.items()):
            assert self.replay.upload_blob(name, data)
            part: dict[str, Any] = {"mediaType": kind, "digest": digest(data), "size": len(data)}
            if kind == SIGNED:
                part["annotations"] = {"dev.cosignproject.cosign/signature": "MEUCIQ=="}
            if titles:
                part["annotations"] = {"org.opencontainers.image.title": titles[place]}
            parts.append(part)
        assert self.replay.upload_blob(name, inner)
        first: dict[str, Any] = {"mediaType": config, "digest": digest(inner), "size": len(inner)}
        if config == EMPTY:
            first["data"] = "e30="
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI, **more}
        if document["mediaType"] is None:  # helm writes none
            del document["mediaType"]
        document |= {"config": first, "layers": parts}
        if subject is not None:
            document["subject"] = {
                "mediaType": subject.kind, "digest": subject.digest, "size": len(subject.manifest),
            }  # fmt: skip
        if annotations is not None:
            document["annotations"] = annotations
        data = json.dumps(document, separators=(",", ":")).encode()
        return self.manifest(name, data, tag or digest(data))

    def later(self) -> None:
        """Let every job come to its end."""
        self.replay.clock.pass_by(3 * self.state.pace)

    def scanned(self, *names: str) -> None:
        """Scan what these have, to the end."""
        for artifact in self.state.artifacts.values():
            if artifact.name in names:
                start(self.state, artifact, "vulnerability")
        self.later()

    def pulled(self, *names: str) -> None:
        """Have these pulled once."""
        for artifact in self.state.artifacts.values():
            if artifact.name in names:
                artifact.pulled = self.state.now()

    def database(self) -> None:
        """Give the scanner a vulnerability database."""
        self.state.database_updated = "2026-11-23T21:35:11Z"

    def demo(self) -> None:
        """The two projects that were there first."""
        self.project("demo", 2)
        self.push("demo/alpine", ALPINE, "1")
        self.push("demo/jar", JAR, "1")

    def rec(self) -> None:
        """The project of most recordings, with its image."""
        self.demo()
        self.project("rec", 4, auto_sbom_generation="false", auto_scan="false",
                     enable_content_trust_cosign="false", prevent_vul="false",
                     reuse_sys_cve_allowlist="true", severity="low")  # fmt: skip
        self.project("rec2", 5, public="true")
        self.state.start_at("artifact", 5)
        self.state.start_at("tag", 4)
        self.push("rec/alpine", ALPINE, "1")

    def rec_and_jar(self) -> None:
        """The same, with the second image."""
        self.rec()
        self.push("rec/jar", JAR, "1")

    def copies(self) -> None:
        """Four copies of one image, and what content trust is tried with."""
        self.rec_and_jar()
        for name in ("sigold", "signew", "sigref", "unsigned"):
            self.push(f"rec/{name}", JAR, "1")
        self.pulled("rec/sigold")

    def legacy_signature(self) -> None:
        """As cosign 2 leaves one: a tag."""
        signature = {SIGNED: b"signed"}
        config = "application/vnd.oci.image.config.v1+json"
        tag = f"{JAR.digest.replace(':', '-')}.sig"
        self.thing("rec/sigold", tag, config, signature)

    def signature_bundle(self) -> None:
        """As cosign 3 leaves one: a referrer with a Sigstore bundle."""
        kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
        self.thing(
            "rec/signew", "", EMPTY, {kind: b"bundle"}, subject=JAR, artifactType=kind,
            annotations={
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
                "org.opencontainers.image.created": "2026-11-23T21:44:09Z",
            },
        )  # fmt: skip

    def legacy_referrer(self) -> None:
        """The older form as a referrer."""
        signature = {SIGNED: b"signed"}
        config = "application/vnd.dev.cosign.artifact.sig.v1+json"
        self.thing("rec/sigref", "", config, signature, subject=JAR)

    def chart(self) -> None:
        """What helm pushes."""
        files = {"demo/values.yaml": "replicaCount: 1\n", "demo/README.md": "# demo\n"}
        inner = {
            "apiVersion": "v2", "appVersion": "1.16.0", "name": "demo", "type": "application",
            "description": "A Helm chart for Kubernetes", "version": "0.1.0",
        }  # fmt: skip
        self.thing(
            "rec/charts/demo", "0.1.0", "application/vnd.cncf.helm.config.v1+json",
            {"application/vnd.cncf.helm.chart.content.v1.tar+gzip": layer(files)},
            inner=json.dumps(inner).encode(), mediaType=None,
            annotations={
                "org.opencontainers.image.created": "2026-11-23T21:45:44Z",
                "org.opencontainers.image.description": "A Helm chart for Kubernetes",
                "org.opencontainers.image.title": "demo",
                "org.opencontainers.image.version": "0.1.0",
            },
        )  # fmt: skip

    def databases(self) -> None:
        """What oras pushes of Trivy's, in two ways, and a file."""
        kind = "application/vnd.aquasec.trivy.config.v1+json"
        now = {"org.opencontainers.image.created": "2026-11-23T21:45:46Z"}
        for name, tag, short in (("trivy-db", "2", "db"), ("trivy-java-db", "1", "javadb")):
            layers = {f"application/vnd.aquasec.trivy.{short}.layer.v1.tar+gzip": b"data"}
            self.thing(
                f"rec/{name}", tag, EMPTY, layers, artifactType=kind, annotations=now,
                titles=(f"{short}.tar.gz",),
            )  # fmt: skip
        layers = {"application/vnd.aquasec.trivy.db.layer.v1.tar+gzip": b"data"}
        self.thing("rec/trivy-db-cfg", "2", kind, layers, annotations=now, titles=("db.tar.gz",))
        self.thing(
            "rec/files", "1", EMPTY, {"text/plain": b"hello"},
            artifactType="application/vnd.unknown.artifact.v1",
        )  # fmt: skip

    def attached(self) -> None:
        """What oras attach adds to the file."""
        (files,) = (one for one in self.state.artifacts.values() if one.name == "rec/files")
        subject = Image(files.manifest, OCI, ())
        self.thing(
            "rec/files", "", EMPTY, {"text/plain": b"hello"}, subject=subject,
            artifactType="application/vnd.example.doc",
        )  # fmt: skip

    def sbom_project(self) -> None:
        """A project with the image, for what came last."""
        self.project("recsbom", 23)
        self.push("recsbom/alpine", ALPINE, "1")

    def down(self, *names: str) -> None:
        """These components are gone."""
        self.state.down = set(names)

    def cached(self) -> None:
        """What the proxy-cache project has kept."""
        number = self.state.next("repository")
        project = self.state.project_named("proxy")
        assert project is not None
        self.state.repositories[number] = {
            "id": number, "name": "proxy/goharbor/redis-photon",
            "project_id": project["project_id"], "pull_count": 0,
            "creation_time": self.state.stamp(), "update_time": self.state.stamp(),
        }  # fmt: skip

    def mirrored(self) -> None:
        """What the replication brought: copying itself is not done by the double."""
        self.project("mirror", 20)
        self.push("mirror/redis-photon", ALPINE, "v2.14.4")

    def earlier_robot(self) -> None:
        """One that was there before."""
        self.state.start_at("robot", 2)
        access = [("repository", "push"), ("repository", "pull"), ("artifact", "read")]
        access.append(("artifact", "list"))
        grant = {
            "kind": "project",
            "namespace": "*",
            "access": [{"resource": one, "action": other} for one, other in access],
        }
        number, stamp = self.state.next("robot"), self.state.stamp()
        self.state.robots[number] = {
            "id": number, "stored": "sys1795469105", "project": 0, "secret": "x",
            "level": "system", "description": "t", "disable": False, "duration": -1,
            "expires_at": -1, "permissions": [grant], "creator_ref": 1, "creator_type": "local",
            "creation_time": stamp, "update_time": stamp,
        }  # fmt: skip

    def forget_robots(self, *names: str) -> None:
        """Delete these."""
        kept = self.state.robots
        for number in [one for one, robot in kept.items() if robot["stored"] in names]:
            del kept[number]

    def forget_repository(self, name: str) -> None:
        """Delete it."""
        for artifact in self.state.artifacts_of(name):
            remove(self.state, artifact)
        found = self.state.repository_named(name)
        assert found is not None
        del self.state.repositories[found["id"]]

    def forget_retention(self) -> None:
        """Delete the policy."""
        self.state.retentions.clear()
        for project in self.state.projects.values():
            project["metadata"].pop("retention_id", None)

    def collected_once(self) -> None:
        """One garbage collection that is over."""
        self.rec()
        parameters = {
            "delete_untagged": False, "dry_run": False, "workers": 1, "time_window": 2,
            "redis_url_reg": "redis://harbor-redis:6379/2?idle_timeout_seconds=30",
        }  # fmt: skip
        self.state.execution("GARBAGE_COLLECTION", parameters=parameters)
        self.later()
        self.database()
        self.scanned("rec/alpine")

    def well_used(self) -> None:
        """One in which some of everything was done, for the audit log."""
        self.rec_and_jar()
        for what, kind in (
            ("pull", "artifact"), ("delete", "artifact"), ("create", "robot"),
            ("update", "configuration"), ("login", "user"),
        ):  # fmt: skip
            for _ in range(3):
                self.state.log("admin", what, kind, "rec/alpine", f"{what} {kind}", project=4)

    def replicating(self) -> None:
        """With registries beside it, of which some answer."""
        self.rec_and_jar()

        def reachable(registry: dict[str, Any]) -> bool:
            right = registry["credential"].get("access_secret") == self.replay.harbor.password
            plain = registry["url"] == "http://10.55.0.1:5000"
            return plain or bool(registry["type"] == "harbor" and right)

        self.state.reachable = reachable

    def set_projectscanner(self) -> None:
        """A project that was given its scanner."""
        for project in self.state.projects.values():
            if project["name"] == "rec":
                project["metadata"]["projectScanner"] = next(iter(self.state.scanners))

    def with_signatures(self) -> None:
        """After the recordings about signatures."""
        self.copies()
        self.legacy_signature()
        self.signature_bundle()
        self.legacy_referrer()
        self.set_projectscanner()
        self.database()
        self.thing("rec/other", "1", EMPTY, {"application/octet-stream": b"hello"},
                   artifactType="application/vnd.example.thing")  # fmt: skip

    def with_repositories(self) -> None:
        """With all names that the catalogue had."""
        self.rec_and_jar()
        self.mirrored()
        for name in ("auto", "bad", "fresh", "hook", "imm", "other", "ret", "unscanned"):
            self.push(f"rec/{name}", ALPINE, "1")

    def before_artifacts(self) -> None:
        """With what was pushed while content trust was tried."""
        self.rec_and_jar()
        self.pulled("rec/alpine")
        self.push("rec/unsigned", JAR, "1")
        self.push("rec/unsigned2", ALPINE, "1")
        self.pulled("rec/unsigned2")
        self.push("rec/early", ALPINE, "1")

    def before_scans(self) -> None:
        """With one scan that failed, and a pull."""
        self.rec_and_jar()
        self.scanned("rec/alpine")
        self.pulled("rec/alpine")

    def before_refusals(self) -> None:
        """With a database, and what it was scanned with."""
        self.rec_and_jar()
        self.database()
        self.scanned("rec/alpine", "rec/jar")
        self.pulled("rec/alpine")

    def broken_scan(self) -> None:
        """The newest scan of the image without findings ends in an error."""
        self.push("rec/bad", BAD, "1")
        self.scanned("rec/bad")
        self.pulled("rec/fresh")
        kept, self.state.database_updated = self.state.database_updated, ""
        self.scanned("rec/fresh")
        self.state.database_updated = kept

    def fresh(self) -> None:
        """An image without any package."""
        self.push("rec/fresh", FRESH, "1")

    def made_sbom(self) -> None:
        """The SBOM is made, and has the recorded digest's place."""
        self.later()
        (artifact,) = self.state.artifacts_of("recsbom/alpine")
        made = self.state.sbom(artifact)
        self.replay.same[_SBOM] = made[7:]

    def scanned_project(self) -> None:
        """Another project with an image that was scanned."""
        self.sbom_project()
        self.scanned("recsbom/alpine")


def _each(*steps: Callable[[World], object]) -> Callable[[World], object]:
    def take(world: World) -> None:
        for step in steps:
            step(world)

    return take


_SBOM = "6748fa4f47cf71429307facc8d3107e85943e1b21c1fe0d760eda629de51e6d8"
BEGINS: dict[str, Callable[[World], object]] = {
    "artifacts": World.before_artifacts,
    "audit-logs": World.well_used,
    "auth": World.demo,
    "content-trust": World.with_signatures,
    "gc": World.collected_once,
    "labels": _each(World.rec_and_jar, lambda world: world.pulled("rec/alpine")),
    "prevent-vulnerable": World.before_refusals,
    "projects": World.demo,
    "quotas": World.rec,
    "replication": World.replicating,
    "robots": _each(World.rec_and_jar, World.earlier_robot),
    "scan": World.before_scans,
    "signatures": World.copies,
    "systeminfo": World.demo,
    "tag-retention": World.rec,
    "token-service": World.with_repositories,
}
"""Topic → the Harbor that its file begins with; any other has two images in project rec."""


def _url(port: int) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.state.external_url = f"http://harbor.site.test:{port}"

    return change


BEFORE: dict[str, Callable[[World], object]] = {
    "artifacts#18": lambda world: world.push("rec/team/app", ALPINE, "1"),
    "artifacts#27": World.chart,
    "artifacts#35": World.databases,
    "artifacts#48": World.attached,
    "auth#36": lambda world: world.project("rec2", 5, public="true"),
    "configurations#41": lambda world: setattr(world.state, "listening", lambda _: True),
    "content-trust#13": _each(
        lambda world: world.push("rec/unsigned2", ALPINE, "1"),
        lambda world: world.scanned("rec/unsigned2"),
    ),
    "content-trust#25": lambda world: world.push("rec/early", ALPINE, "1"),
    "gc#4": World.later,
    "gc#7": World.later,
    "gc#15": World.later,
    "gc#22": World.later,
    "health-when-something-is-down#1": _url(30012),
    "health-when-something-is-down#2": lambda world: world.down("jobservice"),
    "health-when-something-is-down#7": lambda world: world.down("trivy"),
    "health-when-something-is-down#15": World.down,
    "health-when-something-is-down#19": lambda world: world.down("redis"),
    "health-when-something-is-down#25": lambda world: world.down("core"),
    "immutable-tags#7": lambda world: world.push("rec/imm", ALPINE, "v1", "latest"),
    "immutable-tags#18": lambda world: [world.state.immutable.pop(n, None) for n in (3, 4, 5)],
    "prevent-vulnerable#7": World.fresh,
    "prevent-vulnerable#8": lambda world: world.scanned("rec/fresh"),
    "prevent-vulnerable#23": World.broken_scan,
    "prevent-vulnerable#31": World.scanned_project,
    "projects#68": lambda world: world.push("rec/alpine", ALPINE, "1"),
    "quotas#23": lambda world: world.push("rec/jar", JAR, "1"),
    "replication#45": lambda world: world.state.start_at("task", 35),
    "replication#50": World.mirrored,
    "replication#52": lambda world: world.state.start_at("task", 36),
    "replication#59": lambda world: world.state.start_at("task", 37),
    "replication#67": lambda world: world.state.replications[4].update(enabled=False),
    "replication#81": World.cached,
    "replication#89": _each(lambda world: world.push("rec/ev", ALPINE, "1"), World.later),
    "robots#25": lambda world: world.forget_robots("a_b"),
    "robots#67": lambda world: world.forget_robots("multi", "mysecret"),
    "robots#74": lambda world: world.push("rec2/x", ALPINE, "1"),
    "robots#81": lambda world: world.forget_repository("rec2/x"),
    "scan#15": World.later,
    "scan#18": _each(World.later, World.database),
    "scan#57": lambda world: world.push("rec/auto", ALPINE, "1"),
    "scan#63": World.sbom_project,
    "scan#64": World.made_sbom,
    "scanners#25": lambda world: setattr(world.state, "scanner_answers", lambda _: True),
    "scanners#40": World.database,
    "signatures#2": World.legacy_signature,
    "signatures#9": World.signature_bundle,
    "signatures#16": World.legacy_referrer,
    "tag-retention#21": _each(
        lambda world: world.push("rec/ret", JAR, "v1", "v2"),
        lambda world: world.push("rec/ret", ALPINE, "v3"),
        lambda world: world.state.start_at("task", 7),
    ),
    "tag-retention#27": lambda world: world.state.start_at("task", 8),
    "tag-retention#28": World.later,
    **{f"tag-retention#{number}": World.forget_retention for number in (35, 36, 37, 38)},
}  # fmt: skip
"""Exchange → what happened before it that was not recorded."""

_DELIVERED = "webhooks are not delivered here"
_PROXY = "the double has no proxy cache: that needs another registry to ask"
_WRITTEN = "what Trivy itself writes into an SBOM"
NOT_REPLAYED: dict[str, str] = {
    "configurations#38": "its body was not recorded",
    "replication#71": _PROXY,
    "replication#72": _PROXY,
    "scan#64": _WRITTEN,
    "scan#65": _WRITTEN,
    "scan#66": _WRITTEN,
    **{f"webhooks#{number}": _DELIVERED for number in range(11, 18)},
}
"""Exchange → why it can not be replayed."""

CUT = {"immutable-tags#8"}
"""Exchanges of whose answers only some fields were recorded, besides those that say so."""
_HISTORY = "tells what all the other files did"
SHAPE_ONLY: dict[str, str] = {
    **{f"audit-logs#{number}": _HISTORY for number in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)},
    "gc#24": _HISTORY,
    "replication#48": "copying itself is not done by the double",
    "scan#48": "how far a scan of everything is, by the clock",
    "scan#49": "how far a scan of everything is, by the clock",
    **{f"scan#{number}": _HISTORY for number in (50, 53, 54, 55)},
}
"""Exchange → why only names and types of its answer can be compared."""
