"""Real charts through real Helm, 3 and 4: every image found, every image replaced."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from bundler.spec import Spec
from installer.bundle.digest import Digest
from installer.errors import DeploymentFailed, InvalidInput
from installer.helm.chart import ChartArchive
from installer.helm.client import Helm
from installer.helm.images import find_images
from installer.helm.overlay import image_overlay
from installer.helm.values import unknown_keys
from installer.oci.reference import Reference
from tests import programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.servers import DockerRegistry

CHARTS = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared") / "charts"
HARBOR = [
    "harbor-core",
    "harbor-db",
    "harbor-exporter",
    "harbor-jobservice",
    "harbor-portal",
    "harbor-registryctl",
    "nginx-photon",
    "redis-photon",
    "registry-photon",
    "trivy-adapter-photon",
]
QUAY = "quay.io/jetstack/cert-manager-"
K8S = "registry.k8s.io/sig-storage/"
EXPECTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "cert-manager-v1.21.1": (
        {"crds": {"enabled": True}},
        [
            f"{QUAY}{part}:v1.21.1"
            for part in ("acmesolver", "cainjector", "controller", "startupapicheck", "webhook")
        ],
    ),
    "vault-0.34.1": (
        {"csi": {"enabled": True}},
        [
            "docker.io/hashicorp/vault-csi-provider:1.7.4",
            "docker.io/hashicorp/vault-k8s:1.7.6",
            "docker.io/hashicorp/vault:2.0.4",
        ],
    ),
    "csi-driver-nfs-4.13.4": (
        {"externalSnapshotter": {"enabled": True}},
        [
            f"{K8S}csi-node-driver-registrar:v2.17.0",
            f"{K8S}csi-provisioner:v6.3.0",
            f"{K8S}csi-resizer:v2.2.0",
            f"{K8S}csi-snapshotter:v8.6.0",
            f"{K8S}livenessprobe:v2.19.0",
            f"{K8S}nfsplugin:v4.13.4",
            f"{K8S}snapshot-controller:v8.6.0",
        ],
    ),
}
KUBE = "1.34.4"


@pytest.fixture(params=[4, 3], ids=["helm4", "helm3"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Helm:
    try:
        binary = programs.helm(request.param)
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))
    return Helm(binary, tmp_path / "home")


def chart(name: str) -> Path:
    path = CHARTS / f"{name}.tgz"
    if not path.exists():
        pytest.skip(f"{path} is not there: set AIRGAP_SHARED to the folder with the charts")
    return path


def written(tmp_path: Path, name: str) -> Spec:
    path = tmp_path / "bundle.yaml"
    path.write_bytes((resources.files("manifests") / "bundles" / name).read_bytes())
    return Spec.load(path)


def place(reference: Reference) -> Reference:
    path = f"{reference.host}/{reference.path}"
    return Reference("127.0.0.1:5000", path, reference.tag, Digest.of(str(reference).encode()))


def replaced(client: Helm, path: Path, values: dict[str, Any]) -> set[str]:
    """Images of a render, after asserting that an overlay replaces each of them."""
    archive = ChartArchive.read(path)
    assert unknown_keys(values, archive.values, commented=archive.commented) == []
    before = find_images(client.template(path, "r", "ns", values, kube_version=KUBE))
    known = {image.reference for image in before}
    overlay = image_overlay(
        archive.values, values, lambda r: place(r) if r in known else None, archive.app_version
    )
    assert unknown_keys(overlay, archive.values, commented=archive.commented) == []
    after = find_images(client.template(path, "r", "ns", [values, overlay], kube_version=KUBE))
    assert [image.reference for image in after] == [place(image.reference) for image in before]
    assert [image.origin for image in after] == [image.origin for image in before]
    return {str(reference) for reference in known}


@pytest.mark.parametrize(
    ("spec", "name", "tag"),
    [("harbor.yaml", "harbor-1.19.1", "v2.15.1"), ("harbor-2.14.yaml", "harbor-1.18.4", "v2.14.4")],
)
def test_harbors_profiles_give_all_ten_images(
    client: Helm, tmp_path: Path, spec: str, name: str, tag: str
) -> None:
    read = written(tmp_path, spec)
    found = {
        profile: replaced(client, chart(name), read.profiles[profile])
        for profile in read.document.charts[0].profiles
    }
    assert len(found["default"]) == 8
    assert sorted(set.union(*found.values())) == [
        f"docker.io/goharbor/{image}:{tag}" for image in HARBOR
    ]


def test_the_platforms_profiles_give_all_images(client: Helm, tmp_path: Path) -> None:
    read = written(tmp_path, "harbor-platform.yaml")
    found = {}
    for one in read.document.charts:
        path = chart(f"{one.name}-{one.version}")
        sets = [replaced(client, path, read.profiles[profile]) for profile in one.profiles]
        found[f"{one.name}-{one.version}"] = set.union(*sets)
    for name in ("cert-manager-v1.21.1", "csi-driver-nfs-4.13.4"):
        assert sorted(found.pop(name)) == EXPECTED[name][1]
    assert {len(images) for images in found.values()} == {len(HARBOR)}


def test_the_values_of_a_storage_class_are_known_though_they_are_comments() -> None:
    archive = ChartArchive.read(chart("csi-driver-nfs-4.13.4"))
    made = {
        "create": True,
        "name": "nfs-csi",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        "parameters": {"server": "10.55.0.9", "share": "/srv/nfs/harbor"},
        "reclaimPolicy": "Retain",
        "volumeBindingMode": "Immediate",
        "mountOptions": ["nfsvers=4.1"],
    }
    values: dict[str, Any] = {"storageClass": made, "storageClasses": [made]}
    assert unknown_keys(values, archive.values, commented=archive.commented) == []
    wrong = {"storageClass": {"create": True, "paramaters": {}}}
    (found,) = unknown_keys(wrong, archive.values, commented=archive.commented)
    assert found == ("storageClass.paramaters", "storageClass.parameters")


@pytest.mark.parametrize("name", EXPECTED)
def test_companion_charts(client: Helm, name: str) -> None:
    values, expected = EXPECTED[name]
    assert sorted(replaced(client, chart(name), values)) == expected


@pytest.mark.parametrize("name", ["harbor-1.18.4", "harbor-1.19.1"])
def test_keys_that_harbors_chart_ignores_are_refused(name: str) -> None:
    archive = ChartArchive.read(chart(name))
    values = {
        "expose": {"tsl": {"enabled": False}, "ingress": {"annotations": {"any/key": "x"}}},
        "global": {"imageRegistry": "x"},
        "persistence": {
            "imageChartStorage": {"s3": {"existingSecret": "x"}},
            "persistentVolumeClaim": {"jobservice": {"existingClaim": "x"}},
        },
        "core": {"resources": {"limits": {"cpu": 1}}, "podLabels": {"x": "y"}},
    }
    found = dict(unknown_keys(values, archive.values, commented=archive.commented))
    assert found == {
        "expose.tsl": "expose.tls",
        "global": "",
        "persistence.persistentVolumeClaim.jobservice.existingClaim": (
            "persistence.persistentVolumeClaim.jobservice.jobLog.existingClaim"
        ),
    }


def test_version(client: Helm) -> None:
    assert client.version() >= (3, 18, 0)
    assert client.version()[0] in (3, 4)


def make_chart(folder: Path, template: str, values: str = "") -> Path:
    root = folder / "demo"
    (root / "templates").mkdir(parents=True)
    (root / "Chart.yaml").write_text("apiVersion: v2\nname: demo\nversion: 1.0.0\n")
    (root / "values.yaml").write_text(values)
    (root / "templates" / "x.yaml").write_text(template)
    return Path(shutil.make_archive(str(folder / "demo-1.0.0"), "gztar", folder, "demo"))


HARD = [
    "a\nb",
    "tab\t",
    "\"quoted'",
    "ümlaut 😀",
    "\x85\u2028\u2029\ufeff\x7f",
    "%{}[]&*!|>@`#: ",
    "yes",
    "007",
    "1e3",
    " spaces ",
    "",
]


def test_values_arrive_as_they_are(client: Helm, tmp_path: Path) -> None:
    path = make_chart(tmp_path, "kind: X\nkey: {{ .Values.list | toJson | b64enc }}\n")
    rendered = client.template(path, "r", "ns", {"list": HARD})
    encoded = rendered.split("key: ")[1].split()[0]
    assert json.loads(base64.b64decode(encoded)) == HARD


def test_a_render_failure_names_chart_and_profile_and_hides_secrets(
    client: Helm, tmp_path: Path
) -> None:
    path = make_chart(tmp_path, '{{ fail (printf "no: %s" .Values.password) }}')
    with pytest.raises(InvalidInput, match="no: ") as caught:
        client.template(
            path, "r", "ns", {"password": "hunter2"}, profile="big", secrets=["hunter2"]
        )
    assert "chart demo-1.0.0.tar.gz with profile 'big': rendering failed" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert "no: ***" in caught.value.message


def test_the_kubernetes_version_and_apis_count(client: Helm, tmp_path: Path) -> None:
    template = (
        "kind: {{ .Capabilities.KubeVersion.Version }}\n"
        'has: {{ .Capabilities.APIVersions.Has "x.example/v1" }}\n'
    )
    path = make_chart(tmp_path, template)
    rendered = client.template(
        path, "r", "ns", {}, kube_version="1.31.2", api_versions=["x.example/v1"]
    )
    assert "kind: v1.31.2\nhas: true" in rendered


def test_the_callers_environment_is_not_seen(
    client: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM_NAMESPACE", "wrong")
    monkeypatch.setenv("HELM_DEBUG", "true")
    path = make_chart(tmp_path, "kind: X\nmetadata: {name: {{ .Release.Namespace }}}\n")
    assert "name: ns}" in client.template(path, "r", "ns", {})
    assert {entry.name for entry in client.home.iterdir()} <= {"cache", "config", "data"}


def test_without_a_kubeconfig_no_cluster_is_asked(client: Helm) -> None:
    with pytest.raises(InvalidInput, match="no kubeconfig"):
        client.releases()


@pytest.fixture
def silent() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


@pytest.fixture
def deaf(
    client: Helm, tmp_path: Path, silent: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Helm]:
    """Helm with that server for its cluster; afterwards its child must be gone."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n"
        "contexts: [{name: x, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{silent}'}}}}]\n"
    )
    monkeypatch.setattr("installer.helm.client._GRACE", 1.0)
    helm = Helm(client.binary, client.home, kubeconfig=kubeconfig)
    helm.version()
    yield helm
    for process in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = process.read_bytes()
        except OSError:
            continue
        assert str(kubeconfig).encode() not in environment


def test_a_cluster_that_never_answers_ends_in_time(deaf: Helm) -> None:
    start = time.monotonic()
    with pytest.raises(DeploymentFailed, match="no answer within 2 s"):
        deaf._run(["list"], DeploymentFailed, "list", timeout=2)
    assert time.monotonic() - start < 10


def test_an_interrupt_ends_helm_as_well(deaf: Helm) -> None:
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        deaf.releases()
    timer.join()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["harbor-1.19.1", "cert-manager-v1.21.1", "vault-0.34.1"])
def test_the_config_blob_is_byte_for_byte_helms(
    client: Helm, make_docker_registry: Callable[..., DockerRegistry], name: str
) -> None:
    registry, path = make_docker_registry(), chart(name)
    subprocess.run(
        [client.binary, "push", path, f"oci://{registry.host}/charts", "--plain-http"],
        check=True,
        capture_output=True,
        env=client._environment(),
    )
    archive = ChartArchive.read(path)
    manifest = requests.get(
        f"{registry.url}/v2/charts/{archive.name}/manifests/{archive.version}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        timeout=10,
    ).json()
    assert manifest["config"]["digest"] == str(Digest.of(archive.config))
