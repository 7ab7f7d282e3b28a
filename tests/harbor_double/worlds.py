"""The Harbor that each recorded file began with, and what happened to it between the entries."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from gzip import GzipFile
from io import BytesIO
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harbor_double.replay import Replay

_PATIENCE = 30
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


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


def layer(files: dict[str, str]) -> bytes:
    """A compressed tar; the same bytes each time."""
    out = BytesIO()
    with (
        GzipFile(fileobj=out, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, BytesIO(text.encode()))
    return out.getvalue()


def image(files: dict[str, str], *, bad: bytes = b"", kind: str = DOCKER) -> Image:
    """An image that has these files, or a layer that is no tar."""
    data = bad or layer(files)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "author": "", "created": None, "config": {},
         "history": [{"created_by": "x"}], "rootfs": {"type": "layers", "diff_ids": [digest(data)]}}
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
            "application/vnd.oci.image.layer.v1.tar+gzip",
        )
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": types[0], "size": len(config), "digest": digest(config)},
        "layers": [{"mediaType": types[1], "size": len(data), "digest": digest(data)}],
    }
    return Image(json.dumps(manifest).encode(), kind, (config, data))


_APK = "P:musl\nV:1.2.3-r4\nA:x86_64\n\n"
ALPINE = image({"etc/alpine-release": "3.18.0\n", "lib/apk/db/installed": _APK})
JAR = image({"app/demo.jar": "jar", "etc/alpine-release": "3.18.0\n", "lib/apk/db/installed": _APK})
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
        self.state.start_at("project", number + 1)
        kept = {"public": public, **metadata}
        self.state.add_project(name, kept, 1, -1, number=number)

    def blob(self, name: str, data: bytes) -> None:
        """Upload a blob, as any client does."""
        url, login = self.replay.harbor.url, ("admin", self.replay.harbor.password)
        started = requests.post(f"{url}/v2/{name}/blobs/uploads/", auth=login, timeout=_PATIENCE)
        assert started.status_code == 202, started.text
        where = started.headers["Location"]
        done = requests.put(f"{where}&digest={digest(data)}", data, auth=login, timeout=_PATIENCE)
        assert done.status_code == 201, done.text

    def push(self, name: str, what: Image, tag: str) -> None:
        """Push an image."""
        for data in what.blobs:
            self.blob(name, data)
        self.manifest(name, what.manifest, tag, what.kind)

    def manifest(self, name: str, data: bytes, reference: str, kind: str) -> None:
        """Push a manifest alone."""
        done = requests.put(
            f"{self.replay.harbor.url}/v2/{name}/manifests/{reference}",
            data,
            auth=("admin", self.replay.harbor.password),
            headers={"Content-Type": kind},
            timeout=_PATIENCE,
        )
        assert done.status_code == 201, done.text

    def api(self, method: str, path: str, document: Any = None) -> None:
        """A call that was not recorded."""
        done = requests.request(
            method,
            f"{self.replay.harbor.url}/api/v2.0{path}",
            json=document,
            auth=("admin", self.replay.harbor.password),
            timeout=_PATIENCE,
        )
        assert done.ok, done.text

    def later(self) -> None:
        """Let every job come to its end."""
        self.replay.clock.pass_by(3 * self.state.pace)

    def demo(self) -> None:
        """The two projects that were there first."""
        self.project("demo", 2)
        self.push("demo/alpine", ALPINE, "1")
        self.push("demo/jar", JAR, "1")
        self.state.start_at("project", 3)

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
        self.state.start_at("project", 17)

    def rec_and_jar(self) -> None:
        """The same, with the second image."""
        self.rec()
        self.push("rec/jar", JAR, "1")


Step = "Callable[[World], object]"
BEGINS: dict[str, Callable[[World], object]] = {}
BEFORE: dict[str, Callable[[World], object]] = {}
NOT_REPLAYED: dict[str, str] = {}
"""Exchange → why it can not be replayed."""
