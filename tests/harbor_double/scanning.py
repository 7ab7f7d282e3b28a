"""Scanners, scans, and what they found."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.harbor_double.accounts import need_system, project_of
from tests.harbor_double.call import (
    Answer,
    Call,
    Document,
    Refused,
    bad_request,
    broken,
    conflict,
    forbidden,
    matching,
    not_found,
    operation,
    ordered,
)
from tests.harbor_double.recordings import recorded
from tests.harbor_double.state import NEVER, Artifact, Scan, State, written

if TYPE_CHECKING:
    from datetime import datetime

REPORT = "application/vnd.security.vulnerability.report; version=1.1"
SEVERITIES = ("None", "Unknown", "Negligible", "Low", "Medium", "High", "Critical")
_TRIVY = {"name": "Trivy", "vendor": "Aqua Security", "version": "v0.70.0"}
_ADAPTER = {
    "adapter": "Trivy", "health": "healthy", "vendor": _TRIVY["vendor"],
    "version": _TRIVY["version"],
}  # fmt: skip
_KEYS = (
    "access_credential", "auth", "capabilities", "create_time", "description", "disabled",
    "is_default", "name", "skip_certVerify", "update_time", "url", "use_internal_addr", "uuid",
)  # fmt: skip


def _scanner_shown(scanner: Document) -> Document:
    both = {"support_sbom": True, "support_vulnerability": True}
    return {"capabilities": both} | {key: scanner[key] for key in _KEYS if key != "capabilities"}


@operation("listScanners")
def list_scanners(call: Call) -> Answer:
    need_system(call, "scanner", "list")
    rows = [_scanner_shown(one) for one in call.state.scanners.values()]
    rows = matching(rows, call.query.get("q", ""), {"name": "name", "url": "url"})
    rows = ordered(rows, call.query.get("sort", ""), "create_time", ("name",))
    return call.page(sorted(rows, key=lambda one: not one["is_default"]))


def _scanner(call: Call, action: str, word: str = "scanner") -> Document:
    need_system(call, "scanner", action)
    identity = call.path["registration_id"]
    found = call.state.scanners.get(identity)
    if found is None:
        raise not_found(f"{word} {identity} not found")
    return found


@operation("getScanner")
def get_scanner(call: Call) -> Answer:
    return Answer(200, _scanner_shown(_scanner(call, "read")))


@operation("getScannerMetadata")
def scanner_metadata(call: Call) -> Answer:
    _scanner(call, "read")
    if not call.state.database_updated:
        return Answer(200, recorded("scanners", "metadata without a vulnerability database"))
    title = "metadata with a vulnerability database: properties has the date"
    document = recorded("scanners", title)
    key = "harbor.scanner-adapter/vulnerability-database-updated-at"
    document["properties"][key] = call.state.database_updated
    return Answer(200, document)


def _answers(state: State, url: str) -> bool:
    return state.scanner_answers(url)


@operation("pingScanner")
def ping_scanner(call: Call) -> Answer:
    need_system(call, "scanner", "read")
    if not _answers(call.state, call.body["url"]):
        raise broken()
    return Answer()


@operation("createScanner")
def create_scanner(call: Call) -> Answer:
    need_system(call, "scanner", "create")
    state, body = call.state, call.body
    url = body["url"].rstrip("/")
    if not _answers(state, url):
        raise broken()
    if any(url == one["url"] or body["name"] == one["name"] for one in state.scanners.values()):
        raise Refused(
            409, "UNKNOWN", "dao: create registration: registration name or url already exists"
        )
    identity, stamp = str(uuid.uuid4()), state.stamp()
    state.scanners[identity] = {
        "uuid": identity, "name": body["name"], "url": url, "access_credential": "",
        "auth": body.get("auth", ""), "description": body.get("description", ""),
        "disabled": body.get("disabled", False), "is_default": False,
        "skip_certVerify": body.get("skip_certVerify", False),
        "use_internal_addr": body.get("use_internal_addr", False),
        "create_time": stamp, "update_time": stamp,
    }  # fmt: skip
    return call.created(identity)


@operation("updateScanner")
def update_scanner(call: Call) -> Answer:
    scanner = _scanner(call, "update")
    if scanner.get("built_in"):
        raise forbidden(
            f"registration {scanner['name']} is not allowed to update as it is immutable: "
            "scanner API: update"
        )
    if call.body.get("disabled") and scanner["is_default"]:
        raise broken()
    for key in ("name", "url", "description", "disabled", "skip_certVerify", "use_internal_addr"):
        if key in call.body:
            scanner[key] = call.body[key]
    return Answer()


@operation("setScannerAsDefault")
def set_default(call: Call) -> Answer:
    scanner = _scanner(call, "update", "registration")
    if call.body.get("is_default"):
        for one in call.state.scanners.values():
            one["is_default"] = one is scanner
    return Answer()


@operation("deleteScanner")
def delete_scanner(call: Call) -> Answer:
    scanner = _scanner(call, "delete")
    if scanner.get("built_in"):
        raise forbidden(
            f"registration {scanner['name']} is not allowed to delete as it is immutable: "
            "scanner API: delete"
        )
    del call.state.scanners[scanner["uuid"]]
    return Answer(200, _scanner_shown(scanner) | {"capabilities": None})


def _default(state: State) -> Document | None:
    return next((one for one in state.scanners.values() if one["is_default"]), None)


@operation("getScannerOfProject")
def project_scanner(call: Call) -> Answer:
    project = project_of(call, "scanner", "read")
    state = call.state
    found = state.scanners.get(project["metadata"].get("projectScanner", "")) or _default(state)
    if found is None:
        return Answer(200, {})
    return Answer(200, _scanner_shown(found) | _ADAPTER)


@operation("setScannerOfProject")
def set_project_scanner(call: Call) -> Answer:
    project = project_of(call, "scanner", "create")
    # 200 for an unknown one, too, which only takes away the one that was kept.
    project["metadata"].pop("projectScanner", None)
    if call.body["uuid"] in call.state.scanners:
        project["metadata"]["projectScanner"] = call.body["uuid"]
    return Answer()


@operation("listScannerCandidatesOfProject")
def candidates(call: Call) -> Answer:
    project_of(call, "scanner", "read")
    return call.page([_scanner_shown(one) for one in call.state.scanners.values()])


def scannable(artifact: Artifact) -> bool:
    """Whether Trivy takes it."""
    from tests.harbor_double.artifacts import kind  # noqa: PLC0415  a circle

    return kind(artifact) == "IMAGE" and not artifact.subject


def start(state: State, artifact: Artifact, kind: str, *, delay: float = 0) -> Scan:
    """Let the scanner begin; what it will say is known at once, and told when it is done."""
    for child in artifact.document.get("manifests", ()):
        if inner := state.find_artifact(artifact.name, child["digest"]):
            start(state, inner, kind)
    good = kind == "sbom" or bool(state.database_updated)
    findings: list[Document] = []
    if good:
        try:
            findings = state.scanner(artifact) if kind == "vulnerability" else []
        except ValueError:
            good = False
    if kind == "sbom" and not state.database_updated:
        good = False
    scan = Scan(
        str(uuid.uuid4()),
        state.now(),
        state.clock() + delay,
        "Success" if good else "Error",
        findings,
    )
    artifact.scans[kind] = scan
    return scan


def _phase(state: State, scan: Scan) -> str:
    if scan.stopped:
        return "Stopped"
    phase = state.phase(scan.started)
    return scan.result if phase == "Success" else phase


def _over(state: State, scan: Scan) -> datetime:
    return scan.ended or scan.begun + timedelta(seconds=2 * state.pace)


def _seconds(moment: datetime) -> str:
    return written(moment.replace(microsecond=0))


def worst(findings: list[Document]) -> str:
    """The highest severity."""
    found = [one["severity"] for one in findings]
    return max(found, key=SEVERITIES.index) if found else "None"


def overview(state: State, artifact: Artifact, accept: str) -> Document:
    """``scan_overview``; empty before the first scan."""
    scan = artifact.scans.get("vulnerability")
    if scan is None or (accept and REPORT not in accept):
        return {}
    phase = _phase(state, scan)
    said: Document = {
        "end_time": NEVER,
        "report_id": scan.report,
        "scan_status": phase,
        "start_time": NEVER if phase == "Pending" else _seconds(scan.begun),
    }
    if phase in ("Success", "Error", "Stopped"):
        said["end_time"] = _seconds(_over(state, scan))
    if phase in ("Success", "Error"):
        said["duration"] = max(1, round(2 * state.pace))
    if phase == "Success":
        counts: dict[str, int] = {}
        for one in scan.findings:
            counts[one["severity"]] = counts.get(one["severity"], 0) + 1
        summary: Document = {"summary": counts, "total": len(scan.findings)}
        summary["fixable"] = len([one for one in scan.findings if one.get("fix_version")])
        said |= {
            "complete_percent": 100, "scanner": _TRIVY, "severity": worst(scan.findings),
            "summary": summary,
        }  # fmt: skip
    return {REPORT: said}


def sbom_overview(state: State, artifact: Artifact) -> Document:
    """``sbom_overview``; empty before the first one is made."""
    scan = artifact.scans.get("sbom")
    if scan is None:
        return {}
    phase = _phase(state, scan)
    if phase != "Success":
        return {
            "end_time": NEVER, "report_id": scan.report, "scan_status": phase, "start_time": NEVER,
        }  # fmt: skip
    if not scan.sbom_digest:
        scan.sbom_digest = state.sbom(artifact)
    return {
        "duration": max(1, round(2 * state.pace)),
        "end_time": written(_over(state, scan)),
        "sbom_digest": scan.sbom_digest,
        "scan_status": "Success",
        "scanner": _TRIVY,
        "start_time": written(scan.begun),
    }


@operation("scanArtifact")
def scan_artifact(call: Call) -> Answer:
    from tests.harbor_double.artifacts import find, manifest_type  # noqa: PLC0415  a circle

    artifact = find(call, "create", "scan")
    kind = (call.body or {}).get("scan_type", "vulnerability")
    if not scannable(artifact):
        raise bad_request(
            "the configured scanner Trivy does not support scanning artifact with mime type "
            f"{manifest_type(artifact)}"
        )
    scan = artifact.scans.get(kind)
    if scan and (phase := _phase(call.state, scan)) in ("Pending", "Running"):
        raise conflict(f"a previous scan process is {phase}")
    start(call.state, artifact, kind)
    return Answer(202)


@operation("stopScanArtifact")
def stop_scan(call: Call) -> Answer:
    from tests.harbor_double.artifacts import find  # noqa: PLC0415  a circle

    artifact = find(call, "stop", "scan")
    scan = artifact.scans.get(call.body.get("scan_type", "vulnerability"))
    if scan and _phase(call.state, scan) in ("Pending", "Running"):
        scan.stopped, scan.ended = True, call.state.now()
        scan.begun = scan.ended
    return Answer(202)


@operation("getVulnerabilitiesAddition")
def vulnerabilities(call: Call) -> Answer:
    from tests.harbor_double.artifacts import find  # noqa: PLC0415  a circle

    artifact = find(call, "read", "artifact-addition")
    scan = artifact.scans.get("vulnerability")
    accept = call.headers.get("X-Accept-Vulnerabilities", REPORT)
    # An empty object for no scan, for one that failed, and for another media type.
    if scan is None or _phase(call.state, scan) != "Success" or REPORT not in accept:
        return Answer(200, {})
    return Answer(200, {REPORT: report(call.state, artifact, scan)})


def report(state: State, artifact: Artifact, scan: Scan) -> Document:
    """The whole report of a scan that succeeded."""
    found = [
        {
            "id": one["id"], "package": one["package"], "version": one["version"],
            "fix_version": one.get("fix_version", ""), "severity": one["severity"],
            "status": one.get("status", "fixed"), "description": one.get("description", ""),
            "links": one.get("links", []), "artifact_digests": [artifact.digest],
            "preferred_cvss": {
                "score_v3": None, "score_v2": None, "vector_v3": "", "vector_v2": "",
            },
            "cwe_ids": [""], "vendor_attributes": None,
        }
        for one in scan.findings
    ]  # fmt: skip
    return {
        "generated_at": f"{_over(state, scan):%Y-%m-%dT%H:%M:%S.%f}000Z",
        "scanner": _TRIVY,
        "severity": worst(scan.findings),
        "vulnerabilities": found,
    }


@operation("getReportLog")
def report_log(call: Call) -> Answer:
    from tests.harbor_double.artifacts import find  # noqa: PLC0415  a circle

    artifact = find(call, "read", "scan")
    wanted = call.path["report_id"]
    try:
        uuid.UUID(wanted)
    except ValueError:
        raise bad_request(f"bad request: invalid UUID {wanted}") from None
    for scan in artifact.scans.values():
        if scan.report == wanted:
            why = "" if scan.result == "Success" else "[ERROR] scan failed: no database\n"
            text = f"{_seconds(scan.begun)} [INFO] scan of {artifact.name}\n{why}"
            return Answer(200, text=text, content_type="text/plain")
    raise not_found(f"report {wanted} not found")


def scan_everything(state: State) -> None:
    """Scan-all, from all projects."""
    count = 0
    for artifact in list(state.artifacts.values()):
        if scannable(artifact):
            start(state, artifact, "vulnerability")
            count += 1
    state.execution("SCAN_ALL", scanned=count)


def _found(state: State) -> list[tuple[Artifact, Document]]:
    return [
        (artifact, one)
        for artifact in state.artifacts.values()
        if (scan := artifact.scans.get("vulnerability")) and _phase(state, scan) == "Success"
        for one in scan.findings
    ]


def findings_table(state: State) -> str:
    """All findings as the CVE export has them."""
    head = (
        "Repository,Artifact Digest,CVE,Package,Current Version,Fixed in version,Severity,CWE Ids,"
        "Additional Data,Scanner\n"
    )
    rows = (
        f"{artifact.name},{artifact.digest},{one['id']},{one['package']},{one['version']},"
        f"{one.get('fix_version', '')},{one['severity']},,,Trivy\n"
        for artifact, one in _found(state)
    )
    return head + "".join(rows)


@operation("getSecuritySummary")
def security_summary(call: Call) -> Answer:
    need_system(call, "security-hub", "read")
    state = call.state
    found = _found(state)
    scanned = [
        one
        for one in state.artifacts.values()
        if (scan := one.scans.get("vulnerability")) and _phase(state, scan) == "Success"
    ]
    counts = {
        f"{name.lower()}_cnt": len([1 for _, one in found if one["severity"] == name])
        for name in ("Critical", "High", "Medium", "Low")
    }
    counts["fixable_cnt"] = len([1 for _, one in found if one.get("fix_version")])
    document: Document = counts | {
        "scanned_cnt": len(scanned),
        "total_artifact": len([one for one in state.artifacts.values() if not one.subject]),
        "total_vuls": len(found),
    }
    if call.query.get("with_dangerous_artifact"):
        rows = []
        for artifact in scanned:
            severities = [one["severity"] for other, one in found if other is artifact]
            if severities:
                rows.append(
                    {
                        "critical_cnt": severities.count("Critical"), "digest": artifact.digest,
                        "high_cnt": severities.count("High"),
                        "medium_cnt": severities.count("Medium"),
                        "project_id": artifact.project, "repository_name": artifact.name,
                    }
                )  # fmt: skip
        document["dangerous_artifacts"] = rows[:5]
    return Answer(200, document)


@operation("ListVulnerabilities")
def list_vulnerabilities(call: Call) -> Answer:
    need_system(call, "security-hub", "list")
    with_tag = call.query.get("with_tag")
    rows = [
        {
            "cve_id": one["id"], "desc": one.get("description", ""), "digest": artifact.digest,
            "fixed_version": one.get("fix_version", ""), "links": one.get("links", []),
            "package": one["package"], "project_id": artifact.project,
            "repository_name": artifact.name, "severity": one["severity"],
            "status": one.get("status", "fixed"),
            "tags": sorted(artifact.tags) if with_tag else None, "version": one["version"],
        }
        for artifact, one in _found(call.state)
    ]  # fmt: skip
    fields = {"cve_id": "cve_id", "severity": "severity", "package": "package"}
    return call.page(matching(rows, call.query.get("q", ""), fields))


def refusal(state: State, artifact: Artifact, project: Document) -> str:
    """Why ``prevent_vul`` refuses a pull, "" if it doesn't."""
    metadata = project["metadata"]
    if metadata.get("prevent_vul") != "true" or not scannable(artifact):
        return ""
    limit = metadata.get("severity", "low").capitalize()
    if limit not in SEVERITIES:
        limit = "Unknown"
    policy = (
        "cannot be pulled due to configured policy in 'Prevent images with vulnerability severity "
        f'of "{limit}" or higher from running.\' To continue with pull, please contact your '
        "project administrator "
    )
    scan = artifact.scans.get("vulnerability")
    if scan is None:
        return f"current image without vulnerability scanning {policy}for help."
    phase = _phase(state, scan)
    if phase != "Success":
        return f'current image with "{phase}" status of vulnerability scanning {policy}for help.'
    allowed = _allowed(state, project)
    count = len(
        [
            one
            for one in scan.findings
            if one["id"] not in allowed
            and SEVERITIES.index(one["severity"]) >= SEVERITIES.index(limit)
        ]
    )
    if not count:
        return ""
    noun = "vulnerability" if count == 1 else "vulnerabilities"
    return (
        f"current image with {count} {noun} {policy}to exempt matched vulnerabilities through "
        "configuring the CVE allowlist."
    )


def _allowed(state: State, project: Document) -> set[str]:
    own = project["metadata"].get("reuse_sys_cve_allowlist", "true") == "false"
    kept = project["allowlist"] if own else state.allowlist
    expires = kept.get("expires_at")
    if expires and expires < state.now().timestamp():
        return set()
    return {one["cve_id"] for one in kept.get("items", ())}
