"""``installer preflight`` on a real cluster: all is well, all problems at once, and a real pull.

The tests of this module are one story. What would be changed is asked of the cluster itself.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.site.network import NODE_IP
from tests.site.story import Story, connects, told

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from tests.site.cluster import Cluster
    from tests.site.connected import Connected, Made
    from tests.site.network import Outbound

pytestmark = pytest.mark.site

PORT = 30052
SEED = f"{NODE_IP}:5000"
NAME = "kubernetes.default.svc.cluster.local"
"""A name that pods find without asking anybody outside."""
PLENTY = 15.0
"""Seconds that a preflight may take while others use the machine; alone it takes three."""
CLAIMS = {
    "enabled": True,
    "persistentVolumeClaim": {"registry": {"storageClass": "fast"}},
}


@pytest.fixture(scope="module")
def story(
    cluster: Cluster,
    before: Outbound,
    connected: Connected,
    bundles: Mapping[str, Made],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("preflight")
    with told(Story(cluster, folder, before, namespace="preflight", port=PORT)) as story:
        story.carry("old", bundles["old"].path, connected.public_key)
        yield story


def preflight(story: Story, *more: str, **release: Any) -> subprocess.CompletedProcess[str]:
    argv = story.argv("old", *more, **release)
    argv[1] = "preflight"
    return story.cluster.run(argv, check=False)


def checked(story: Story, *more: str, code: int = 0, **release: Any) -> dict[str, dict[str, Any]]:
    done = preflight(story, "--output=json", *more, **release)
    assert done.returncode == code, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["seconds"] < PLENTY or more
    return {check["name"]: check for check in document["checks"]}


def objects(story: Story) -> str:
    kinds = "namespaces,services,secrets,configmaps,pods,persistentvolumeclaims,events"
    return story.cluster.kubectl("get", kinds, "--all-namespaces", "--output=name")


@contextmanager
def blocked(story: Story) -> Iterator[None]:
    """Let a Service of somebody else have the node port."""
    name = "service/preflight-blocker"
    story.cluster.kubectl(
        "create", "service", "nodeport", name.partition("/")[2], "--tcp=80", f"--node-port={PORT}"
    )
    try:
        yield
    finally:
        story.cluster.kubectl("delete", name)


def test_all_is_well_on_a_site_without_anything(story: Story) -> None:
    before = objects(story)
    checks = checked(story)
    found = {name: check["state"] for name, check in checks.items()}
    # What the example has chosen: plain HTTP.
    assert found.pop("insecure settings") == "warning"
    assert set(found.values()) == {"ok"}, checks
    assert {"nodes", "rights", "capacity", "disk", "storage", "clocks", "node ports"} <= set(found)
    assert checks["rights"]["text"].startswith("admin may ")
    assert f"{PORT} free" in checks["node ports"]["text"]
    assert "1 node within" in checks["clocks"]["text"]
    assert "not asked" in checks["nodes can pull"]["text"]
    assert objects(story) == before
    assert not story.state.exists()
    done = preflight(story)
    assert done.returncode == 0, done.stderr
    assert "0 failed, 1 warnings\nnothing was changed\n" in done.stdout


def test_several_problems_are_told_at_one_visit(story: Story) -> None:
    wrong = {"core": {"resources": {"requests": {"cpu": 1000}}}, "persistence": CLAIMS}
    with blocked(story):
        checks = checked(story, code=5, values=wrong)
        done = story.run("old", values=wrong)
    failed = {name for name, check in checks.items() if check["state"] == "failed"}
    assert failed == {"capacity", "storage", "node ports"}
    assert "harbor-core (cpu 1000)" in checks["capacity"]["text"]
    assert "no StorageClass 'fast'" in checks["storage"]["text"]
    assert f"{PORT} belongs to Service default/preflight-blocker" in checks["node ports"]["text"]
    assert done.returncode == 5, done.stderr
    assert "error: 3 checks failed:" in done.stderr
    for check in failed:
        assert f"  {check}: {checks[check]['text']}" in done.stderr
    assert not story.state.exists()


def test_claims_of_a_release_whose_secrets_are_lost(story: Story) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "database-data-harbor-database-0", "namespace": story.namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    story.cluster.kubectl("create", "namespace", story.namespace)
    story.cluster.kubectl("create", "--filename=-", stdin=json.dumps(claim))
    story.cluster.kubectl("create", "configmap", "harbor-core", f"--namespace={story.namespace}")
    checks = checked(story, code=5, values={"persistence": {"enabled": True}})
    place = f"{story.namespace}/database-data-harbor-database-0"
    assert place in checks["leftovers"]["text"]
    assert "secrets are not here" in checks["leftovers"]["text"]
    strange = "ConfigMap harbor-core in preflight (release: nobody)"
    assert checks["objects in the way"]["text"] == strange
    story.cluster.kubectl("delete", "namespace", story.namespace)


def test_an_account_with_few_rights(story: Story) -> None:
    kubectl = story.cluster.kubectl
    kubectl("create", "namespace", story.namespace)
    kubectl("create", "serviceaccount", "ops", f"--namespace={story.namespace}")
    account = f"--serviceaccount={story.namespace}:ops"
    kubectl("create", "rolebinding", "ops", "--clusterrole=edit", account,
            f"--namespace={story.namespace}")  # fmt: skip
    kubectl("create", "clusterrole", "preflight-nodes", "--verb=list", "--resource=nodes")
    kubectl("create", "clusterrolebinding", "preflight-nodes", "--clusterrole=preflight-nodes",
            account)  # fmt: skip
    token = kubectl("create", "token", "ops", f"--namespace={story.namespace}").strip()
    try:
        given = json.loads(kubectl("config", "view", "--raw", "--output=json"))
        given["users"][0]["user"] = {"token": token}
        config = story.folder / "ops.conf"
        config.write_text(json.dumps(given))
        argv = story.argv("old", "--output=json")
        argv[1] = "preflight"
        site = story.folder / "site.yaml"
        site.write_text(site.read_text().replace(str(story.cluster.kubeconfig), str(config)))
        done = story.cluster.run(argv, check=False)
        assert done.returncode == 5, done.stderr
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert checks["rights"]["text"] == (
            "system:serviceaccount:preflight:ops may not create namespaces"
        )
        assert checks["capacity"]["state"] == "warning"
        assert "pods is forbidden" in checks["capacity"]["text"]
        assert token not in done.stdout + done.stderr
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", "preflight-nodes")
        kubectl("delete", "namespace", story.namespace)


def test_a_node_that_cannot_pull_and_one_that_can(story: Story) -> None:
    checks = checked(story, "--pull", code=5)
    assert checks["nodes can pull"]["state"] == "failed"
    assert "node1: ErrImagePull: " in checks["nodes can pull"]["text"]
    assert "is the seed registry served" in checks["nodes can pull"]["hint"]
    assert not any(name.startswith("DNS in the cluster") for name in checks)  # it is an address
    # As after a run that got as far as the seed registry.
    story.cluster.spawn("preflight-seed", serving(story))
    hosts = story.cluster.certs_dir / SEED
    hosts.mkdir()
    (hosts / "hosts.toml").write_text(f'server = "http://{SEED}"\n[host."http://{SEED}"]\n')
    try:
        deadline = time.monotonic() + 30
        while connects(story.cluster, SEED):
            assert time.monotonic() < deadline, story.cluster.log("preflight-seed").read_text()
        argv = story.argv("old", "--pull", "--output=json")
        argv[1] = "preflight"
        site = story.folder / "site.yaml"
        site.write_text(site.read_text().replace(f"http://{NODE_IP}:", f"http://{NAME}:"))
        done = story.cluster.run([*known(story), *argv], check=False)
    finally:
        story.cluster.stop("preflight-seed")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["nodes can pull"]["state"] == "ok", checks
    assert checks["nodes can pull"]["text"].startswith(f"1 node pulled {SEED}/")
    assert checks[f"DNS in the cluster {NAME}"]["text"] == f"pods find {NAME}"
    assert checks[f"DNS {story.namespace}/harbor"]["text"] == f"{NAME} is {NODE_IP}"
    assert "harbor-airgap-preflight" not in story.cluster.kubectl("get", "namespaces")


def known(story: Story) -> list[str]:
    """Command prefix that lets one process find NAME in /etc/hosts, in mounts of its own."""
    hosts = story.folder / "hosts"
    hosts.write_text(f"{NODE_IP} {NAME}\n")
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    private = ["unshare", "--mount", "--propagation=private"]
    return [*private, "/bin/sh", "-c", script, str(hosts)]


def serving(story: Story) -> list[str]:
    argv = story.argv("old")
    return [argv[0], "serve", argv[2], argv[3], f"--listen={SEED}", "--plain-http"]


def test_nothing_tried_to_leave(story: Story, tell: Callable[[str], None]) -> None:
    tell(story.check_silence())
