"""The report's two forms, and what the cluster's DNS tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from installer.deploy.acceptance import (
    KEPT,
    Acceptance,
    Checked,
    accept,
    hosts_named_in,
    outside_names,
)
from installer.errors import AcceptanceFailed, DeploymentFailed
from installer.harbor.acceptance import Finding
from installer.harbor.report import (
    AcceptanceReport,
    BundleIdentity,
    Carried,
    Installed,
    Section,
    as_html,
    as_json,
)
from installer.site.harbor import Database, Harbor
from installer.site.model import Cluster, Release, Seed, Site
from installer.site.state import State

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert('x')</script>&\"'"
QUERY = '[INFO] {ip}:5353 - 4711 "A IN {name} udp 50 false 512" NOERROR qr,aa,rd 106 0.0001s\n'


def report(*findings: Finding, failed: int = 0) -> AcceptanceReport:
    return AcceptanceReport(
        schema="acceptance/v1",
        site=HOSTILE,
        started="2026-11-27T10:00:00Z",
        finished="2026-11-27T10:01:00Z",
        machine="m",
        installer="harbor-airgap 1",
        bundle=BundleIdentity("b", "stable", 7, "2026-11-01T00:00:00Z", "sha256:0", ("abc",)),
        installed=(Installed("harbor/harbor", "harbor", "1.18.4", url="https://h"),),
        carried=(Carried("image", f"x/{HOSTILE}:1", "sha256:1"),),
        sections=(Section("Harbor", findings),),
        failed=failed,
    )


def test_html_shows_all_and_escapes_it() -> None:
    good = Finding("a", HOSTILE, "passed", "text")
    left = Finding("b", "left", "not checked", HOSTILE)
    page = as_html(report(good, left)).decode()
    assert "<script" not in page
    assert "Passed: 1 of 2 checks, 1 could not be checked here." in page
    assert "serial 7 of channel stable" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_a_failure_is_said_first() -> None:
    bad = Finding("a", "t", "failed", "why", "do that")
    page = as_html(report(bad, failed=1)).decode()
    assert page.index("Failed: 1 of 1 checks") < page.index("<em>do that</em>")
    assert "class='verdict bad'" in page


def test_json_comes_back_the_same() -> None:
    made = report(Finding("a", "t", "passed", "x", seconds=1.5))
    assert msgspec.json.decode(as_json(made), type=AcceptanceReport) == made


class Dns:
    """Answers as kubectl does."""

    def __init__(self, log: str) -> None:
        self.log = log

    def run(self, verb: str, *_: str) -> str:
        if self.log == "refused":
            raise DeploymentFailed("kubectl logs: forbidden")
        counters = self.log.startswith("coredns_")
        return self.log if counters == (verb == "get") else ""

    def get(self, *_: str) -> dict[str, Any]:
        return {"items": [{"metadata": {"name": "coredns-1"}}]}

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        status = {"podIPs": [{"ip": "10.0.0.7"}]}
        return [{"metadata": {"name": f"{namespace}-core"}, "spec": {}, "status": status}]


@pytest.mark.parametrize(
    ("log", "state", "words"),
    [
        ("", "not checked", "keeps no log of questions"),
        ('coredns_build_info{version="1"} 1\n', "passed", "sent no question on"),
        (
            (
                "coredns_build_info 1\n"
                'coredns_proxy_request_duration_seconds_count{proxy_name="forward"} 3\n'
                'coredns_forward_requests_total{to="10.0.0.1:53"} 4\n'
            ),
            "not checked",
            "sent 7 questions on",
        ),
        ("refused", "not checked", "not available: kubectl logs: forbidden"),
        (
            QUERY.format(ip="10.0.0.7", name="harbor-core.harbor.svc.cluster.local."),
            "passed",
            "1 q",
        ),
        (QUERY.format(ip="10.0.0.9", name="mirror.gcr.io."), "passed", "1 question"),
        (
            2 * QUERY.format(ip="10.0.0.7", name="mirror.gcr.io."),
            "failed",
            "h/h-core asked for mirror.gcr.io, 2 times",
        ),
    ],
)
def test_a_question_for_an_outside_name_is_found(log: str, state: str, words: str) -> None:
    finding = outside_names(Dns(log), ("h",))  # type: ignore[arg-type]
    assert finding.state == state
    assert words in finding.text


def test_a_host_of_the_site_may_be_asked_for() -> None:
    database = Database("postgresql.plant.example", username="harbor")
    harbor = Harbor("https://harbor.plant.example", database=database)
    releases = (Release("harbor", harbor=harbor),)
    known = hosts_named_in(Site("site/v1", "Site", "plant", Cluster("k"), Seed(), releases))
    assert {"postgresql.plant.example", "harbor.plant.example"} <= known
    log = "".join(
        QUERY.format(ip="10.0.0.7", name=f"{name}.")
        for name in ("postgresql.plant.example", "postgresql.plant.example.corp.example")
    )
    assert outside_names(Dns(log), ("h",), known).state == "passed"  # type: ignore[arg-type]
    assert outside_names(Dns(log), ("h",)).state == "failed"  # type: ignore[arg-type]


def test_what_is_switched_off_is_called_not_checked(tmp_path: Path) -> None:
    harbor = Harbor("http://127.0.0.1:1", acceptance=False)
    site = Site(
        "site/v1", "Site", "plant", Cluster("k"), Seed(), (Release("harbor", harbor=harbor),)
    )
    made = accept(Checked(site, State(tmp_path)))
    assert [one.state for one in made.findings] == ["not checked"]
    assert made.failed == 0


@pytest.mark.parametrize("good", [True, False])
def test_the_step_keeps_the_report_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, good: bool
) -> None:
    class Context:
        state = State(tmp_path)
        site = None

    one = Finding("a", "it works", "passed" if good else "failed", "seen", "look there")
    made = report(one, failed=0 if good else 1)
    monkeypatch.setattr("installer.deploy.acceptance.accept", lambda _: made)
    step = Acceptance(Context())  # type: ignore[arg-type]
    if good:
        assert "Passed: 1 of 1 checks. Report:" in step.apply()
    else:
        with pytest.raises(AcceptanceFailed, match="it works: seen") as caught:
            step.apply()
        assert (caught.value.exit_code, caught.value.hint) == (8, "look there")
    assert Context.state.read(KEPT, AcceptanceReport) == made
    assert (tmp_path / "acceptance.html").stat().st_mode & 0o777 == 0o600


def test_it_is_done_again_after_a_change(tmp_path: Path) -> None:
    class Bundle:
        digest = "sha256:0"

    class Context:
        bundle = Bundle()
        state = State(tmp_path)
        site = Site("site/v1", "Site", "plant", Cluster("k"), Seed(), ())

    step = Acceptance(Context())  # type: ignore[arg-type]
    assert not step.check()
    kept = msgspec.structs.replace(report(), site_digest=step.site_digest)
    (tmp_path / KEPT).write_bytes(as_json(kept))
    assert step.check()
    (tmp_path / "journal.jsonl").write_text(
        '{"time":"2026-11-27T09:59:59Z","event":"done","step":"release:x"}\n'
        '{"time":"2026-11-27T10:01:00Z","event":"done","step":"acceptance"}\n'
    )
    assert step.check()
    with (tmp_path / "journal.jsonl").open("a") as journal:
        journal.write('{"time":"2026-11-27T10:05:00Z","event":"done","step":"release:x"}\n')
    assert not step.check()
