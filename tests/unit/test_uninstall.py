"""Taking a site away: real bundle, state, files, processes and terminal; the cluster is scripts."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from installer.deploy import daemon, systemd
from installer.deploy import local_removal as module
from installer.deploy.haproxy import InstallHAProxy
from installer.deploy.local_removal import ForgetHost, RestoreHAProxy, StopSeed
from installer.deploy.nodes import hosts_toml
from installer.errors import DeploymentFailed, PreflightFailed
from installer.oci.platforms import own_platform
from installer.site.harbor import Certificate, HAProxy, Harbor, LoadBalancer, SelfSigned
from installer.site.model import Cluster, Seed, Serve, Site
from installer.site.state import State
from tests.bundles import make_bundle
from tests.upstream.images import Content, artefact

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(own_platform() != "linux/amd64", reason="test tools are amd64's")

HELM = """#!/bin/sh
# A cluster's releases are files NAMESPACE/NAME of a folder.
cd %s || exit 9
echo "helm $*" >> calls
case "$1" in
version) echo v4.1.0 ;;
list)
    printf '['; sep=
    for f in releases/"$3"/*; do
        [ -e "$f" ] || continue
        printf '%%s{"name":"%%s","namespace":"%%s","status":"deployed"}' "$sep" "${f##*/}" "$3"
        sep=,
    done
    echo ']' ;;
uninstall)
    [ ! -e refuses ] || { echo "no rights" >&2; exit 1; }
    [ ! -e slow ] || { touch waiting; while [ -e slow ]; do sleep 0.1; done; exit 1; }
    rm -f releases/"$4"/"$2"
    echo '{"items":[]}' > pods.json ;;
*) echo "helm $1?" >&2; exit 9 ;;
esac
"""
KUBECTL = """#!/bin/sh
# Its objects are lists in files by kind.
cd %s || exit 9
while [ "${1#--}" != "$1" ]; do shift; done
echo "kubectl $*" >> calls
[ ! -e away ] || { echo "connection refused" >&2; exit 1; }
case "$1" in
version) echo '{"serverVersion":{"gitVersion":"v1.34.4"}}' ;;
get)
    case "$*" in *--output=name*) cat names 2>/dev/null || true; exit 0 ;; esac
    cat "$2.json" 2>/dev/null || echo '{"items":[]}' ;;
