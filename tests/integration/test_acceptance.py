"""The acceptance check, against the Harbor double with a real docker-registry behind its /v2/.

What has to fail fails: each fault that Harbor can have is given to the double, one at a time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from installer.deploy.harbor_access import HarborAccess
from installer.harbor import acceptance
from installer.harbor.acceptance import Finding, Subject, check
from installer.harbor.planted import CVE, PACKAGE, PACKAGE_VERSION
from installer.harbor.temporary_project import PREFIX
from tests.harbor_double import HarborDouble
from tests.harbor_double.accounts import Account
from tests.harbor_double.distribution import Distribution
from tests.harbor_double.recordings import NotShared, folder
from tests.programs import ProgramMissing
from tests.upstream.certificates import make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.servers import DockerRegistry

PASSWORD = "Harbor12345"
INSTALLER = Path(__file__).parents[2] / ".venv" / "bin" / "installer"
FLAW = {
    "id": CVE,
    "package": PACKAGE,
    "version": PACKAGE_VERSION,
    "fix_version": "1.1.22-r3",
    "severity": "Critical",
}


@pytest.fixture
def harbor(docker_registry: DockerRegistry, tmp_path: Path) -> Iterator[HarborDouble]:
    """Start one with TLS, whose scanner knows the planted flaw."""
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    made = make_certificates(tmp_path / "tls")
    with HarborDouble(docker_registry.host, made.context(), flaws=[FLAW]) as double:
        double.state.database_updated = "2026-11-20T00:00:00Z"
        yield double


@pytest.fixture
def subject(harbor: HarborDouble, tmp_path: Path) -> Subject:
    access = HarborAccess(harbor.url, str(tmp_path / "tls" / "ca.pem"), passwords=(PASSWORD,))
    return Subject(access, databases=True, patience=5)


def _states(findings: list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


def test_a_good_harbor_passes_and_nothing_is_left(harbor: HarborDouble, subject: Subject) -> None:
    findings = list(check(subject))
    assert {one.state for one in findings} == {"passed"}, findings
    assert [one.name for one in findings] == [
        "health", "login", "project", "push-pull", "scan", "content-trust", "quota", "robot",
        "retention", "audit-log", "clean-up",
    ]  # fmt: skip
    assert [one["name"] for one in harbor.state.projects.values()] == ["library"]
    assert not harbor.state.robots
    assert not harbor.state.artifacts


def _ill(harbor: HarborDouble, _: pytest.MonkeyPatch) -> None:
    harbor.state.down = {"jobservice"}


def _blind(harbor: HarborDouble, _: pytest.MonkeyPatch) -> None:
    harbor.flaws = []


def _no_database(harbor: HarborDouble, _: pytest.MonkeyPatch) -> None:
    harbor.state.database_updated = ""


def _no_policy(_: HarborDouble, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Distribution, "_policies", lambda *_: None)


def _no_quota(_: HarborDouble, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Distribution, "_room", lambda *_: None)


def _mighty_robots(_: HarborDouble, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Account, "may", lambda *_: True)


def _no_jobs(harbor: HarborDouble, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(harbor.state, "phase", lambda _: "Running")


def _silent(harbor: HarborDouble, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(harbor.state, "log", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (_ill, {"health"}),
        (_blind, {"scan"}),
        (_no_database, {"scan"}),
        (_no_policy, {"content-trust"}),
        (_no_quota, {"quota"}),
        (_mighty_robots, {"robot"}),
        (_no_jobs, {"scan", "retention"}),
        (_silent, {"audit-log"}),
    ],
)
def test_each_fault_is_found(
    harbor: HarborDouble,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[HarborDouble, pytest.MonkeyPatch], None],
    failing: set[str],
) -> None:
    monkeypatch.setattr(acceptance, "_AUDIT_SECONDS", 0.5)
    fault(harbor, monkeypatch)
    quick = Subject(subject.access, databases=True, patience=1)
    findings = list(check(quick))
    assert {one.name for one in findings if one.state == "failed"} == failing, findings
    assert [one["name"] for one in harbor.state.projects.values()] == ["library"]


def test_without_a_database_anywhere_the_scan_is_not_checked(
    harbor: HarborDouble, subject: Subject
) -> None:
    harbor.state.database_updated = ""
    findings = list(check(Subject(subject.access, databases=False, patience=5)))
    states = _states(findings)
    assert states.pop("scan") == "not checked"
    assert set(states.values()) == {"passed"}


def test_a_wrong_password_or_authority_ends_it_at_once(
    harbor: HarborDouble, subject: Subject
) -> None:
    wrong = HarborAccess(harbor.url, subject.access.ca, passwords=("wrong",))
    assert _states(list(check(Subject(wrong, databases=True))))["health"] == "failed"
    stranger = HarborAccess(harbor.url, "", passwords=(PASSWORD,))
    (first, *_) = check(Subject(stranger, databases=True))
    assert first.state == "failed"
    assert "certificate" in first.text
    assert not [one for one in harbor.requests if one[0] == "POST"]


def test_what_a_killed_check_left_is_removed(harbor: HarborDouble, subject: Subject) -> None:
    running = check(subject)
    for finding in running:
        if finding.name == "push-pull":
            break
    left = f"{PREFIX}0123abcd"
    (current,) = (one for one in harbor.state.projects.values() if one["name"] != "library")
    current["name"] = left
    for thing in (*harbor.state.repositories.values(),):
        thing["name"] = f"{left}/planted"
    for artifact in harbor.state.artifacts.values():
        artifact.name = f"{left}/planted"
    stays = f"{PREFIX}of-a-person"
    harbor.state.add_project(stays, {"public": "false"}, 1, -1)
    findings = {one.name: one for one in check(subject)}
    assert left in findings["project"].text
    running.close()
    assert {one["name"] for one in harbor.state.projects.values()} == {"library", stays}


def test_an_interruption_takes_the_project_away(harbor: HarborDouble, subject: Subject) -> None:
    running = check(subject)
    while next(running).name != "content-trust":
        pass
    assert len(harbor.state.projects) == 2
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    assert [one["name"] for one in harbor.state.projects.values()] == ["library"]


def _site(harbor: HarborDouble, folder: Path) -> Path:
    (folder / "admin").write_text(PASSWORD + "\n")
    (folder / "admin").chmod(0o600)
    section = {
        "externalURL": harbor.url,
        "ca": str(folder / "tls" / "ca.pem"),
        "adminPasswordFile": str(folder / "admin"),
    }
    document = {
        "apiVersion": "site/v1",
        "kind": "Site",
        "name": "plant-7",
        "cluster": {"kubeconfig": str(folder / "kubeconfig")},
        "seed": {"serve": {"listen": "127.0.0.1:5000", "address": "127.0.0.1:5000"}},
        "releases": [{"chart": "harbor", "harbor": section}],
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _check(folder: Path, site: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(INSTALLER), "check", f"--site={site}", f"--state={folder / 'state'}", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_a_report(harbor: HarborDouble, tmp_path: Path) -> None:
    site = _site(harbor, tmp_path)
    good = _check(tmp_path, site, "--output=json", f"--report={tmp_path / 'report.html'}")
    assert good.returncode == 0, good.stderr
    document = json.loads(good.stdout)
    assert document["schema"] == "acceptance/v1"
    assert document["sections"][0]["findings"][0]["name"] == "health"
    page = (tmp_path / "report.html").read_text()
    assert "Acceptance of plant-7" in page
    assert PASSWORD not in page + good.stdout + good.stderr
    harbor.flaws = []
    bad = _check(tmp_path, site, f"--report={tmp_path / 'report.json'}")
    assert bad.returncode == 8, bad.stderr
    assert f"not {CVE}, which is there" in " ".join(bad.stdout.split())
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing_for_long(
    harbor: HarborDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    site = _site(harbor, tmp_path)
    command = [str(INSTALLER), "check", f"--site={site}", f"--state={tmp_path / 'state'}"]
    monkeypatch.setattr(harbor.state, "phase", lambda _: "Running")  # the scan does not end
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not any("scan_overview" in path for _, path in harbor.requests):
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate(timeout=60)
    monkeypatch.undo()
    names = {one["name"] for one in harbor.state.projects.values()}
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert names == {"library"}
        return
    (left,) = names - {"library"}
    assert left.startswith(PREFIX)
    again = _check(tmp_path, site)
    assert again.returncode == 0, again.stdout
    assert left in " ".join(again.stdout.split())
    assert {one["name"] for one in harbor.state.projects.values()} == {"library"}


def test_the_report_reads_on_paper(harbor: HarborDouble, tmp_path: Path) -> None:
    """Chromium opens it from the file, asks for nothing else, and prints it."""
    chromium = Path("/usr/bin/chromium")
    if not os.access(chromium, os.X_OK):
        missing = ProgramMissing("chromium is missing: apt-get install chromium")
        pytest.skip(str(missing))
    site = _site(harbor, tmp_path)
    page = tmp_path / "report.html"
    assert _check(tmp_path, site, f"--report={page}").returncode == 0
    pdf, log = tmp_path / "report.pdf", tmp_path / "net.json"
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer",
            f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}",
            f"--log-net-log={log}", "--disable-background-networking", f"file://{page}",
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert pdf.read_bytes().startswith(b"%PDF-")
    text = page.read_text()
    for forbidden in (
        "<script",
        "<link",
        "<img",
        "src=",
        "url(",
        "@import",
        "http-equiv='refresh'",
    ):
        assert forbidden not in text
