from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import ssl
import struct
import tarfile
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.programs import ProgramMissing
from tests.upstream import Upstream, charts, trivy
from tests.upstream.certificates import make_certificates
from tests.upstream.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Content,
    Image,
    artefact,
    image,
    index,
    layer,
    tar_layer,
    write_docker_archive,
    write_layout,
)
from tests.upstream.registry import Login, Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message
    from pathlib import Path


def small(seed: str = "one", *, docker: bool = False) -> Image:
    return image([layer(5000, seed, docker=docker)], docker=docker)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        yield server


def ask(
    server: Registry | charts.StaticServer,
    method: str,
    path: str,
    body: bytes | None = None,
    /,
    **headers: str,
) -> tuple[int, Message, bytes]:
    connection = HTTPConnection(server.host, timeout=5)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


class TestImages:
    def test_same_arguments_give_the_same_bytes(self) -> None:
        assert small() == small()
        assert small().digest != small("two").digest

    def test_config_names_the_digest_of_the_tar_before_compression(self) -> None:
        made = image([layer(100_000, "words", text=True)])
        config, stored = made.blobs
        plain = gzip.decompress(stored.data)
        named = json.loads(config.data)["rootfs"]["diff_ids"]
        assert named == ["sha256:" + hashlib.sha256(plain).hexdigest()]
        assert len(stored.data) < len(plain) / 3

    def test_random_content_does_not_compress(self) -> None:
        stored = layer(100_000, "noise").content.data
        assert len(gzip.compress(stored)) > 100_000

    def test_descriptors_of_the_manifest_fit_the_content(self) -> None:
        made = image([layer(10, "a"), layer(20, "b")])
        manifest = json.loads(made.top.data)
        told = [manifest["config"], *manifest["layers"]]
        assert [(part["digest"], part["size"]) for part in told] == [
            ("sha256:" + hashlib.sha256(part.data).hexdigest(), len(part.data))
            for part in made.blobs
        ]

    def test_layers_can_be_shared(self) -> None:
        shared = layer(10_000, "base")
        both = [image([shared, layer(10, name)]) for name in ("x", "y")]
        assert both[0].blobs[1] == both[1].blobs[1]
        assert both[0].digest != both[1].digest

    @pytest.mark.parametrize(
        ("docker", "media_type"), [(False, OCI_MANIFEST), (True, DOCKER_MANIFEST)]
    )
    def test_media_types(self, docker: bool, media_type: str) -> None:  # noqa: FBT001  # a parameter
        made = small(docker=docker)
        assert made.top.media_type == media_type == json.loads(made.top.data)["mediaType"]
        family = "vnd.docker." if docker else "vnd.oci."
        assert all(family in part.media_type for part in made.blobs)

    def test_index_lists_platforms(self) -> None:
        arm = image([layer(10, "arm")], platform="linux/arm64/v8")
        made = index([small(docker=True), arm], docker=True)
        document = json.loads(made.top.data)
        assert document["mediaType"] == DOCKER_LIST
        assert [entry["platform"] for entry in document["manifests"]] == [
            {"os": "linux", "architecture": "amd64"},
            {"os": "linux", "architecture": "arm64", "variant": "v8"},
        ]
        assert [entry["digest"] for entry in document["manifests"]] == [
            part.digest for part in made.manifests
        ]

    def test_a_layer_is_a_tar_with_its_folders(self) -> None:
        made = tar_layer({"bin/sh": b"#!"}, executable=["bin/sh"])
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(made.content.data))) as archive:
            assert [(item.name, item.mode) for item in archive] == [
                ("bin", 0o755),
                ("bin/sh", 0o755),
            ]

    def test_layout_holds_every_blob_under_its_digest(self, tmp_path: Path) -> None:
        made = index([small()])
        write_layout(tmp_path / "layout", {"it": made})
        files = {p.name: p.read_bytes() for p in (tmp_path / "layout/blobs/sha256").iterdir()}
        assert len(files) == 4
        assert all(hashlib.sha256(data).hexdigest() == name for name, data in files.items())
        listed = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
        assert listed[0]["annotations"] == {"org.opencontainers.image.ref.name": "it"}
        assert listed[0]["digest"] == made.digest

    def test_docker_archive_lists_its_members(self, tmp_path: Path) -> None:
        write_docker_archive(tmp_path / "it.tar", {"demo/it:1": small()})
        with tarfile.open(tmp_path / "it.tar") as archive:
            listed = archive.extractfile("manifest.json")
            assert listed
            (entry,) = json.load(listed)
            assert entry["RepoTags"] == ["demo/it:1"]
            assert {entry["Config"], *entry["Layers"], "manifest.json"} == set(archive.getnames())