delete)
    [ ! -e stuck ] || { echo "is stuck" >&2; exit 1; }
    case "$2" in
    */*) rm -f jobs.json deployments,statefulsets,daemonsets.json pods.json ;;
    persistentvolumeclaims)
        echo '{"items":[]}' > "$2.json"
        [ ! -e provisioner ] || {
            (sleep 1; echo "deleted by the provisioner" >> calls
             echo '{"items":[]}' > persistentvolumes.json) > /dev/null 2>&1 &
        } ;;
    *) echo '{"items":[]}' > "$2.json" ;;
    esac ;;
*) echo "kubectl $1?" >&2; exit 9 ;;
esac
"""
COMPANION = {"app.kubernetes.io/instance": "harbor-companion"}
OLDER = {"heritage": "Helm", "release": "harbor"}
INSTALLER = str(Path(sys.executable).with_name("installer"))


def tool(content: str) -> Any:
    data = Content("application/x", content.encode())
    return artefact(Content("application/json", b"{}"), [data])


class World:
    """A site of two releases, Harbor and another, on a cluster of scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = folder / "cluster"
        self.state = folder / "state"
        self.certs = folder / "certs.d"
        self.certs.mkdir()
        self.state.mkdir()
        for name in ("harbor/harbor", "harbor/harbor-companion", "issuer/issuer"):
            path = self.cluster / "releases" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        tools = {"helm": tool(HELM % self.cluster), "kubectl": tool(KUBECTL % self.cluster)}
        _, pem = make_bundle(folder / "b.tar", {}, tools=tools)
        (folder / "release.pub").write_bytes(pem)
        (folder / "kubeconfig").touch()
        self.site(storage={"nfs": {"server": "10.0.0.9", "path": "/srv/harbor"}})

    def site(self, **harbor: Any) -> None:
        document = {
            "apiVersion": "site/v1",
            "kind": "Site",
            "name": "plant",
            "cluster": {"kubeconfig": "./kubeconfig"},
            "seed": {"serve": {"listen": "127.0.0.1:5000", "address": "10.0.0.5:5000"}},
            "nodes": {"containerdCertsDir": str(self.certs)},
            "releases": [
                {"chart": "issuer"},
                {"chart": "harbor", "harbor": {"externalURL": "https://h.test"} | harbor},
            ],
        }
        (self.folder / "site.yaml").write_text(yaml.safe_dump(document))

    def argv(self, *more: str) -> list[str]:
        return [
            INSTALLER, "uninstall", str(self.folder / "b.tar"),
            f"--key={self.folder / 'release.pub'}", f"--site={self.folder / 'site.yaml'}",
            f"--state={self.state}", *more,
        ]  # fmt: skip

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*more), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    def json(self, *more: str) -> dict[str, Any]:
        done = self.run("--yes", "--output=json", *more)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def releases(self) -> set[str]:
        top = self.cluster / "releases"
        return {str(path.relative_to(top)) for path in top.glob("*/*")}

    def calls(self, *words: str) -> list[str]:
        lines = (self.cluster / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(words)]

    def objects(self, kind: str, *items: dict[str, Any]) -> None:
        (self.cluster / f"{kind}.json").write_text(json.dumps({"items": items}))

    def listed(self, kind: str) -> list[str]:
        items = json.loads((self.cluster / f"{kind}.json").read_text())["items"]
        return [item["metadata"]["name"] for item in items]

    def data(self) -> None:
        """Put claims and volumes there: ours, and others that look like them."""
        self.objects(
            "persistentvolumeclaims",
            thing("harbor-data", COMPANION, storageClassName=""),
            thing("data-harbor-redis-0", OLDER, storageClassName="fast"),
            thing("theirs", {"app.kubernetes.io/instance": "gitea"}),
        )
        self.objects(
            "persistentvolumes",
            volume("plant-harbor-harbor", "harbor"),
            volume("other-site", "elsewhere"),
        )


