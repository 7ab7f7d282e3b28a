from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from installer.errors import InvalidInput
from installer.harbor.values import INTERNAL, harbor_values, overlapping
from installer.helm.chart import ChartArchive
from installer.helm.client import Helm
from installer.helm.values import merge, unknown_keys
from installer.site.credentials import generate
from installer.site.model import Release, read_site
from installer.site.section import split_address
from tests import programs

if TYPE_CHECKING:
    from installer.site.harbor import Harbor

MINIMAL = Path(__file__).parents[2] / "manifests" / "sites" / "minimal.yaml"
DEMO = MINIMAL.with_name("demo.yaml")
PRODUCTION = MINIMAL.with_name("production.yaml")
CHARTS = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared") / "charts"


def site(tmp_path: Path, **changes: Any) -> Path:
    document = yaml.safe_load(MINIMAL.read_text()) | changes
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


def harbor(**changes: Any) -> dict[str, Any]:
    return {"chart": "harbor", "harbor": {"externalURL": "http://h.test:30002"}} | changes


def test_the_minimal_example_is_a_site() -> None:
    found = read_site(MINIMAL)
    assert found.image_prefix == "10.55.0.1:5000"
    assert found.releases[0].key == "harbor/harbor"
    assert found.seed.serve is not None
    assert found.seed.serve.tls


def test_the_commented_keys_of_the_example_exist(tmp_path: Path) -> None:
    text = MINIMAL.read_text()
    for comment in (
        "# channel:", "# context:", "# tls:", "# service:", "# profile:", "# timeout:", "# ca: ./h"
    ):  # fmt: skip
        assert comment in text
        text = text.replace(comment, comment.removeprefix("# "))
    path = tmp_path / "site.yaml"
    path.write_text(text)
    found = read_site(path)
    assert found.channel == "stable"
    assert found.cluster.context == "admin"
    assert found.releases[0].timeout == 900
    assert found.releases[0].harbor is not None
    assert found.releases[0].harbor.ca == str(tmp_path / "harbor-ca.pem")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = site(
        tmp_path,
        cluster={"kubeconfig": "admin.conf"},
        seed={"push": {"registry": "r:5000/x", "ca": "ca.pem", "username": "u",
                       "passwordFile": "p"}},
        nodes={"containerdCertsDir": "certs.d"},
    )  # fmt: skip
    found = read_site(path)
    assert found.cluster.kubeconfig == str(tmp_path / "admin.conf")
    assert found.seed.push is not None
    assert found.seed.push.ca == str(tmp_path / "ca.pem")
    assert found.seed.push.password_file == str(tmp_path / "p")
    assert found.nodes.containerd_certs_dir == str(tmp_path / "certs.d")
    assert found.image_prefix == "r:5000/x"