class TestPull:
    def test_manifest_by_tag_and_digest(self, registry: Registry) -> None:
        made = small()
        registry.put("demo/it", "1", made)
        for version in ("1", made.digest):
            status, headers, body = ask(registry, "GET", f"/v2/demo/it/manifests/{version}")
            assert (status, body) == (200, made.top.data)
            assert headers["Docker-Content-Digest"] == made.digest
            assert headers["Content-Type"] == OCI_MANIFEST

    def test_head_has_length_but_no_body(self, registry: Registry) -> None:
        made = small()
        registry.put("demo/it", "1", made)
        status, headers, body = ask(registry, "HEAD", "/v2/demo/it/manifests/1")
        assert (status, headers["Content-Length"]) == (200, str(len(made.top.data)))
        assert body == b""
        assert registry.bytes_sent == 0

    def test_accept_counts(self, registry: Registry) -> None:
        registry.put("demo/it", "1", index([small()]))
        path = "/v2/demo/it/manifests/1"
        assert ask(registry, "GET", path, Accept=OCI_MANIFEST)[0] == 404
        assert ask(registry, "GET", path, Accept=f"{OCI_MANIFEST}, {OCI_INDEX}")[0] == 200

    @pytest.mark.parametrize(
        ("asked", "start", "end"), [("0-99", 0, 100), ("4000-", 4000, None), ("-10", -10, None)]
    )
    def test_range(self, registry: Registry, asked: str, start: int, end: int | None) -> None:
        blob = small().blobs[1]
        registry.put("demo/it", "1", small())
        path = f"/v2/demo/it/blobs/{blob.digest}"
        status, headers, body = ask(registry, "GET", path, Range=f"bytes={asked}")
        assert (status, body) == (206, blob.data[start:end])
        first = start % len(blob.data)
        told = f"bytes {first}-{first + len(body) - 1}/{len(blob.data)}"
        assert headers["Content-Range"] == told

    def test_range_behind_the_end(self, registry: Registry) -> None:
        blob = small().blobs[1]
        registry.put("demo/it", "1", small())
        path = f"/v2/demo/it/blobs/{blob.digest}"
        status, headers, _ = ask(registry, "GET", path, Range=f"bytes={len(blob.data)}-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{len(blob.data)}")

    def test_a_blob_belongs_to_its_repositories(self, registry: Registry) -> None:
        registry.put("demo/it", "1", small())
        registry.put("demo/other", "1", small("two"))
        digest = small().blobs[1].digest
        assert ask(registry, "GET", f"/v2/demo/other/blobs/{digest}")[0] == 404
        assert ask(registry, "HEAD", f"/v2/demo/it/blobs/{digest}")[0] == 200

    def test_tags_in_pages(self, registry: Registry) -> None:
        for tag in ("c", "a", "b"):
            registry.put("demo/it", tag, small())
        path, seen = "/v2/demo/it/tags/list?n=2", []
        while path:
            _, headers, body = ask(registry, "GET", path)
            seen += json.loads(body)["tags"]
            path = headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert seen == ["a", "b", "c"]

    def test_referrers(self, registry: Registry) -> None:
        subject = small()
        config = Content(OCI_CONFIG, b"{}")
        sbom = artefact(config, [], artifact_type="application/spdx+json", subject=subject.top)
        registry.put("demo/it", "1", subject)
        registry.put("demo/it", None, sbom)
        path = f"/v2/demo/it/referrers/{subject.digest}"
        _, headers, body = ask(registry, "GET", path)
        assert headers["Content-Type"] == OCI_INDEX
        (found,) = json.loads(body)["manifests"]
        assert (found["digest"], found["artifactType"]) == (sbom.digest, "application/spdx+json")
        _, _, body = ask(registry, "GET", f"{path}?artifactType=other/type")
        assert json.loads(body)["manifests"] == []

    def test_below_a_prefix(self) -> None:
        with Registry(prefix="/mirror") as server:
            server.put("demo/it", "1", small())
            assert ask(server, "GET", "/mirror/v2/demo/it/manifests/1")[0] == 200
            assert ask(server, "GET", "/v2/demo/it/manifests/1")[0] == 404

    def test_tls(self, tmp_path: Path) -> None:
        made = make_certificates(tmp_path)
        with Registry(tls=made.context()) as server:
            trusting = ssl.create_default_context(cafile=made.ca)
            with urllib.request.urlopen(f"{server.url}/v2/", context=trusting, timeout=5) as answer:  # noqa: S310  # our own
                assert answer.status == 200
            with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
                urllib.request.urlopen(f"{server.url}/v2/", timeout=5)  # noqa: S310  # our own
        assert made.key.stat().st_mode & 0o77 == 0