def thing(name: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def volume(name: str, namespace: str, phase: str = "Bound") -> dict[str, Any]:
    nfs = {"server": "10.0.0.9", "path": "/srv/harbor"}
    made = thing(name, COMPANION, nfs=nfs, claimRef={"namespace": namespace, "name": "harbor-data"})
    return made | {"status": {"phase": phase}}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


ALL = [
    "uninstall:harbor/harbor", "uninstall:harbor/harbor-companion", "uninstall:issuer/issuer",
]  # fmt: skip


def test_releases_go_in_reverse_order_and_once(world: World) -> None:
    told = world.json()
    assert [name for name in told["changed"] if name != "tools"] == ALL
    assert world.releases() == set()
    assert [line.split()[2] for line in world.calls("helm uninstall")] == [
        "harbor", "harbor-companion", "issuer",
    ]  # fmt: skip
    again = world.json()
    assert again["changed"] == []
    assert len(world.calls("helm uninstall")) == 3
    steps = [json.loads(line) for line in (world.state / "journal.jsonl").read_text().splitlines()]
    assert ("done", ALL[1]) in [(line["event"], line.get("step")) for line in steps]
    assert steps[0]["event"] == "uninstall"


def test_without_a_terminal_it_shows_and_changes_nothing(world: World) -> None:
    world.data()
    before = sorted(world.state.rglob("*"))
    done = world.run("--delete-data")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "to do    Uninstall the release harbor/harbor-companion" in done.stderr
    assert "goes     claim harbor/harbor-data\n" in done.stderr
    assert "goes     claim harbor/data-harbor-redis-0; its content too, if storage class fast" in (
        done.stderr
    )
    assert "goes     volume plant-harbor-harbor; its content, 10.0.0.9:/srv/harbor, is not" in (
        done.stderr
    )
    assert f"stays    state {world.state}: the secrets are in it" in done.stderr
    assert "hint: look at what would be done, then add --yes" in done.stderr
    assert len(world.releases()) == 3
    assert world.calls("helm uninstall", "kubectl delete") == []
    assert sorted(world.state.rglob("*")) == before


def typed(world: World, *answers: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run it on a terminal of its own and type; its exit code and all that was shown."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        world.argv(*more), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
        process.wait(60)
    os.close(ours)
    return process.returncode, shown.decode()


def test_on_a_terminal_the_sites_name_has_to_be_typed(world: World) -> None:
    for wrong in ("y", "yes", "", "plants"):
        code, shown = typed(world, wrong)
        assert code == 2, shown
        assert "nothing was changed" in shown
    assert len(world.releases()) == 3
    code, shown = typed(world, "plant")
    assert code == 0, shown
    assert "what remains of site plant" in shown
    assert world.releases() == set()


def test_deleting_data_is_asked_for_separately(world: World) -> None:
    world.data()
    code, shown = typed(world, "plant", "plant", more=("--delete-data",))
    assert code == 2
    assert "Type `delete data`" in shown
    assert len(world.releases()) == 3
    assert world.calls("kubectl delete") == []
    code, shown = typed(world, "plant", "delete data", more=("--delete-data",))
    assert code == 0, shown
    assert world.listed("persistentvolumeclaims") == []


def test_data_is_kept_unless_told(world: World) -> None:
    world.data()
    told = world.json()
    assert world.calls("kubectl delete") == []
    remains = {(row["what"], row["where"]): row["note"] for row in told["remains"]}
    assert ("claim", "harbor/harbor-data") in remains
    assert ("claim", "harbor/theirs") not in remains
    assert remains["volume", "plant-harbor-harbor"].startswith("content: 10.0.0.9:/srv/harbor;")
    assert ("volume", "other-site") not in remains
    assert "not touched" in remains["stored data", "10.0.0.9:/srv/harbor"]


def test_only_claims_and_volumes_of_the_release_are_deleted(world: World) -> None:
    world.data()
    told = world.json("--delete-data")
    assert told["changed"].index("uninstall:data:harbor/harbor") > told["changed"].index(ALL[1])
    claims, volumes = world.calls("kubectl delete")
    assert claims.split()[2:5] == ["persistentvolumeclaims", "harbor-data", "data-harbor-redis-0"]
    assert "--namespace=harbor" in claims
    assert "theirs" not in claims
    assert volumes.split()[2:4] == ["persistentvolumes", "plant-harbor-harbor"]
    assert "other-site" not in volumes
    note = told["notes"]["uninstall:data:harbor/harbor"]
    assert note == "the content of 10.0.0.9:/srv/harbor is not touched"


def test_a_provisioner_has_deleted_its_volumes_before_its_release_goes(world: World) -> None:
    world.objects("persistentvolumeclaims", thing("harbor-registry", OLDER, storageClassName="nfs"))
    claimed = {"namespace": "harbor", "name": "harbor-registry"}
    theirs = thing("pvc-1", {}, claimRef=claimed, persistentVolumeReclaimPolicy="Delete")
    kept = thing("pvc-2", {}, claimRef=claimed | {"name": "x"})
    world.objects("persistentvolumes", theirs, kept)
    (world.cluster / "provisioner").touch()
    world.json("--delete-data")
    calls = (world.cluster / "calls").read_text().splitlines()
    deleted = calls.index("deleted by the provisioner")
    helm = [at for at, call in enumerate(calls) if call.startswith("helm uninstall")]
    assert helm[0] < helm[1] < deleted < helm[2], calls
    assert "issuer" in calls[helm[2]]


def test_a_claim_that_was_there_before_is_not_deleted(world: World) -> None:
    world.site(storage={"claim": "harbor-data"})
    world.data()
    told = world.json("--delete-data")
    assert world.calls("kubectl delete")[0].split()[2:4] == [
        "persistentvolumeclaims", "data-harbor-redis-0",
    ]  # fmt: skip
    (row,) = [row for row in told["remains"] if row["what"] == "stored data"]
    assert row["where"] == "claim harbor/harbor-data"


def test_nodes_that_were_told_by_hand_are_named(world: World) -> None:
    document = yaml.safe_load((world.folder / "site.yaml").read_text())
    del document["nodes"]
    (world.folder / "site.yaml").write_text(yaml.safe_dump(document))
    laid_out = world.state / "nodes" / "10.0.0.5:5000"
    laid_out.mkdir(parents=True)
    (laid_out / "hosts.toml").write_text(hosts_toml(laid_out.name, tls=True, ca=True))
    told = world.json()
    # Else the next run would think that the nodes have it.
    assert not laid_out.exists()
    (row,) = [row for row in told["remains"] if row["what"] == "nodes"]
    assert row["note"] == "delete what was copied there: h.test, 10.0.0.5:5000"


def test_another_channel_is_refused(world: World) -> None:
    (world.state / "serials.json").write_text(json.dumps({"channel": "edge", "highest": {}}))
    assert world.run("--yes").returncode == 3
    assert len(world.releases()) == 3


def test_an_older_bundle_will_do(world: World) -> None:
    seen = {"channel": "stable", "highest": {"stable": 9}}
    (world.state / "serials.json").write_text(json.dumps(seen))
    assert world.json()["changed"] == ["tools", *ALL]
    assert json.loads((world.state / "serials.json").read_text()) == seen


def test_a_volume_whose_claim_is_gone_says_how_it_is_bound_again(world: World) -> None:
    world.objects("persistentvolumes", volume("plant-harbor-harbor", "harbor", "Released"))
    (row,) = [row for row in world.json()["remains"] if row["what"] == "volume"]
    assert "kubectl patch pv plant-harbor-harbor --type=json" in row["note"]


def test_the_database_is_named_with_the_sql_that_drops_it(world: World) -> None:
    (world.folder / "password").write_text("x")
    names = {"name": 'reg"istry', "username": "role"}
    world.site(database={"host": "db.test", "passwordFile": "./password"} | names)
    (row,) = [row for row in world.json()["remains"] if row["what"] == "database"]
    assert row["where"] == 'reg"istry at db.test:5432'
    assert row["note"].endswith('DROP DATABASE "reg""istry"; DROP ROLE "role";')


def test_a_cluster_that_is_away_changes_nothing(world: World) -> None:
    (world.cluster / "away").touch()
    for more in ((), ("--yes",)):
        done = world.run(*more)
        assert done.returncode == 5, done.stderr
        assert "the cluster can't be reached" in done.stderr
        assert "connection refused" in done.stderr
    assert list(world.state.iterdir()) == []
    assert len(world.releases()) == 3


def test_a_site_that_was_installed_from_elsewhere_is_refused(world: World) -> None:
    world.state.rmdir()
    done = world.run("--yes")
    assert done.returncode == 5
    assert "was not installed from here" in done.stderr
    assert not world.state.exists()


def test_a_release_that_site_yaml_lacks_is_named(world: World) -> None:
    done = world.run("--yes", "--release=harbor/habor")
    assert done.returncode == 2
    assert "--release harbor/habor" in done.stderr
    assert "issuer/issuer, harbor/harbor" in done.stderr
    assert len(world.releases()) == 3


def serving(world: World) -> daemon.Process:
    """Something in the background that the state knows as the seed registry."""
    (world.state / "seed").mkdir(exist_ok=True)
    folder = world.state / "seed"
    return daemon.start(["/bin/sleep", "60"], folder / "serve.log", folder / "serve.pid")


def test_the_seed_stays_while_a_release_pulls_from_it(world: World) -> None:
    pid_file = world.state / "seed" / "serve.pid"
    host = world.certs / "10.0.0.5:5000"
    host.mkdir()
    (host / "hosts.toml").write_text(hosts_toml(host.name, tls=True, ca=True))
    (host / "ca.crt").write_text("CA")
    serving(world)
    try:
        told = world.json("--release=harbor/harbor")
        assert world.releases() == {"issuer/issuer"}
        (row,) = [row for row in told["remains"] if row["what"] == "seed registry"]
        assert row["note"] == "stays: issuer/issuer pull from it"
        assert daemon.running(pid_file) is not None
        assert host.exists()
        told = world.json("--release=issuer/issuer")
        assert told["changed"][-2:] == ["uninstall:nodes:10.0.0.5:5000", "uninstall:seed"]
        assert daemon.running(pid_file) is None
        assert not host.exists()
    finally:
        daemon.stop(pid_file)


def test_a_release_that_left_site_yaml_keeps_the_seed(world: World) -> None:
    left = world.cluster / "releases" / "old" / "once"
    left.parent.mkdir()
    left.touch()
    (world.state / "releases.json").write_text(json.dumps({"charts": {"old/once": "0" * 64}}))
    process = serving(world)
    try:
        (row,) = [row for row in world.json()["remains"] if row["what"] == "seed registry"]
        assert "old/once" in row["note"]
        assert daemon.running(world.state / "seed" / "serve.pid") == process
        left.unlink()
        assert world.json()["changed"] == ["uninstall:seed"]
    finally:
        daemon.stop(world.state / "seed" / "serve.pid")


def test_jobs_that_hooks_left_go_and_others_stay(world: World) -> None:
    world.objects("jobs", thing("harbor-companion-folders", COMPANION), thing("backup", {}))
    world.objects("pods", thing("mine", {}))
    told = world.json()
    assert ALL[1] in told["changed"]
    (line,) = world.calls("kubectl delete")
    assert line.split()[2:4] == ["job/harbor-companion-folders", "--namespace=harbor"]


def test_harbors_pods_end_while_its_services_are_there(world: World) -> None:
    marks = {"meta.helm.sh/release-name": "harbor"}
    mine, other = thing("harbor-core", OLDER), thing("gitea", OLDER)
    mine["metadata"]["annotations"] = marks
    mine["kind"] = other["kind"] = "Deployment"
    world.objects("deployments,statefulsets,daemonsets", mine, other)
    world.objects("pods", thing("harbor-core-0", OLDER) | {"status": {"phase": "Running"}})
    state = {"charts": {"harbor/harbor": "0" * 64, "issuer/issuer": "1" * 64}}
    (world.state / "releases.json").write_text(json.dumps(state))
    (world.cluster / "stuck").touch()
    assert world.run("--yes").returncode == 7
    assert world.calls("helm uninstall") == []
    # A run that comes now brings it back: the release isn't what the state knows of any more.
    left = json.loads((world.state / "releases.json").read_text())["charts"]
    assert left == {"issuer/issuer": "1" * 64}
    (world.cluster / "stuck").unlink()
    assert world.json()["changed"] == ALL
    lines = world.calls("kubectl delete", "helm uninstall")
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["kubectl", "delete", "deployment/harbor-core"], ["helm", "uninstall", "harbor"],
    ]  # fmt: skip
    assert "gitea" not in "".join(lines)


def test_a_release_is_gone_only_when_its_pods_are(world: World) -> None:
    world.objects("pods", thing("harbor-core-0", OLDER) | {"status": {"phase": "Running"}})
    (world.cluster / "releases" / "harbor" / "harbor").unlink()
    document = yaml.safe_load((world.folder / "site.yaml").read_text())
    document["releases"][1]["timeout"] = 1
    (world.folder / "site.yaml").write_text(yaml.safe_dump(document))
    done = world.run("--yes")
    assert done.returncode == 7
    assert "pods of harbor/harbor do not end: harbor-core-0" in done.stderr
    world.objects("pods", thing("harbor-core-0", OLDER) | {"status": {"phase": "Succeeded"}})
    assert ALL[0] not in world.json()["changed"]


def test_what_helm_refuses_is_told_and_the_next_try_goes_on(world: World) -> None:
    (world.cluster / "refuses").touch()
    done = world.run("--yes")
    assert done.returncode == 7
    assert "no rights" in done.stderr
    (world.cluster / "refuses").unlink()
    assert world.json()["changed"] == ALL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_it_the_next_one_finishes(world: World, number: signal.Signals) -> None:
    (world.cluster / "slow").touch()
    waiting = world.cluster / "waiting"
    with subprocess.Popen(world.argv("--yes"), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 30
        while not waiting.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        if number != signal.SIGKILL:
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 130
            assert "run the same command again" in errors
    (world.cluster / "slow").unlink()
    assert len(world.releases()) == 3
    assert world.json()["changed"] == ALL
    assert world.releases() == set()


# Files and services of this machine


def test_only_folders_that_the_installer_wrote_are_removed(tmp_path: Path) -> None:
    step = ForgetHost(tmp_path, "h.test", here=True)
    assert step.check()
    folder = tmp_path / "h.test"
    folder.mkdir()
    (folder / "hosts.toml").write_text('server = "https://mirror"\n')
    assert step.check()
    (folder / "hosts.toml").write_text(hosts_toml("h.test", tls=True, ca=True))
    (folder / "ca.crt").write_text("CA")
    (folder / "client.cert").write_text("theirs")
    assert not step.check()
    assert step.apply() == ""
    assert [path.name for path in folder.iterdir()] == ["client.cert"]
    assert step.check()


def test_what_was_laid_out_for_copying_is_named(tmp_path: Path) -> None:
    step = ForgetHost(tmp_path, "h.test", here=False)
    (tmp_path / "h.test").mkdir()
    assert not step.check()
    assert "/etc/containerd/certs.d/h.test on each node" in step.apply()
    assert not (tmp_path / "h.test").exists()


class Systemctl:
    """In place of systemctl: this machine's systemd is not for tests."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.refused: str = ""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments)
        refused = arguments[0] == self.refused
        return subprocess.CompletedProcess(arguments, int(refused), "", "no" if refused else "")


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Systemctl:
    made = Systemctl()
    monkeypatch.setattr(systemd, "_systemctl", made)
    monkeypatch.setattr(systemd, "is_there", lambda: True)
    monkeypatch.setattr(module, "_UNITS", tmp_path)
    return made


def seed(tmp_path: Path) -> StopSeed:
    serve = Serve("127.0.0.1:1", "127.0.0.1:1")
    site = Site("site/v1", "Site", "plant", Cluster("k"), Seed(serve=serve), ())
    return StopSeed(site, State(tmp_path / "state"))


def test_the_seeds_unit_is_stopped_and_removed(tmp_path: Path, systemctl: Systemctl) -> None:
    step, unit = seed(tmp_path), tmp_path / "harbor-airgap-plant.service"
    assert step.check()
    unit.write_text("[Unit]\n")
    assert not step.check()
    systemctl.refused = "disable"
    with pytest.raises(DeploymentFailed, match="disable --now harbor-airgap-plant"):
        step.apply()
    assert unit.exists()
    systemctl.refused = ""
    step.apply()
    assert step.check()
    assert systemctl.calls[1:] == [("disable", "--now", unit.name), ("daemon-reload",)]


def test_a_unit_that_may_not_be_stopped_is_refused_before(
    tmp_path: Path, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "is_there", lambda: False)
    seed(tmp_path).preflight()
    (tmp_path / "harbor-airgap-plant.service").touch()
    with pytest.raises(PreflightFailed, match="not root"):
        seed(tmp_path).preflight()
    assert systemctl.calls == []


THEIRS = b"# what was there\ndefaults\n    mode http\n    timeout connect 1s\n"


@pytest.fixture
def balancers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[InstallHAProxy, RestoreHAProxy]]:
    """Give the step that installs HAProxy's files and the one that takes them back."""
    # Whether HAProxy likes a configuration is asked of the real one in the integration tests.
    monkeypatch.setattr(module, "_program", lambda: None)

    def make(*, service: bool = True) -> tuple[InstallHAProxy, RestoreHAProxy]:
        section = HAProxy(("10.0.0.1",), file=str(tmp_path / "haproxy.cfg"), service=service)
        harbor = Harbor(
            "https://h.test",
            certificate=Certificate(self_signed=SelfSigned()),
            load_balancer=LoadBalancer(section),
        )
        written = Harbor(
            "https://h.test",
            certificate=harbor.certificate,
            load_balancer=LoadBalancer(
                HAProxy(("10.0.0.1",), file=str(tmp_path / "haproxy.cfg"), service=False)
            ),
        )
        install = InstallHAProxy(written, "ns/h", lambda: b"PEM")
        monkeypatch.setattr(install, "_try_out", lambda *_: [])
        return install, RestoreHAProxy(harbor, "ns/h")

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_haproxy_gets_back_what_it_had(
    tmp_path: Path, balancers: Callable[..., Any], systemctl: Systemctl
) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_bytes(THEIRS)
    file.chmod(0o640)
    install, restore = balancers()
    install.apply()
    assert not restore.check()
    restore.preflight()
    assert list(restore.remains()) == []
    restore.apply()
    assert restore.check()
    assert contents(tmp_path) == {"haproxy.cfg": THEIRS}
    assert file.stat().st_mode & 0o777 == 0o640
    assert systemctl.calls == [("reload-or-restart", "haproxy")]


@pytest.mark.parametrize("point", ["written", "reloaded"])
def test_an_interrupted_restore_is_finished(
    tmp_path: Path, balancers: Callable[..., Any], systemctl: Systemctl, point: str
) -> None:
    (tmp_path / "haproxy.cfg").write_bytes(THEIRS)
    install, restore = balancers()
    install.apply()
    (tmp_path / "haproxy.cfg").write_bytes(THEIRS)
    (tmp_path / ".haproxy.cfg.before-harbor-airgap.pending").touch()
    if point == "reloaded":
        (tmp_path / "harbor-ns-h.pem").unlink()
        (tmp_path / "haproxy.cfg.before-harbor-airgap").unlink()
    assert not restore.check()
    restore.apply()
    assert contents(tmp_path) == {"haproxy.cfg": THEIRS}
    assert systemctl.calls == [("reload-or-restart", "haproxy")]


def test_when_haproxy_refuses_ours_is_there_again(
    tmp_path: Path, balancers: Callable[..., Any], systemctl: Systemctl
) -> None:
    (tmp_path / "haproxy.cfg").write_bytes(THEIRS)
    install, restore = balancers()
    install.apply()
    before = contents(tmp_path)
    systemctl.refused = "reload-or-restart"
    with pytest.raises(DeploymentFailed, match="does not start with its configuration of before"):
        restore.apply()
    assert contents(tmp_path) == before


def test_a_configuration_of_before_that_is_bad_does_not_come_back(
    tmp_path: Path,
    balancers: Callable[..., Any],
    systemctl: Systemctl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "bin" / "haproxy"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/site.pem ] || {{ echo "no $3" >&2; exit 1; }}\n'
    )
    program.chmod(0o700)
    monkeypatch.setattr(module, "_program", lambda: program)
    (tmp_path / "haproxy.cfg").write_bytes(THEIRS)
    install, restore = balancers()
    install.apply()
    before = contents(tmp_path)
    with pytest.raises(DeploymentFailed, match=r"(?s)of before, .*no .*before-harbor-airgap"):
        restore.apply()
    assert contents(tmp_path) == before
    assert systemctl.calls == []
    (tmp_path / "site.pem").touch()
    restore.apply()
    assert restore.check()


def test_without_a_kept_one_or_a_service_haproxys_files_are_only_listed(
    tmp_path: Path, balancers: Callable[..., Any], systemctl: Systemctl
) -> None:
    install, restore = balancers()
    install.apply()
    (tmp_path / "haproxy.cfg.before-harbor-airgap").write_bytes(THEIRS)
    _, elsewhere = balancers(service=False)
    assert elsewhere.check()
    assert [Path(row.where).name for row in elsewhere.remains()] == [
        "haproxy.cfg", "harbor-ns-h.pem", "haproxy.cfg.before-harbor-airgap",
    ]  # fmt: skip
    (tmp_path / "haproxy.cfg.before-harbor-airgap").unlink()
    assert restore.check()
    assert [Path(row.where).name for row in restore.remains()] == ["haproxy.cfg", "harbor-ns-h.pem"]
    assert systemctl.calls == []


def test_haproxy_is_refused_before_where_systemd_is_not_ours(
    tmp_path: Path, balancers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "is_there", lambda: False)
    (tmp_path / "haproxy.cfg").write_bytes(THEIRS)
    install, restore = balancers()
    restore.preflight()
    install.apply()
    with pytest.raises(PreflightFailed, match="not root"):
        restore.preflight()
