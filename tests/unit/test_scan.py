"""Scans, against what a real Harbor was recorded to answer."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from installer.errors import AcceptanceFailed
from installer.harbor.api import BASE, HarborClient
from installer.harbor.scan import artifact_path, scan
from installer.harbor.vulnerability_data import scanner_data
from installer.site.http import Answer

SHARED = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared")
RECORDED = SHARED / "harbor-api" / "recorded-2.14"
ALPINE = "rec/alpine", "sha256:51318e2f4bec7e9c2842b6847cf2e385ab3ce2aa88dd8b5e7ccfe0b49705710a"


class Recorded(HarborClient):
    """Gives the recorded answers whose titles are named, in order; the last one stays."""

    def __init__(self, file: str, *titles: str) -> None:
        super().__init__("http://harbor.invalid", pauses=())
        path = RECORDED / f"{file}.json"
        if not path.is_file():
            pytest.skip(f"{path} is not there: set AIRGAP_SHARED to the folder with harbor-api")
        self.answers: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
        entries = json.loads(path.read_text())
        for title in titles:
            found = [entry for entry in entries if entry["title"].startswith(title)]
            assert found, title
            for entry in found:
                asked, said = entry["request"], entry["response"]
                text = json.dumps(said["json"]) if "json" in said else said.get("text", "")
                self.add(asked["method"], asked["path"], said["status"], text)

    def add(self, method: str, path: str, status: int, text: str) -> None:
        self.answers[method, path].append(Answer(status, text.encode(), {}))

    def _send(self, connection: Any, method: str, target: str, document: Any = None) -> Answer:
        del connection, document
        waiting = self.answers[method, target.partition("?")[0]]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


def run(client: HarborClient, **how: Any) -> Any:
    return scan(client, *ALPINE, pause=lambda _: None, **how)


def test_a_scan_without_a_database_fails_with_the_words_of_its_log() -> None:
    client = Recorded(
        "scan", "artifact before any scan", "database missing: start", "database missing: state",
        "database missing: report", "database missing: scan log",
    )  # fmt: skip
    states: list[str] = []
    with pytest.raises(AcceptanceFailed) as failed:
        run(client, watch=states.append)
    assert states == ["Pending", "Running", "Error"]
    assert "--skip-db-update cannot be specified on the first run" in failed.value.message
    assert "database" in failed.value.hint


def test_the_report_is_that_of_the_new_scan() -> None:
    client = Recorded(
        "scan", "same artifact without", "database present: start", "same artifact without",
        "database present: state Pending",
    )  # fmt: skip
    old = client.answers["GET", BASE + artifact_path(*ALPINE)][0]
    fresh = json.loads(old.body)
    (overview,) = fresh["scan_overview"].values()
    overview["report_id"] = "another"
    client.add("GET", BASE + artifact_path(*ALPINE), 200, json.dumps(fresh))
    for path, answers in Recorded("scan", "report").answers.items():
        client.answers[path] = answers[-2:-1]
    report = run(client)
    assert report.counts() == {"high": 1}
    (found,) = report.at_least("high")
    assert (found.id, found.package, found.fix_version) == ("CVE-2099-0001", "musl", "1.2.4-r9")
    assert report.at_least("critical") == ()
    # The old overview was seen twice, after the start as well, and not taken for the new one.
    assert len(client.answers["GET", BASE + artifact_path(*ALPINE)]) == 1


def test_a_scan_that_runs_is_waited_for_and_one_that_never_ends_is_not() -> None:
    client = Recorded("scan", "database missing: start again", "database missing: state Running")
    ticks = iter(range(0, 10_000, 100))
    with pytest.raises(AcceptanceFailed, match="not over after 900 s, but Running"):
        run(client, clock=lambda: float(next(ticks)))


def test_a_name_with_a_slash_is_encoded_twice() -> None:
    assert artifact_path("team/a/b", "1") == "/projects/team/repositories/a%252Fb/artifacts/1"


@pytest.mark.parametrize(
    ("title", "date"),
    [("metadata without", None), ("metadata with a vuln", "2026-11-23T21:35:11+00:00")],
)
def test_the_scanner_says_of_when_its_database_is(title: str, date: str | None) -> None:
    client = Recorded("scanners", "list", title)
    client.answers["GET", f"{BASE}/scanners"] = client.answers["GET", f"{BASE}/scanners"][:1]
    found = scanner_data(client)
    assert found.scanner == "Trivy"
    assert (found.updated_at.isoformat() if found.updated_at else None) == date
