"""``installer preflight`` as a process: all problems at one visit, warnings also of a run.

The API server answers only what no run can do without; the rest is forbidden ground here, as it is
for an account with few rights. A real cluster is in tests/site.
"""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_run_process import ApiServer, Carried, push_to
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

SEED = push_to("127.0.0.1:1")


@pytest.fixture
def carried(tmp_path: Path, helm: Path, kubectl: Path) -> Carried:
    return Carried(tmp_path, helm, kubectl)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    server.pods = []
    with server:
        yield server


def states(carried: Carried, bundle: Path, code: int) -> dict[str, dict[str, Any]]:
    done = carried.run("preflight", bundle, "--output=json")
    assert done.returncode == code, done.stdout + done.stderr
    assert not carried.state.folder.exists()
    document = json.loads(done.stdout)
    checks = {check["name"]: check for check in document["checks"]}
    assert len(checks) == len(document["checks"]), "a name is there twice"
    found = [check["state"] for check in checks.values()]
    assert document["failed"] == found.count("failed")
    assert document["warnings"] == found.count("warning")
    return checks


def test_what_the_cluster_does_not_tell_is_a_warning(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    carried.site(api.host, SEED)
    checks = states(carried, bundle, 0)
    assert checks["cluster"]["text"] == "Kubernetes v1.34.4 answers"
    assert checks["release app/app"]["state"] == "ok"
    assert checks["insecure settings"]["state"] == "ok"
    for name in ("rights", "capacity", "storage", "node ports", "clocks"):
        assert checks[name]["state"] == "warning", checks[name]
        assert checks[name]["text"].startswith("not known: kubectl ")
    assert "--pull" in checks["nodes can pull"]["text"]
    done = carried.run("preflight", bundle)
    assert done.returncode == 0
    assert re.search(
        r"checks in [\d.]+ s: 0 failed, \d+ warnings\nnothing was changed", done.stdout
    )


def test_all_problems_are_told_at_one_visit(carried: Carried) -> None:
    bundle = carried.bundle()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        seed = {"serve": {"listen": host, "address": host, "service": "none"}}
        away = f"127.0.0.1:{closed.getsockname()[1]}"
        carried.site(away, seed, nodes={"containerdCertsDir": "none"})
        checks = states(carried, bundle, 2)
        failed = {name for name, check in checks.items() if check["state"] == "failed"}
        assert failed == {"site.yaml", "cluster", "seed registry"}
        done = carried.run("run", bundle)
    assert done.returncode == 2
    assert (
        done.stderr.count("error: 3 checks failed:\n  site.yaml: nodes.containerdCertsDir: ") == 1
    )
    assert "  cluster: the cluster can't be reached: " in done.stderr
    assert f"  seed registry: seed.serve.listen: {host}: Address already in use\n" in done.stderr
    assert not carried.state.folder.exists()


@pytest.mark.parametrize("verb", ["run", "preflight"])
def test_an_older_bundle_is_not_even_looked_at(carried: Carried, api: ApiServer, verb: str) -> None:
    old = carried.bundle(1)
    carried.site(api.host, SEED)
    with carried.state.held():
        carried.state.write("serials.json", type(carried.state.serials)("stable", {"stable": 2}))
    done = carried.run(verb, old)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert not carried.state.path("tools").exists()
    if verb == "preflight":
        assert carried.run(verb, old, "--allow-downgrade=drill").returncode == 0


def test_a_chart_that_the_bundle_lacks_hides_nothing_else(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    carried.site(api.host, SEED, releases=[{"chart": "ap"}, {"chart": "app"}])
    checks = states(carried, bundle, 2)
    assert checks["release ap/ap"]["state"] == "failed"
    assert "'app'" in checks["release ap/ap"]["hint"]
    assert checks["release app/app"]["state"] == "ok"


def harbor(**section: Any) -> list[dict[str, Any]]:
    # A chart without Harbor's values: what its section says of other things is looked at still.
    return [{"chart": "app", "harbor": {"externalURL": "http://127.0.0.1:30002", **section}}]


def test_what_a_certificate_warns_of_is_shown(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    made = make_certificates(carried.folder / "tls", ["localhost"])
    provided = {"certificate": str(made.certificate), "key": str(made.key), "ca": str(made.ca)}
    release = harbor(externalURL="https://localhost", certificate={"provided": provided})
    carried.site(api.host, SEED, releases=release)
    checks = states(carried, bundle, 2)
    assert checks["release app/app"]["state"] == "failed"
    assert checks["certificate app/app"]["state"] == "warning"
    assert checks["certificate app/app"]["text"].startswith("certificate: 'localhost' ends on ")
    assert checks["DNS app/app"]["text"].startswith("localhost is ")
    done = carried.run("run", bundle)
    assert "warning: certificate app/app: " in done.stderr


def test_hosts_that_a_harbor_needs_are_asked_from_here(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        redis = {"addresses": [f"127.0.0.1:{closed.getsockname()[1]}"]}
        port = there.getsockname()[1]
        nfs = {"server": "127.0.0.1", "path": "/x", "mountOptions": ["nfsvers=3", f"port={port}"]}
        release = harbor(
            externalURL="http://harbor.invalid:30002", storage={"nfs": nfs}, redis=redis
        )
        carried.site(api.host, SEED, releases=release)
        checks = states(carried, bundle, 2)
        assert checks["NFS app/app"]["state"] == "ok"
        (asked,) = [check for name, check in checks.items() if name.startswith("Redis 127.0.0.1")]
        assert (asked["state"], asked["text"].endswith("Connection refused")) == ("warning", True)
    assert checks["DNS app/app"]["state"] == "failed"
    assert "harbor.invalid, the host of externalURL" in checks["DNS app/app"]["text"]
    assert "externalURL is http" in checks["insecure settings"]["text"]


def test_a_run_hands_its_warnings_to_programs(carried: Carried, api: ApiServer) -> None:
    bundle = carried.bundle()
    carried.site(api.host, SEED)
    done = carried.run("run", bundle, "--plan", "--output=json")
    assert done.returncode == 0, done.stderr
    warned = {warning["name"] for warning in json.loads(done.stdout)["warnings"]}
    assert "capacity" in warned
    assert "warning: capacity: not known: " in done.stderr