class TestPush:
    def test_chunks_then_manifest(self, registry: Registry) -> None:
        made = small()
        config, blob = made.blobs
        _, headers, _ = ask(registry, "POST", "/v2/new/blobs/uploads/")
        for piece, span in ((blob.data[:3000], "0-2999"), (blob.data[3000:], "3000-")):
            where = headers["Location"]
            status, headers, _ = ask(registry, "PATCH", where, piece, Content_Range=span)
            assert status == 202
        assert ask(registry, "PUT", f"{headers['Location']}&digest={blob.digest}")[0] == 201
        put = f"/v2/new/manifests/{made.digest}"
        kind = {"Content_Type": OCI_MANIFEST}
        assert ask(registry, "PUT", put, made.top.data, **kind)[0] == 400  # no config yet
        whole = f"/v2/new/blobs/uploads/?digest={config.digest}"
        assert ask(registry, "POST", whole, config.data)[0] == 201
        assert ask(registry, "PUT", "/v2/new/manifests/1", made.top.data, **kind)[0] == 201
        assert ask(registry, "GET", put)[2] == made.top.data

    def test_chunk_out_of_order(self, registry: Registry) -> None:
        _, headers, _ = ask(registry, "POST", "/v2/new/blobs/uploads/")
        patched = ask(registry, "PATCH", headers["Location"], b"xyz", Content_Range="5-7")
        assert patched[0] == 416

    def test_wrong_digest_is_not_stored(self, registry: Registry) -> None:
        digest = "sha256:" + "0" * 64
        assert ask(registry, "POST", f"/v2/new/blobs/uploads/?digest={digest}", b"x")[0] == 400
        assert ask(registry, "HEAD", f"/v2/new/blobs/{digest}")[0] == 404

    def test_mount(self, registry: Registry) -> None:
        registry.put("old", "1", small())
        digest = small().blobs[1].digest
        path = f"/v2/new/blobs/uploads/?mount={digest}&from="
        assert ask(registry, "POST", path + "nowhere")[0] == 202
        assert ask(registry, "POST", path + "old")[0] == 201
        assert ask(registry, "HEAD", f"/v2/new/blobs/{digest}")[0] == 200


