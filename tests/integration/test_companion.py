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
from installer.errors import PreflightFailed
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