SERVE = {"listen": "0.0.0.0:5000", "address": "10.0.0.5:5000"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "Bundle"}, "expected Site"),
        ({"releaes": []}, "did you mean 'releases'"),
        ({"name": "Plant 7"}, "is not a name"),
        ({"seed": {}}, "exactly one of serve and push"),
        ({"seed": {"serve": SERVE, "push": {"registry": "r:1"}}}, "exactly one"),
        ({"seed": {"serve": SERVE | {"address": "10.0.0.5"}}}, "address: not a host:port"),
        ({"seed": {"serve": SERVE | {"listen": "0.0.0.0:99999"}}}, "listen: not a host:port"),
        ({"seed": {"serve": SERVE | {"address": "http://x:5000"}}}, "not a host:port"),
        ({"seed": {"push": {"registry": "https://r:5000"}}}, "registry:"),
        ({"seed": {"push": {"registry": "r:5000/UP"}}}, "registry:"),
        ({"seed": {"push": {"registry": "r:5000", "username": "u"}}}, "belong together"),
        ({"cluster": {"kubeconfig": ""}}, "kubeconfig: it is empty"),
        ({"cluster": None}, "'cluster' is missing"),
        ({"releases": []}, "nothing to install"),
        ({"releases": [{"chart": "harbor"}]}, "the section harbor is missing"),
        ({"releases": [harbor(), harbor()]}, "is there twice"),
        ({"releases": [harbor(timeout=0)]}, "seconds, above 0"),
        ({"releases": [harbor(namespace="a/b")]}, "is not a name"),
        ({"releases": [harbor(harbor={"externalURL": "h.test"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalURL": "https://h/x"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalURL": "https://u:p@h"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalUrl": "https://h"})]}, "'externalURL'"),
    ],
)
def test_what_cannot_work_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = site(tmp_path, **changes)
    with pytest.raises(InvalidInput) as caught:
        read_site(path)
    assert words in caught.value.message + caught.value.hint
    assert caught.value.message.startswith(f"{path}:")


def test_an_ipv6_address_is_one() -> None:
    assert split_address("[fd00::5]:5000") == ("fd00::5", 5000)


def test_a_missing_file_points_to_an_example(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_site(tmp_path / "none.yaml")
    assert "installer site init" in caught.value.hint


# The larger profiles


def the_harbor(path: Path) -> tuple[Release, Harbor]:
    release = read_site(path).releases[0]
    assert release.harbor is not None
    return release, release.harbor


def chart(version: str) -> tuple[Path, ChartArchive]:
    path = CHARTS / f"harbor-{version}.tgz"
    if not path.is_file():
        pytest.skip(f"{path} is not there: set AIRGAP_SHARED to the folder with the charts")
    return path, ChartArchive.read(path.read_bytes(), path.name)


def test_the_demo_example_is_a_site() -> None:
    release, harbor = the_harbor(DEMO)
    assert release.key == "harbor/harbor"
    assert harbor.storage is not None
    assert harbor.storage.nfs is not None
    assert harbor.database is not None
    assert harbor.database.admin is not None
    assert harbor.database.ssl_mode == "verify-full"
    assert harbor.certificate is not None
    assert harbor.certificate.self_signed is not None
    assert harbor.load_balancer is not None
    assert harbor.load_balancer.haproxy.nodes


def test_the_production_example_is_a_site_that_trusts_nothing_unseen() -> None:
    release, harbor = the_harbor(PRODUCTION)
    assert harbor.expose is not None
    assert harbor.expose.type == "ingress"
    assert harbor.certificate is not None
    assert harbor.certificate.provided is not None
    assert harbor.database is not None
    assert (harbor.database.ssl_mode, harbor.database.admin) == ("verify-full", None)
    assert harbor.database.ca
    assert harbor.database.password_file
    assert harbor.redis is not None
    assert harbor.redis.tls
    assert harbor.redis.ca
    assert harbor.internal_tls is not None
    assert not harbor.redis.sentinel_master  # the charts can't do it together with TLS
    assert list(overlapping(harbor_values(harbor, "harbor"), release.values)) == []


@pytest.mark.parametrize("path", [MINIMAL, DEMO, PRODUCTION], ids=lambda path: path.stem)
def test_an_example_holds_no_secret(path: Path) -> None:
    text = path.read_text()
    for line in re.findall(r"(?im)^.*password.*$", text):
        assert re.search(r"#|passwordFile: \./", line), line
    assert max(map(len, text.splitlines())) <= 100


def uncommented(path: Path, first: str) -> str:
    """The commented-out block that begins with this line, without its marks."""
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(f"# {first}"))
    column = lines[start].index("#")
    found: list[str] = []
    for line in lines[start:]:
        if line[column : column + 2] != "# " or line[:column].strip():
            break
        if found and not re.match(r" |- ", line[column + 2 :]):
            break
        found.append(line[column + 2 :])
    return "\n".join(found)


@pytest.mark.parametrize(
    ("example", "place", "first", "remove"),
    [
        (DEMO, ("certificate",), "provided: {", "selfSigned"),
        (DEMO, ("certificate",), "selfSigned: {names", ""),
        (DEMO, ("storage",), "hostPath: {", "nfs"),
        (DEMO, ("storage",), "claim: ", "nfs"),
        (DEMO, ("storage",), "storageClass: ", "nfs"),
        (DEMO, ("storage",), "ephemeral: ", "nfs"),
        (DEMO, ("storage", "nfs"), "mountOptions: ", ""),
        (DEMO, ("expose",), "httpsPort: ", ""),
        *((DEMO, ("database",), f"{key}: ", "") for key in ("port", "name", "username")),
        (DEMO, ("database",), "passwordFile: ", ""),
        (DEMO, (), "adminPasswordFile: ", ""),
        *(
            (DEMO, ("loadBalancer", "haproxy"), f"{key}: ", "")
            for key in ("mode", "listen", "redirect", "service", "file")
        ),
        (PRODUCTION, (), "adminPasswordFile: ", ""),
        (PRODUCTION, ("expose",), "type: loadBalancer", "type ingressClass"),
        (PRODUCTION, ("expose",), "address: 10", "ingressClass"),
        (PRODUCTION, ("certificate",), "secret: ", "provided"),
        (PRODUCTION, ("storage",), "storageClass: ", "nfs"),
        (PRODUCTION, ("redis",), "username: ", ""),
        (PRODUCTION, ("redis",), "sentinelMaster: ", "tls ca"),
    ],
)
def test_what_an_example_has_in_comments_can_be_taken(
    tmp_path: Path, example: Path, place: tuple[str, ...], first: str, remove: str
) -> None:
    document = yaml.safe_load(example.read_text())
    section = document["releases"][0]["harbor"]
    block = yaml.safe_load(re.sub(r"\s#.*", "", uncommented(example, first)))
    for key in place:
        section = section[key]
    for key in remove.split():
        del section[key]
    section |= block
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(document))
    read_site(path)


def values_of(text: str, tmp_path: Path) -> dict[str, Any]:
    """Chart values of a site as a run would have them, but for images and isolation."""
    path = tmp_path / "site.yaml"
    path.write_text(text)
    release, harbor = the_harbor(path)
    secrets = msgspec.structs.replace(generate(), registry_htpasswd="u:$2a$10$x")
    filled = harbor_values(
        harbor, release.release_name, database_password="Wort-1", redis_password="Wort-2"
    )
    assert list(overlapping(merge(secrets.values(), filled), release.values)) == []
    return merge(release.values, secrets.values(), filled)


def behind_a_load_balancer() -> str:
    block = uncommented(PRODUCTION, "nginx:")
    text = PRODUCTION.read_text().replace("type: ingress\n", "type: loadBalancer\n")
    indented = "\n".join(f"      {line}" for line in block.splitlines())
    return text + indented + "\n"


@pytest.mark.parametrize("version", ["1.18.4", "1.19.1"])
@pytest.mark.parametrize("path", [MINIMAL, DEMO, PRODUCTION], ids=lambda path: path.stem)
def test_the_charts_know_every_value_but_the_budgets(
    tmp_path: Path, path: Path, version: str
) -> None:
    _, archive = chart(version)
    text = behind_a_load_balancer() if path == PRODUCTION else path.read_text()
    unknown = unknown_keys(values_of(text, tmp_path), archive.values, commented=archive.commented)
    found = {key.path.partition(".")[::2] for key in unknown}
    budgets = ("portal", "core", "jobservice", "registry", "exporter", "nginx")
    if path == PRODUCTION and version == "1.18.4":
        assert found == {(component, "podDisruptionBudget") for component in budgets}
        assert "with 1.18 take these lines out" in re.sub(r"\s+#?\s*", " ", text)
    else:
        assert not found


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    try:
        return Helm(programs.helm(4), tmp_path_factory.mktemp("helm"))
    except programs.ProgramMissing as missing:
        pytest.skip(str(missing))


def objects(rendered: str) -> dict[tuple[str, str], Any]:
    # The chart writes a tab that PyYAML refuses.
    documents = yaml.safe_load_all(rendered.replace("v1\t", "v1"))
    return {(found["kind"], found["metadata"]["name"]): found for found in documents if found}


@pytest.mark.parametrize("version", ["1.18.4", "1.19.1"])
def test_production_has_two_of_each_and_is_the_same_at_each_rendering(
    tmp_path: Path, helm: Helm, version: str
) -> None:
    packed, _ = chart(version)
    text = PRODUCTION.read_text()
    if version == "1.18.4":
        text = re.sub(r"(?m)^ +podDisruptionBudget: .*\n", "", text)
    values = values_of(text, tmp_path)
    rendered = helm.template(packed, "harbor", "harbor", values)
    assert helm.template(packed, "harbor", "harbor", values) == rendered
    found = objects(rendered)
    workloads = {name: found["Deployment", name] for kind, name in found if kind == "Deployment"}
    twice = {f"harbor-{name}" for name in ("portal", "core", "jobservice", "registry", "exporter")}
    assert set(workloads) == twice
    for workload in workloads.values():
        assert workload["spec"]["replicas"] == 2
        pod = workload["spec"]["template"]["spec"]
        assert all(container["resources"]["requests"] for container in pod["containers"])
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"]["component"]
    assert workloads["harbor-registry"]["spec"]["strategy"]["type"] == "RollingUpdate"
    # On the shared volume Trivy's pods would lock each other's cache.
    assert found["StatefulSet", "harbor-trivy"]["spec"]["replicas"] == 1
    assert not any(kind == "PersistentVolumeClaim" for kind, _ in found)
    (host,) = found["Ingress", "harbor-ingress"]["spec"]["tls"]
    assert host == {"secretName": "harbor-external-tls", "hosts": ["harbor.bank.example"]}
    core = found["ConfigMap", "harbor-core"]["data"]
    assert core["POSTGRESQL_SSLMODE"] == "verify-full"
    assert core["_REDIS_URL_CORE"].startswith("rediss://")
    budgets = {name for kind, name in found if kind == "PodDisruptionBudget"}
    assert budgets == (twice if version == "1.19.1" else set())


@pytest.mark.parametrize("version", ["1.18.4", "1.19.1"])
def test_sentinel_together_with_tls_is_still_broken_in_the_chart(
    tmp_path: Path, helm: Helm, version: str
) -> None:
    """Why both together are refused: when this fails, a chart can do it."""
    packed, _ = chart(version)
    document = yaml.safe_load(PRODUCTION.read_text())
    document["releases"][0]["values"] = {}
    sentinel = {"addresses": ["a:26379", "b:26379"], "sentinelMaster": "the-master"}
    document["releases"][0]["harbor"]["redis"] = sentinel
    values = values_of(yaml.safe_dump(document), tmp_path)

    def master(*, tls: bool) -> object:
        values["redis"]["external"]["tlsOptions"] = {"enable": tls}
        found = objects(helm.template(packed, "harbor", "harbor", values))
        config = yaml.safe_load(found["ConfigMap", "harbor-registry"]["data"]["config.yml"])
        return config["redis"].get("sentinelMasterSet")

    assert master(tls=False) == "the-master"
    assert master(tls=True) is None


def test_internal_tls_by_auto_is_another_one_at_each_rendering(tmp_path: Path, helm: Helm) -> None:
    """Why the section makes Secrets: when this fails, a chart keeps its certificates."""
    packed, _ = chart("1.19.1")
    values = values_of(PRODUCTION.read_text(), tmp_path)
    rendered = helm.template(packed, "harbor", "harbor", values)
    mounted = set(re.findall(r"secretName: \W?(harbor-internal-\w+-tls)\b", rendered))
    assert mounted == {f"harbor-internal-{name}-tls" for name in INTERNAL}
    values["internalTLS"]["certSource"] = "auto"
    rendered = helm.template(packed, "harbor", "harbor", values)
    assert helm.template(packed, "harbor", "harbor", values) != rendered


def test_behind_a_load_balancer_there_are_two_of_nginx(tmp_path: Path, helm: Helm) -> None:
    packed, _ = chart("1.19.1")
    values = values_of(behind_a_load_balancer(), tmp_path)
    found = objects(helm.template(packed, "harbor", "harbor", values))
    assert found["Deployment", "harbor-nginx"]["spec"]["replicas"] == 2
    assert ("PodDisruptionBudget", "harbor-nginx") in found
    assert found["Service", "harbor"]["spec"]["type"] == "LoadBalancer"
