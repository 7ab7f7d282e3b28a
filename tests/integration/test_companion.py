"""The companion chart, rendered by the real Helm: what it makes of a site, and what not."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from installer.deploy.companion import Companion
from installer.deploy.context import Context
from installer.deploy.tools import Toolbox
from installer.errors import InvalidInput, PreflightFailed
from installer.site.authority import ensure_certificates, utc_now
from installer.site.certificate import TlsFiles
from installer.site.harbor import Harbor
from installer.site.model import Cluster, Release, Seed, Serve, Site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.programs import ProgramMissing, helm, kubectl
from tests.upstream.images import Content, artefact, image, layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.upstream.images import Image

pytestmark = pytest.mark.integration

IMAGES = {
    f"docker.io/goharbor/{name}:v2": image([layer(100, name)])
    for name in ("harbor-db", "registry-photon", "harbor-core")
}
TLS = TlsFiles(b"the chain\n", b"the key\n", b"the authority\n")
NFS = {"nfs": {"server": "10.0.0.9", "path": "/srv/harbor", "size": "1Ti"}}


def tool(path: Path) -> Image:
    content = Content("application/x-executable", path.read_bytes())
    return artefact(Content("application/json", b"{}"), [content])


@pytest.fixture(params=[4, 3])
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Companion]]:
    try:
        programs = {"helm": tool(helm(request.param)), "kubectl": tool(kubectl())}
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    opened = []

    def make(
        *, tls: TlsFiles | None = TLS, without: tuple[str, ...] = (), **sections: Any
    ) -> Companion:
        images = {n: i for n, i in IMAGES.items() if not any(part in n for part in without)}
        path, pem = make_bundle(tmp_path / "b.tar", images, tools=programs)
        bundle = open_bundle(path, pem)
        opened.append(bundle)
        harbor = msgspec.convert({"externalURL": "https://h.test"} | sections, Harbor)
        release = Release("harbor", name="hub", namespace="prod", harbor=harbor)
        site = Site(
            "site/v1", "Site", "plant", Cluster(str(tmp_path / "none.conf")),
            Seed(serve=Serve("0.0.0.0:5000", "10.0.0.5:5000")), (release,),
        )  # fmt: skip
        box = Toolbox(bundle, tmp_path / "tools")
        box.apply()
        (tmp_path / "work").mkdir(exist_ok=True)
        state = State(tmp_path / "state")
        return Companion(Context(bundle, site, state, box, tmp_path / "work"), release, lambda: tls)

    yield make
    for bundle in opened:
        bundle.close()


def objects(companion: Companion) -> dict[str, dict[str, Any]]:
    documents = [one for one in yaml.safe_load_all(companion.rendered()) if one]
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in documents}
    assert len(found) == len(documents)
    return found


def test_nothing_is_made_of_nothing(make: Callable[..., Companion]) -> None:
    companion = make()
    assert not companion.is_needed()
    assert objects(companion) == {}


def test_a_volume_on_nfs(make: Callable[..., Companion]) -> None:
    found = objects(make(storage=NFS))
    assert set(found) == {
        "PersistentVolume/plant-prod-hub", "PersistentVolumeClaim/hub-data",
        "Job/hub-companion-folders",
    }  # fmt: skip
    volume = found["PersistentVolume/plant-prod-hub"]["spec"]
    assert volume["nfs"] == {"server": "10.0.0.9", "path": "/srv/harbor"}
    assert volume["mountOptions"] == ["hard", "nfsvers=4.1"]
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["claimRef"]["name"] == "hub-data"
    assert volume["claimRef"]["namespace"] == "prod"
    claim = found["PersistentVolumeClaim/hub-data"]["spec"]
    assert (claim["volumeName"], claim["storageClassName"]) == ("plant-prod-hub", "")
    assert claim["accessModes"] == volume["accessModes"] == ["ReadWriteMany"]
    assert claim["resources"]["requests"] == volume["capacity"] == {"storage": "1Ti"}
    for name in ("PersistentVolume/plant-prod-hub", "PersistentVolumeClaim/hub-data"):
        assert found[name]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_folders_belong_to_their_components(make: Callable[..., Companion]) -> None:
    found = objects(make(storage={"hostPath": {"path": "/srv/harbor"}}))
    source = found["PersistentVolume/plant-prod-hub"]["spec"]["hostPath"]
    assert source == {"path": "/srv/harbor", "type": "DirectoryOrCreate"}
    (container,) = found["Job/hub-companion-folders"]["spec"]["template"]["spec"]["containers"]
    assert set(container["command"][4:]) == {
        "registry:10000", "jobservice:10000", "database:999", "redis:999", "trivy:10000",
    }  # fmt: skip
    assert container["image"].startswith("10.0.0.5:5000/goharbor/harbor-db:v2@sha256:")


def test_another_image_has_a_shell_as_well(make: Callable[..., Companion]) -> None:
    found = objects(make(storage=NFS, without=("harbor-db",)))
    (container,) = found["Job/hub-companion-folders"]["spec"]["template"]["spec"]["containers"]
    assert "/goharbor/registry-photon:v2@" in container["image"]
    with pytest.raises(PreflightFailed, match="harbor-db, goharbor/registry-photon"):
        make(storage=NFS, without=("harbor-db", "registry-photon")).preflight()


def test_the_certificate_is_harbors_only_where_harbor_speaks_tls(
    make: Callable[..., Companion],
) -> None:
    certificate: dict[str, Any] = {"certificate": {"selfSigned": {}}}
    secret = objects(make(**certificate))["Secret/hub-external-tls"]
    assert secret["type"] == "kubernetes.io/tls"
    assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    public = objects(make(**certificate, tls=replace(TLS, ca=b"")))["Secret/hub-external-tls"]
    assert set(public["data"]) == {"tls.crt", "tls.key"}
    assert not make(**certificate, loadBalancer={"haproxy": {"nodes": ["10.0.0.1"]}}).is_needed()
    assert not make(certificate={"secret": "theirs"}).is_needed()


def test_it_waits_for_a_certificate_that_is_not_made_yet(make: Callable[..., Companion]) -> None:
    companion = make(certificate={"selfSigned": {}}, tls=None)
    assert companion.is_needed()
    assert not companion.check()


def test_authorities_that_harbor_trusts(make: Callable[..., Companion], tmp_path: Path) -> None:
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    one.write_text("first\n\n")
    two.write_text("second")
    found = objects(
        make(
            database={"host": "db", "passwordFile": "p", "ca": str(one)},
            redis={"addresses": ["r:1"], "tls": True, "ca": str(two)},
        )
    )
    data = found["Secret/hub-ca-bundle"]["data"]["ca.crt"]
    assert base64.b64decode(data) == b"first\nsecond\n"


# What asks cert-manager for a certificate

VAULT = {"address": "https://vault.test:8200/", "role": "harbor", "mount": "pki/plant"}


def issued(make: Callable[..., Companion], section: dict[str, Any], **more: Any) -> Any:
    companion = make(certificate={"certManager": section}, tls=None, **more)
    assert companion.is_needed()
    assert "the request for its certificate" in companion.sentence
    companion.preflight()
    return objects(companion)


def test_an_issuer_that_is_there_is_asked(make: Callable[..., Companion]) -> None:
    section = {
        "issuer": {"name": "plant", "kind": "ClusterIssuer"},
        "names": ["10.0.0.7", "*.h.test"],
    }
    found = issued(make, section, loadBalancer={"haproxy": {"nodes": ["10.0.0.1"]}})
    assert set(found) == {"Certificate/hub-issued-tls"}
    spec = found["Certificate/hub-issued-tls"]["spec"]
    assert spec["secretName"] == "hub-issued-tls"
    assert spec["issuerRef"] == {
        "name": "plant", "kind": "ClusterIssuer", "group": "cert-manager.io",
    }  # fmt: skip
    assert (spec["commonName"], spec["dnsNames"]) == ("h.test", ["h.test", "*.h.test"])
    assert spec["ipAddresses"] == ["10.0.0.7"]
    assert (spec["duration"], spec["renewBefore"]) == ("8760h", "2920h")


def test_an_authority_that_cert_manager_makes_signs(make: Callable[..., Companion]) -> None:
    found = issued(make, {"selfSigned": {}})
    assert set(found) == {
        "Certificate/hub-issued-tls", "Issuer/hub-own-ca", "Issuer/hub-own-ca-root",
        "Certificate/hub-own-ca",
    }  # fmt: skip
    assert found["Certificate/hub-issued-tls"]["spec"]["issuerRef"]["name"] == "hub-own-ca"
    assert found["Issuer/hub-own-ca"]["spec"] == {"ca": {"secretName": "hub-own-ca"}}
    authority = found["Certificate/hub-own-ca"]["spec"]
    assert authority["isCA"] is True
    assert authority["issuerRef"]["name"] == "hub-own-ca-root"
    assert authority["privateKey"]["rotationPolicy"] == "Never"
    assert found["Issuer/hub-own-ca-root"]["spec"] == {"selfSigned": {}}


def test_an_authority_of_the_sites_signs(make: Callable[..., Companion], tmp_path: Path) -> None:
    ensure_certificates(tmp_path, "plant", ["h.test"], utc_now())
    files = {"certificate": str(tmp_path / "ca.crt"), "key": str(tmp_path / "ca.key")}
    found = issued(make, {"ca": files})
    assert set(found) == {
        "Certificate/hub-issued-tls", "Issuer/hub-given-ca", "Secret/hub-given-ca",
    }  # fmt: skip
    data = found["Secret/hub-given-ca"]["data"]
    assert base64.b64decode(data["tls.key"]) == (tmp_path / "ca.key").read_bytes()
    assert base64.b64decode(data["tls.crt"]) == (tmp_path / "ca.crt").read_bytes()
    for files, words in (
        ({"certificate": "ca.crt", "key": "tls.key"}, r"tls\.key: it does not belong to the first"),
        ({"certificate": "tls.crt", "key": "tls.key"}, r"tls\.crt: it is no authority"),
        ({"certificate": "ca.key", "key": "ca.key"}, r"ca\.key: there is no certificate"),
        ({"certificate": "ca.crt", "key": "ca.crt"}, r"ca\.crt: no private key"),
    ):
        section = {"ca": {key: str(tmp_path / name) for key, name in files.items()}}
        with pytest.raises(InvalidInput, match=words) as caught:
            make(certificate={"certManager": section}).preflight()
        assert "BEGIN" not in caught.value.message


def test_vault_signs_for_cert_manager_by_a_secret_id(
    make: Callable[..., Companion], tmp_path: Path
) -> None:
    ensure_certificates(tmp_path, "plant", ["h.test"], utc_now())
    (tmp_path / "secret-id").write_text("the word\n")
    login = {"roleId": "the role", "secretIdFile": str(tmp_path / "secret-id")}
    section = VAULT | {"appRole": login, "ca": str(tmp_path / "ca.crt"), "namespace": "one"}
    found = issued(make, {"vault": section})
    assert set(found) == {"Certificate/hub-issued-tls", "Issuer/hub-vault", "Secret/hub-vault"}
    spec = found["Issuer/hub-vault"]["spec"]["vault"]
    assert base64.b64decode(spec.pop("caBundle")) == (tmp_path / "ca.crt").read_bytes()
    assert spec == {
        "server": "https://vault.test:8200", "path": "pki/plant/sign/harbor", "namespace": "one",
        "auth": {
            "appRole": {
                "path": "approle", "roleId": "the role",
                "secretRef": {"name": "hub-vault", "key": "secretId"},
            }
        },
    }  # fmt: skip
    data = found["Secret/hub-vault"]["data"]
    assert base64.b64decode(data["secretId"]) == b"the word"


def test_vault_signs_for_cert_manager_by_a_service_account(make: Callable[..., Companion]) -> None:
    login = {"role": "signer", "mount": "plant/k8s", "controller": "cm/controller"}
    found = issued(make, {"vault": VAULT | {"kubernetes": login}})
    assert set(found) == {
        "Certificate/hub-issued-tls", "Issuer/hub-vault", "ServiceAccount/hub-vault",
        "Role/hub-vault", "RoleBinding/hub-vault",
    }  # fmt: skip
    assert found["Issuer/hub-vault"]["spec"]["vault"]["auth"]["kubernetes"] == {
        "role": "signer", "mountPath": "/v1/auth/plant/k8s",
        "serviceAccountRef": {"name": "hub-vault"},
    }  # fmt: skip
    (rule,) = found["Role/hub-vault"]["rules"]
    assert rule == {
        "apiGroups": [""], "resources": ["serviceaccounts/token"],
        "resourceNames": ["hub-vault"], "verbs": ["create"],
    }  # fmt: skip
    assert found["RoleBinding/hub-vault"]["subjects"] == [
        {"kind": "ServiceAccount", "namespace": "cm", "name": "controller"}
    ]


def test_helm_never_owns_what_cert_manager_writes(make: Callable[..., Companion]) -> None:
    found = issued(make, {"selfSigned": {}})
    written = {
        one["spec"]["secretName"] for name, one in found.items() if name.startswith("Certificate/")
    }
    assert not {f"Secret/{name}" for name in written} & set(found)
    ours = objects(make(certificate={"selfSigned": {}}))
    assert not {f"Secret/{name}" for name in written} & set(ours)


def test_an_address_is_no_common_name(make: Callable[..., Companion]) -> None:
    section = {"issuer": {"name": "plant"}}
    found = issued(make, section, externalURL="https://10.0.0.7")
    spec = found["Certificate/hub-issued-tls"]["spec"]
    assert "commonName" not in spec
    assert "dnsNames" not in spec
    assert spec["ipAddresses"] == ["10.0.0.7"]