class TestLogin:
    def token(self, server: Registry, scope: str, auth: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": auth} if auth else {}
        status, _, body = ask(server, "GET", f"/token?service=x&scope={scope}", **headers)
        return status, json.loads(body).get("token", "")

    def test_bearer_token_opens_only_its_scope(self) -> None:
        with Registry(login=Login(anonymous_pull=True)) as server:
            server.put("a/b", "1", small())
            server.put("c", "1", small())
            status, headers, _ = ask(server, "GET", "/v2/a/b/manifests/1")
            assert status == 401
            wanted = re.search(r'scope="([^"]+)"', headers["Www-Authenticate"])
            assert wanted
            assert wanted[1] == "repository:a/b:pull"
            _, token = self.token(server, wanted[1])
            bearer = {"Authorization": f"Bearer {token}"}
            assert ask(server, "GET", "/v2/a/b/manifests/1", **bearer)[0] == 200
            assert ask(server, "GET", "/v2/c/manifests/1", **bearer)[0] == 401
            assert ask(server, "POST", "/v2/a/b/blobs/uploads/", **bearer)[0] == 401

    def test_token_needs_the_password(self) -> None:
        with Registry(login=Login()) as server:
            assert self.token(server, "repository:a:push")[0] == 401
            assert self.token(server, "repository:a:push", "Basic d3Jvbmc6")[0] == 401
            right = "Basic cm9ib3Q6bGV0LW1lLWlu"  # robot:let-me-in
            status, token = self.token(server, "repository:a:pull,push", right)
            assert status == 200
            bearer = {"Authorization": f"Bearer {token}"}
            assert ask(server, "POST", "/v2/a/blobs/uploads/", **bearer)[0] == 202

    def test_tokens_expire(self) -> None:
        with Registry(login=Login(anonymous_pull=True, lifetime=0.05)) as server:
            server.put("a", "1", small())
            bearer = {"Authorization": f"Bearer {self.token(server, 'repository:a:pull')[1]}"}
            time.sleep(0.1)
            assert ask(server, "GET", "/v2/a/manifests/1", **bearer)[0] == 401

    def test_basic(self) -> None:
        with Registry(login=Login(bearer=False)) as server:
            status, headers, _ = ask(server, "GET", "/v2/")
            assert (status, headers["Www-Authenticate"]) == (401, 'Basic realm="registry"')
            right = {"Authorization": "Basic cm9ib3Q6bGV0LW1lLWlu"}
            assert ask(server, "GET", "/v2/", **right)[0] == 200


class TestFaults:
    @pytest.fixture
    def blob(self, registry: Registry) -> Content:
        registry.put("demo/it", "1", small())
        return small().blobs[1]

    def get(self, registry: Registry, blob: Content, **headers: str) -> tuple[int, bytes]:
        status, _, body = ask(registry, "GET", f"/v2/demo/it/blobs/{blob.digest}", **headers)
        return status, body

    def test_status_for_a_while(self, registry: Registry, blob: Content) -> None:
        fault = registry.fail("/blobs/", status=503, headers={"Retry-After": "7"}, after=1, times=2)
        assert [self.get(registry, blob)[0] for _ in range(4)] == [200, 503, 503, 200]
        assert fault.hits == 2

    def test_only_the_named_method(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", method="HEAD", status=500)
        assert self.get(registry, blob)[0] == 200
        assert ask(registry, "HEAD", f"/v2/demo/it/blobs/{blob.digest}")[0] == 500

    def test_cut_body(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", cut_after=1000, times=1)
        with pytest.raises(IncompleteRead) as caught:
            self.get(registry, blob)
        assert caught.value.partial == blob.data[:1000]
        assert self.get(registry, blob, Range="bytes=1000-") == (206, blob.data[1000:])
        assert registry.bytes_sent == len(blob.data)
        assert registry.log[-1].range == "bytes=1000-"

    def test_stall(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", stall_after=100)
        connection = HTTPConnection(registry.host, timeout=0.2)
        connection.request("GET", f"/v2/demo/it/blobs/{blob.digest}")
        answer = connection.getresponse()
        with pytest.raises(TimeoutError):
            answer.read()
        answer.close()
        connection.close()

    def test_flipped_byte_stays_where_it_is(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", flip_at=2000)
        whole = self.get(registry, blob)[1]
        assert [
            at for at, pair in enumerate(zip(whole, blob.data, strict=True)) if len({*pair}) > 1
        ] == [2000]
        assert self.get(registry, blob, Range="bytes=1500-")[1] == whole[1500:]

    def test_replaced_content(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", replace=b"something else")
        assert self.get(registry, blob) == (200, b"something else")

    def test_range_ignored(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", no_range=True)
        assert self.get(registry, blob, Range="bytes=1000-") == (200, blob.data)

    def test_dropped_connection(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", drop=True)
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            self.get(registry, blob)

    def test_rate(self, registry: Registry, blob: Content) -> None:
        registry.fail("/blobs/", bytes_per_second=20_000)
        began = time.monotonic()
        assert self.get(registry, blob)[1] == blob.data
        assert time.monotonic() - began > len(blob.data) / 20_000 * 0.9

    def test_leaving_does_not_wait_for_a_stalled_client(self) -> None:
        with Registry() as server:
            server.put("demo/it", "1", small())
            server.fail("/blobs/", stall_after=10, stall_for=600)
            connection = HTTPConnection(server.host, timeout=5)
            connection.request("GET", f"/v2/demo/it/blobs/{small().blobs[1].digest}")
            answer = connection.getresponse()
            began = time.monotonic()
        assert time.monotonic() - began < 2
        answer.close()
        connection.close()

    def test_a_bug_in_the_server_is_not_hidden(self) -> None:
        server = Registry().__enter__()
        server.repositories = None  # type: ignore[assignment]
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            ask(server, "GET", "/v2/a/manifests/1")
        with pytest.raises(RuntimeError, match="test server itself"):
            server.__exit__(None, None, None)


class TestCharts:
    def test_same_arguments_give_the_same_bytes(self) -> None:
        assert charts.chart() == charts.chart()
        assert charts.chart("1.2.4") != charts.chart()

    def test_default_values_name_every_component(self) -> None:
        document = charts.values("v9")
        for component in charts.COMPONENTS:
            where = document
            for key in component.key.split("."):
                where = where[key]
            assert where == {"repository": component.repository, "tag": "v9"}

    def test_profiles_bring_one_image_each(self) -> None:
        plain = charts.images_of("v1", ["default"])
        assert charts.images_of("v1", ["metrics"]) - plain == {"docker.io/demo/exporter:v1"}
        assert charts.images_of("v1", ["nodeport"]) - plain == {"docker.io/demo/nginx:v1"}

    def test_repository_index_tells_the_digest(self) -> None:
        tgz = charts.chart()
        with charts.ChartRepository() as server:
            server.add(tgz, "1.2.3", "v1.2.3")
            index = yaml.safe_load(ask(server, "GET", "/index.yaml")[2])
            (entry,) = index["entries"]["anchorage"]
            status, _, body = ask(server, "GET", "/" + entry["urls"][0])
            assert (status, hashlib.sha256(body).hexdigest()) == (200, entry["digest"])
            assert ask(server, "GET", "/nothing")[0] == 404

    def test_one_api_version_is_followed_by_a_tab(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(charts.chart())) as archive:
            template = archive.extractfile("anchorage/templates/database.yaml")
            assert template
            assert b"apiVersion: v1\t\n" in template.read()


class TestTrivy:
    @pytest.mark.parametrize(
        ("kind", "version", "name"),
        [("trivy-db", 2, "trivy.db"), ("trivy-java-db", 1, "trivy-java.db")],
    )
    def test_artefact(self, kind: str, version: int, name: str) -> None:
        made = trivy.database(kind, size=100_000)
        manifest = json.loads(made.top.data)
        assert manifest["config"]["mediaType"] == trivy.CONFIG_TYPE
        (stored,) = manifest["layers"]
        title = trivy.KINDS[kind].archive
        assert stored["annotations"] == {"org.opencontainers.image.title": title}
        with tarfile.open(fileobj=io.BytesIO(made.blobs[1].data)) as archive:
            assert archive.getnames() == [name, "metadata.json"]
            facts, content = archive.extractfile("metadata.json"), archive.extractfile(name)
            assert facts
            assert content
            metadata = json.load(facts)
            assert metadata["Version"] == version
            assert metadata["UpdatedAt"] == f"{trivy.PUBLISHED:%Y-%m-%dT%H:%M:%SZ}"
            assert 90_000 < len(content.read()) < 120_000

    def test_bbolt_pages(self) -> None:
        data = trivy.bbolt("vulnerability", 100_000, "x")
        assert len(data) % 4096 == 0
        magic, version, page = struct.unpack_from("<III", data, 16)
        assert (magic, version, page) == (0xED0CDAED, 2, 4096)
        assert b"vulnerability" in data[3 * 4096 : 4 * 4096]


def test_upstream_serves_what_it_expects(tmp_path: Path) -> None:
    with Upstream(tmp_path, scale=0.01, helm=False) as upstream:
        spec = yaml.safe_load(upstream.spec.read_text())
        assert spec["charts"][0]["source"] == upstream.chart_repository.url
        assert spec["tools"] == []
        hosts = yaml.safe_load(upstream.registries.read_text())["registries"]
        for reference in upstream.expected():
            name, _, tag = reference.rpartition(":")
            host, _, path = name.partition("/")
            (endpoint,) = hosts[host]["endpoints"]
            with urllib.request.urlopen(f"{endpoint}/v2/{path}/manifests/{tag}", timeout=5) as got:  # noqa: S310  # our own
                assert got.headers["Docker-Content-Digest"] == upstream.images[reference].digest


def test_next_release_shares_layers_but_for_the_changed_ones(tmp_path: Path) -> None:
    upstream = Upstream(tmp_path, scale=0.01, helm=False)
    with upstream:
        upstream.release("1.2.4", changed=("demo/core",))
        old, new = (upstream.images[f"docker.io/demo/core:v{v}"] for v in ("1.2.3", "1.2.4"))
        assert old.blobs[1:-1] == new.blobs[1:-1]
        assert old.blobs[-1] != new.blobs[-1]
        kept = [upstream.images[f"docker.io/demo/db:v{v}"] for v in ("1.2.3", "1.2.4")]
        assert kept[0].digest == kept[1].digest
        index = yaml.safe_load(upstream.chart_repository.files["index.yaml"])
        assert [entry["version"] for entry in index["entries"]["anchorage"]] == ["1.2.4", "1.2.3"]


def test_upstream_that_can_not_start_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(major: int) -> Path:
        raise ProgramMissing(f"no Helm {major}")

    monkeypatch.setattr("tests.programs.helm", missing)
    upstream = Upstream(tmp_path, scale=0.01)
    with pytest.raises(ProgramMissing), upstream:
        pytest.fail("it never ran")
    with pytest.raises(ConnectionRefusedError):
        ask(upstream.docker_io, "GET", "/v2/")
