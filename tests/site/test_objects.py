"""Every object that the shipped sites come to, before the real API server with strict validation.

Objects are rendered by the product from a real bundle, as it applies them, for the versions of the
chart that are shipped and for each alternative that the sites name in comments. The server is
asked to create them without doing it (``--dry-run=server --validate=strict``): an unknown or
doubled field, a value that is out of bounds and whatever it warns about fails here. What the
product has from a chart only once is asked once.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from installer.cli.open import TrustOptions, open_verified
from installer.deploy.cluster import ClusterInfo
from installer.deploy.context import looking
from installer.deploy.harbor import HarborParts
from installer.deploy.release import HelmRelease
from installer.helm.images import read_objects
from installer.site.authority import ensure_certificates, utc_now
from installer.site.model import read_site
from installer.site.profiles import PROFILES, profile_text
from installer.site.state import State
from tests import programs
from tests.site.story import NEW, OLD
from tests.site.test_run_cert_manager import VERSION as CERT_MANAGER
from tests.site.test_run_cert_manager import standins as cert_manager_images
from tests.site.test_run_csi import standins as driver_images
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected

pytestmark = pytest.mark.site

NAMESPACE = "objects"
_SEPARATOR = re.compile(r"^---[ \t]*$", re.MULTILINE)
_DEFINITION = re.compile(r"^kind:\s*[\"']?CustomResourceDefinition\b", re.MULTILINE)

TLS: dict[str, Any] = {"loadBalancer": None}
"""Harbor itself has the certificate."""
LOGIN = {"roleId": "harbor", "secretIdFile": "./vault.secret-id"}
VAULT = {"address": "https://vault.plant.example:8200", "ca": "./site-ca.pem", "role": "harbor"}
CLASS = {"storageClass": "nfs-csi", "accessMode": "ReadWriteMany", "sizes": {"registry": "2Ti"}}
INTERNAL = {
    name: {"secretName": f"harbor-{name}-internal"}
    for name in ("core", "jobservice", "registry", "portal", "trivy")
}
BUDGET = {"podDisruptionBudget": {"enabled": True, "minAvailable": 1}}


@dataclass(frozen=True)
class Case:
    """A shipped site, what is changed in its section harbor, and further values of the chart."""

    profile: str
    harbor: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def certified(way: str, section: Any) -> Case:
    return Case("demo", {**TLS, "certificate": {way: section}})


CASES = {
    **{profile: Case(profile) for profile in PROFILES},
    # Certificates; what Vault issues to the installer is in a Secret like a provided one
    "self-signed": certified("selfSigned", {"names": ["harbor", "10.55.0.1"]}),
    "provided": certified(
        "provided",
        {"certificate": "./harbor-chain.pem", "key": "./harbor.key", "ca": "./site-ca.pem"},
    ),
    "secret": certified("secret", "harbor-tls"),
    "issued by an authority of cert-manager's": certified("certManager", {"selfSigned": {}}),
    "issued by an issuer that is there": certified(
        "certManager", {"issuer": {"name": "plant", "kind": "ClusterIssuer"}, "names": ["harbor"]}
    ),
    "issued by the site's authority": certified(
        "certManager", {"ca": {"certificate": "./issuer/ca.crt", "key": "./issuer/ca.key"}}
    ),
    "issued by Vault, AppRole": certified("certManager", {"vault": VAULT | {"appRole": LOGIN}}),
    "issued by Vault, a service account": certified(
        "certManager", {"vault": VAULT | {"namespace": "ns1", "kubernetes": {"role": "harbor"}}}
    ),
    "passthrough": Case(
        "demo",
        {"loadBalancer": {"haproxy": {"nodes": ["10.55.0.1"], "mode": "passthrough"}}},
    ),
    "TLS inside": Case(
        "production",
        {"internalTLS": None},
        {"internalTLS": {"enabled": True, "certSource": "secret", **INTERNAL}},
    ),
    # Storage
    "a folder of the node": Case("demo", {"storage": {"hostPath": {"path": "/srv/harbor"}}}),
    "a claim": Case("demo", {"storage": {"claim": "harbor-data"}}),
    "a storage class": Case("demo", {"storage": {"storageClass": "fast"}}),
    "a storage class for several nodes": Case("production", {"storage": CLASS}),
    "no storage": Case("demo", {"storage": {"ephemeral": {}}}),
    # Ways in
    "a service": Case("demo", TLS | {"expose": {"type": "clusterIP"}}),
    "a load balancer": Case(
        "production",
        {"expose": {"type": "loadBalancer", "address": "10.55.0.20"}},
        {"nginx": {"replicas": 2} | BUDGET},
    ),
    "a node port": Case("minimal", {"expose": {"httpPort": 30062, "httpsPort": 30063}}),
    "an ingress": Case(
        "minimal",
        {
            "externalURL": "http://harbor.plant.example",
            "expose": {"type": "ingress", "ingressClass": "nginx"},
        },
    ),
    # What stands behind
    "everything inside": Case(
        "demo", {"database": None, "redis": None, "storage": {"storageClass": "fast"}}
    ),
    "Sentinel": Case(
        "production",
        {
            "redis": {
                "addresses": ["10.55.0.31:26379", "10.55.0.32:26379"],
                "sentinelMaster": "harbor",
                "passwordFile": "./harbor-redis.password",
            }
        },
    ),
    "no metrics": Case("demo", values={"metrics": {"enabled": False}}),
}
OTHERS: dict[str, dict[str, Any]] = {
    "cert-manager": {"chart": "cert-manager", "profile": "cert-manager"},
    "csi-driver-nfs": {
        "chart": "csi-driver-nfs",
        "profile": "csi-driver-nfs",
        "values": {
            "storageClass": {
                "create": True,
                "name": "nfs-csi",
                "parameters": {"server": "10.55.0.9", "share": "/srv/nfs/harbor"},
                "mountOptions": ["hard", "nfsvers=4.1"],
            }
        },
    },
    "csi-driver-nfs with snapshots": {
        "chart": "csi-driver-nfs",
        "profile": "nfs-snapshots",
        "values": {
            "storageClasses": [{"name": "nfs-kept", "reclaimPolicy": "Retain"}],
            "volumeSnapshotClass": {"create": True},
        },
    },
}


class Server:
    """The real API server, asked for each text of an object once."""

    def __init__(
        self, cluster: Cluster, folder: Path, bundles: Mapping[str, Path], key: Path
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self._bundles, self._key = bundles, key
        self._state = State(folder / "state")
        self._accepted: set[str] = set()
        self.kinds: set[str] = set()
        self.count = 0
        # Some objects name a namespace themselves: what --namespace says would be against them.
        self._kubeconfig = folder / "kubeconfig"
        document = yaml.safe_load(cluster.kubeconfig.read_text())
        for context in document["contexts"]:
            context["context"]["namespace"] = NAMESPACE
        self._kubeconfig.touch(mode=0o600)
        self._kubeconfig.write_text(yaml.safe_dump(document))

    def rendered(self, release: Mapping[str, Any]) -> str:
        """What a run applies for a release, with secrets and certificates that are made for it.

        Without a version it is of the bundle with the newer Harbor.
        """
        bundle = self._bundles[release.get("version") or NEW]
        site_file = self.folder / "site.yaml"
        document = yaml.safe_load(profile_text("demo"))
        document["cluster"]["kubeconfig"] = str(self._kubeconfig)
        document["nodes"] = {}
        document["releases"] = [dict(release) | {"namespace": NAMESPACE}]
        site_file.write_text(yaml.safe_dump(document))
        site = read_site(site_file)
        versions = self.cluster.kubectl("api-versions").split()
        info = ClusterInfo(self._version(), tuple(versions))
        with (
            self._state.held(),
            open_verified(bundle, TrustOptions(self._key, None)) as verified,
            looking(verified, site, self._state, needed=("helm",)) as context,
        ):
            (one,) = site.releases
            installed = HelmRelease(context, info, one)
            installed.secrets()
            before = ""
            if one.harbor is not None:
                parts = HarborParts(context, one, one.harbor, installed, info)
                if parts.certificate.is_needed() and not parts.certificate.in_cluster:
                    parts.certificate.apply()
                if parts.internal.is_needed():
                    parts.internal.apply()
                before = parts.rendered()
            return f"{before}\n---\n{installed.rendered().objects}"

    def _version(self) -> str:
        said = yaml.safe_load(self.cluster.kubectl("version", "--output=yaml"))
        return str(said["serverVersion"]["gitVersion"])

    def define(self, rendered: str) -> None:
        """Make the definitions of a rendered chart: what is of their kinds needs them."""
        texts = [text for text in _SEPARATOR.split(rendered) if _DEFINITION.search(text)]
        assert texts
        self._ask(texts, "create", "--validate=strict")
        self._ask(texts, "wait", "--for=condition=Established", "--timeout=60s")

    def take(self, rendered: str) -> None:
        """Assert that the server takes all objects that are new to it."""
        assert sum("\nkind: " in text for text in _SEPARATOR.split(f"\n{rendered}"))
        texts = []
        for text in _SEPARATOR.split(rendered):
            objects = [one for _, one in read_objects(text) if isinstance(one, dict)]
            if not objects or _DEFINITION.search(text) or text in self._accepted:
                continue
            texts.append(text)
            self.kinds |= {one["kind"] for one in objects}
            self.count += len(objects)
        if texts:
            # Helm 3 creates, Helm 4 applies on the server, which looks at lists more closely.
            self._ask(texts, "create", "--dry-run=server", "--validate=strict")
            self._ask(
                texts, "apply", "--server-side", "--dry-run=server", "--validate=strict",
                "--field-manager=helm",
            )  # fmt: skip
        self._accepted |= set(texts)

    def _ask(self, texts: list[str], *words: str) -> None:
        done = self.cluster.run(
            [programs.kubectl(), *words, "--warnings-as-errors", "--filename=-"],
            stdin="\n---\n".join(texts),
            env={"KUBECONFIG": str(self._kubeconfig)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr


def files(folder: Path) -> None:
    """Write what the shipped sites name: certificates and passwords."""
    tls = make_certificates(folder, ["harbor.plant.example", "harbor.bank.example"])
    for name in ("site-ca.pem", "postgresql-ca.pem"):
        (folder / name).write_bytes(tls.ca.read_bytes())
    (folder / "harbor-chain.pem").write_bytes(tls.certificate.read_bytes())
    (folder / "issuer").mkdir(mode=0o700)
    ensure_certificates(folder / "issuer", "plant", ["harbor.plant.example"], utc_now())
    secret = dict.fromkeys(
        ("postgres.password", "harbor-db.password", "harbor-redis.password", "vault.secret-id"),
        b"a password\n",
    )
    secret["harbor.key"] = tls.key.read_bytes()
    for name, data in secret.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def server(
    cluster: Cluster, connected: Connected, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    for name, image in cert_manager_images().items():
        connected.upstream.push(f"jetstack/{name}:{CERT_MANAGER}", image)
    for reference, image in driver_images().items():
        connected.upstream.push(reference, image)
    made = {
        NEW: connected.make("objects", "2.15", product="harbor-platform").path,
        OLD: connected.make("objects-old", "2.14").path,
    }
    folder = tmp_path_factory.mktemp("objects")
    files(folder)
    cluster.kubectl("create", "namespace", NAMESPACE)
    server = Server(cluster, folder, made, connected.public_key)
    try:
        for name in ("cert-manager", "csi-driver-nfs with snapshots"):
            server.define(server.rendered(OTHERS[name]))
        yield server
    finally:
        for group in ("cert-manager.io", "snapshot.storage.k8s.io"):
            found = cluster.kubectl("get", "customresourcedefinitions", "--output=name").split()
            if names := [name for name in found if name.endswith(group)]:
                cluster.kubectl("delete", *names)
        # The next story compares what the cluster has before and after: nothing may go meanwhile.
        cluster.kubectl("delete", "namespace", NAMESPACE)


def release_of(case: Case, version: str) -> dict[str, Any]:
    """Harbor's release of a shipped site with the changes of a case."""
    release: dict[str, Any]
    (release,) = yaml.safe_load(profile_text(case.profile))["releases"]
    values: dict[str, Any] = release["values"]
    for key in case.harbor:
        # A site has it in the section or in the values, as it is shipped.
        values.pop({"storage": "persistence"}.get(key, key), None)
    values |= {
        key: values.get(key, {}) | dict(of) if isinstance(of, dict) else of
        for key, of in case.values.items()
    }
    if version == OLD:
        for component in values.values():
            component.pop("podDisruptionBudget", None)
    section = release["harbor"] | copy.deepcopy(dict(case.harbor))
    release["harbor"] = {key: of for key, of in section.items() if of is not None}
    return release | {"version": version}


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_api_server_takes_all_objects_of_harbor(
    server: Server, case: Case, version: str
) -> None:
    server.take(server.rendered(release_of(case, version)))


@pytest.mark.parametrize("name", OTHERS)
def test_and_those_of_the_charts_beside_it(server: Server, name: str) -> None:
    server.take(server.rendered(OTHERS[name]))


def test_what_is_wrong_would_be_seen(server: Server) -> None:
    good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n"
    server.take(good)
    with pytest.raises(AssertionError, match='unknown field "dta"'):
        server.take(good + "dta: {}\n")
    port = "{name: web, containerPort: 80}"
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"
        f"spec: {{containers: [{{name: c, image: x, ports: [{port}, {port}]}}]}}\n"
    )
    with pytest.raises(AssertionError, match=r"[Dd]uplicate"):
        server.take(pod)


def test_every_kind_was_there(server: Server, tell: Callable[[str], None]) -> None:
    assert server.kinds >= {
        "Certificate", "ClusterRole", "CSIDriver", "ConfigMap", "DaemonSet", "Deployment",
        "Ingress", "Issuer", "Job", "PersistentVolume", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Secret", "Service", "ServiceAccount", "StatefulSet", "StorageClass",
        "ValidatingWebhookConfiguration", "VolumeSnapshotClass",
    }  # fmt: skip
    tell(f"{server.count} objects of {len(server.kinds)} kinds: taken by the API server")
