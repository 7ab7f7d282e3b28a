"""Section ``harbor.settings``: what is refused, and what differs from Harbor's recorded answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from installer.documents import parse_document
from installer.errors import InvalidInput, PreflightFailed
from installer.harbor.settings.change import Line, size_words, words
from installer.harbor.settings.configuration import (
    configuration_changes,
    login_options,
    system_options,
)
from installer.harbor.settings.projects import metadata, project_lines, webhook_body, webhook_lines
from installer.harbor.settings.replication import endpoint_lines, replication_lines
from installer.harbor.settings.robots import robot_lines
from installer.harbor.settings.schedules import schedule_lines
from installer.harbor.settings.tags import immutable_rule, retention_lines, rule_words
from installer.harbor.settings.vulnerabilities import allowlist_lines, scanner_lines
from installer.site.harbor_settings import HarborSettings
from installer.site.harbor_settings_check import cron_of, day_seconds, problems, quota_bytes
from installer.site.model import read_site

SHARED = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared")


def settings(text: str) -> HarborSettings:
    return parse_document(text.encode(), "site.yaml", HarborSettings)


def answers(topic: str, title: str = "") -> list[Any]:
    """JSON of the recorded answers whose title begins so, those without left out."""
    path = SHARED / "harbor-api" / "recorded-2.14" / f"{topic}.json"
    if not path.is_file():
        pytest.skip(f"no {path}: set AIRGAP_SHARED to the folder that has harbor-api/")
    entries = json.loads(path.read_text())
    found = (one for one in entries if str(one.get("title")).startswith(title))
    return [one["response"]["json"] for one in found if "json" in one.get("response", {})]


def recorded(topic: str, title: str) -> Any:
    return answers(topic, title)[0]


# What is refused before Harbor is asked


REFUSED = [
    ("system.projectQuota", "not a size", "system: {projectQuota: 50 GB}"),
    ("system.robotDays", "above 0", "system: {robotDays: 0}"),
    ("garbageCollection.schedule", "six fields", "garbageCollection: {schedule: '0 0 * * *'}"),
    ("garbageCollection.workers", "1 to 5", "garbageCollection: {schedule: daily, workers: 9}"),
    ("scanAll.schedule", "not a schedule", "scanAll: {schedule: nightly}"),
    ("scanAll.schedule", "not a schedule", "scanAll: {schedule: '*/5 * * * * *'}"),
    ("auditLog.forwardTo", "not a host:port", "auditLog: {forwardTo: syslog.plant}"),
    ("auditLog.keepInDatabase", "nothing", "auditLog: {forwardTo: '', keepInDatabase: false}"),
    (
        "auditLog.purge.keepHours",
        "above",
        "auditLog: {purge: {schedule: daily, keepHours: 0, events: [x]}}",
    ),
    (
        "auditLog.purge.events",
        "none",
        "auditLog: {purge: {schedule: daily, keepHours: 1, events: []}}",
    ),
    ("login", "exactly one", "login: {}"),
    ("login.ldap", "belong together", "login: {ldap: {url: x, baseDN: y, searchDN: z}}"),
    (
        "login.oidc.endpoint",
        "https",
        "login: {oidc: {name: a, endpoint: 'http://x', clientId: c, clientSecretFile: f}}",
    ),
    ("cveAllowlist.ids", "twice", "cveAllowlist: {ids: [CVE-1, CVE-1]}"),
    ("cveAllowlist.ids", "not the id", "cveAllowlist: {ids: [CVE 1]}"),
    ("cveAllowlist.expires", "not a day", "cveAllowlist: {ids: [], expires: 31.12.2027}"),
    ("scanners[0].url", "not a URL", "scanners: [{name: a, url: 'trivy:8080'}]"),
    ("scanners[0]", "belong", "scanners: [{name: a, url: 'http://x', authorization: Basic}]"),
    ("labels[0].color", "not a colour", "labels: [{name: a, color: red}]"),
    ("registries[0].url", "not a URL", "registries: [{name: a, url: '10.0.0.1:5000'}]"),
    ("registries[0]", "belong", "registries: [{name: a, url: 'http://x', username: u}]"),
    (
        "registries[1].name",
        "twice",
        "registries: [{name: a, url: 'http://x'}, {name: a, url: 'http://y'}]",
    ),
    ("replications[0].to", "no such endpoint", "replications: [{name: a, to: b}]"),
    ("replications[0]", "exactly one", "replications: [{name: a}]"),
    (
        "replications[0].trigger",
        "follows events",
        (
            "registries: [{name: b, url: 'http://x'}]\nreplications: "
            "[{name: a, from: b, trigger: event}]"
        ),
    ),
    (
        "replications[0].trigger",
        "not a trigger",
        "registries: [{name: b, url: 'http://x'}]\nreplications: [{name: a, to: b, trigger: none}]",
    ),
    ("projects[0].name", "not a name", "projects: [{name: Plant}]"),
    ("projects[0].name", "not a name", "projects: [{name: a..b}]"),
    ("projects[0].quota", "expected str", "projects: [{name: a, quota: 0}]"),
    ("projects[0].quota", "not a size", "projects: [{name: a, quota: '0'}]"),
    ("projects[1].name", "twice", "projects: [{name: a}, {name: a}]"),
    (
        "projects[0].systemCveAllowlist",
        "of its own",
        "projects: [{name: a, systemCveAllowlist: true, cveAllowlist: {ids: []}}]",
    ),
    (
        "projects[0].proxyCache.registry",
        "no such",
        "projects: [{name: a, proxyCache: {registry: hub}}]",
    ),
    ("projects[0].retention.keep", "nothing would", "projects: [{name: a, retention: {keep: []}}]"),
    (
        "projects[0].retention.keep[0]",
        "exactly one",
        "projects: [{name: a, retention: {keep: [{tags: v*}]}}]",
    ),
    (
        "projects[0].retention.keep[0]",
        "exactly one",
        "projects: [{name: a, retention: {keep: [{always: true, latestPushed: 2}]}}]",
    ),
    (
        "projects[0].immutableTags[0]",
        "not both",
        "projects: [{name: a, immutableTags: [{tags: v*, exceptTags: x}]}]",
    ),
    (
        "projects[0].robots[0].name",
        "not a name of a robot",
        "projects: [{name: a, robots: [{name: robot$ci, actions: ['repository:pull']}]}]",
    ),
    (
        "projects[0].robots[0].actions",
        "not an action",
        "projects: [{name: a, robots: [{name: ci, actions: [pull]}]}]",
    ),
    ("projects[0].members[0]", "exactly one", "projects: [{name: a, members: [{role: guest}]}]"),
    (
        "projects[0].members[0].role",
        "one of",
        "projects: [{name: a, members: [{role: owner, user: u}]}]",
    ),
    (
        "projects[0].preventVulnerable",
        "one of",
        "projects: [{name: a, preventVulnerable: terrible}]",
    ),
    ("robots[0].access", "nothing", "robots: [{name: ci, access: []}]"),
    ("robots[0].access[0].actions", "nothing", "robots: [{name: ci, access: [{actions: []}]}]"),
    (
        "robots[0].days",
        "0 for",
        "robots: [{name: ci, days: -1, access: [{actions: ['project:list']}]}]",
    ),
]


@pytest.mark.parametrize(("key", "said", "text"), REFUSED)
def test_what_harbor_would_take_in_silence_is_refused_with_its_line(
    tmp_path: Path, key: str, said: str, text: str
) -> None:
    document = {
        "apiVersion": "site/v1",
        "kind": "Site",
        "name": "x",
        "cluster": {"kubeconfig": "k"},
        "seed": {"serve": {"listen": "127.0.0.1:1", "address": "127.0.0.1:1"}},
        "releases": [
            {
                "chart": "harbor",
                "harbor": {"externalURL": "https://h.example", "settings": yaml.safe_load(text)},
            }
        ],
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidInput) as refused:
        read_site(tmp_path / "site.yaml")
    assert f"releases[0].harbor.settings.{key}: " in refused.value.message
    assert said in refused.value.message
    assert "site.yaml:" in refused.value.message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50Gi", 50 << 30),
        ("2T", 2 * 10**12),
        ("1024", 1024),
        ("512MiB", 512 << 20),
        ("unlimited", -1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert quota_bytes(text) == size


def test_schedules_and_days() -> None:
    assert cron_of("none") == ""
    assert cron_of("weekly") == "0 0 0 * * 0"
    assert cron_of("0  30 2 * * *") == "0 30 2 * * *"
    with pytest.raises(InvalidInput) as refused:
        cron_of("30 2 * * *")
    assert refused.value.hint == "write '0 30 2 * * *'"
    assert day_seconds("2030-01-01") == 1893456000
    assert day_seconds("") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "yes"),
        (False, "no"),
        ("", "-"),
        (None, "-"),
        (0, "0"),
        ([], "-"),
        (["a", "b"], "a, b"),
    ],
)
def test_values_for_people(value: object, said: str) -> None:
    assert words(value) == said


@pytest.mark.parametrize(
    ("size", "said"), [(-1, "unlimited"), (50 << 30, "50Gi"), (1000, "1000"), (None, "-")]
)
def test_sizes_for_people(size: object, said: str) -> None:
    assert size_words(size) == said


# What differs from what Harbor answers


def test_configurations_have_the_keys_that_harbor_says() -> None:
    found = recorded("configurations", "get")
    wanted = settings(
        """
        system: {projectCreation: everyone, projectQuota: unlimited, selfRegistration: false,
          robotPrefix: robot$, robotDays: 30, tokenMinutes: 30, sessionMinutes: 60,
          webhooksEnabled: true, scannerKeepsPullTime: false, banner: {message: ""}}
        login: {database: {}, primary: false}
        """
    )
    assert wanted.system
    assert wanted.login
    options = [*system_options(wanted.system), *login_options(wanted.login)]
    assert len(options) == 12
    assert configuration_changes(found, options, "2.14.4") == ((), {})
    # Every key of the other logins is one that Harbor has.
    for text in (
        "{oidc: {name: a, endpoint: 'https://x', clientId: c, clientSecretFile: f, logout: true}}",
        "{ldap: {url: x, baseDN: y, groups: {baseDN: z}}}",
    ):
        login = settings(f"login: {text}").login
        assert login
        told, body = configuration_changes(found, login_options(login), "2.14.4")
        assert told
        assert body["auth_mode"] in ("oidc_auth", "ldap_auth")


def test_an_option_that_this_harbor_lacks_is_refused_with_a_sentence() -> None:
    found = {"robot_name_prefix": {"value": "robot$", "editable": False}}
    system = settings("system: {sessionMinutes: 30}").system
    assert system
    with pytest.raises(PreflightFailed, match=r"sessionMinutes: Harbor 2.12.4 has no such option"):
        configuration_changes(found, system_options(system), "2.12.4")
    system = settings("system: {robotPrefix: svc-}").system
    assert system
    with pytest.raises(PreflightFailed, match="does not let robot_name_prefix be changed") as no:
        configuration_changes(found, system_options(system), "2.14.4")
    assert "CONFIG_OVERWRITE_JSON" in no.value.hint


def test_a_banner_is_compared_by_what_it_says() -> None:
    found = {"banner_message": {"value": '{"closable":true,"type":"info","message":"hello"}'}}
    system = settings("system: {banner: {message: hello}}").system
    assert system
    assert configuration_changes(found, system_options(system), "2.14.4") == ((), {})
    # Somebody may have written anything there.
    found = {"banner_message": {"value": "[not json"}}
    assert configuration_changes(found, system_options(system), "2.14.4")[0]


def test_a_project_is_compared_with_harbors_texts() -> None:
    (project,) = settings(
        """
        projects:
        - {name: rec, public: false, quota: unlimited, scanOnPush: true, sbomOnPush: true,
           preventVulnerable: high, contentTrust: cosign, systemCveAllowlist: false}
        """
    ).projects
    found = recorded("projects", "read back (public is still there)")
    assert project_lines(found, -1, project) == ((), {})
    assert all(isinstance(value, str) for value in metadata(project).values())
    # What metadata don't say is the default.
    fresh = recorded("projects", "get by name")
    told, changed = project_lines(fresh, 100, project)
    assert {line.key for line in told} == {
        "scanOnPush", "sbomOnPush", "preventVulnerable", "preventVulnerable.severity",
        "contentTrust.cosign", "systemCveAllowlist", "quota",
    }  # fmt: skip
    assert "public" not in changed
    # A text that means nothing is stored by Harbor, and told here.
    odd = recorded("projects", "read back after bad boolean text")
    told, changed = project_lines(odd, -1, project)
    assert changed == {"auto_scan": "true", "severity": "high"}
    assert Line("scanOnPush", "yes", "yes") in told
    # What the file leaves out is not looked at.
    assert project_lines(odd, 5, settings("projects: [{name: rec}]").projects[0]) == ((), {})


def test_allowlists_have_no_order() -> None:
    found = recorded("cve-allowlist", "get, never set")
    wanted = settings("cveAllowlist: {ids: []}").cve_allowlist
    assert allowlist_lines(found, wanted) == ()
    found = next(one for one in answers("cve-allowlist", "get") if one.get("expires_at"))
    text = "cveAllowlist: {ids: [CVE-2026-1001, CVE-2026-1000], expires: 2030-01-01}"
    assert allowlist_lines(found, settings(text).cve_allowlist) == ()
    text = "cveAllowlist: {ids: [CVE-2026-1001, CVE-2026-1000]}"
    (line,) = allowlist_lines(found, settings(text).cve_allowlist)
    assert str(line) == "cveAllowlist.expires: 2030-01-01 -> -"


def test_a_schedule_that_is_not_there_is_an_empty_body() -> None:
    assert schedule_lines(None, "", {"workers": 1}) == ()
    (collection, *_) = answers("schedules", "garbage collection: get")
    parameters: dict[str, Any] = {"delete_untagged": True, "dry_run": False, "workers": 1}
    assert schedule_lines(collection, "0 30 2 * * *", parameters) == ()
    assert [line.key for line in schedule_lines(collection, "", parameters)] == ["schedule"]
    assert schedule_lines(collection, "0 30 2 * * *", parameters | {"workers": 2})
    (purge, *_) = answers("schedules", "audit log purge: get")
    parameters = {
        "audit_retention_hour": 720,
        "include_event_types": "delete_artifact,create_artifact",
        "dry_run": False,
    }
    assert schedule_lines(purge, "0 30 2 * * *", parameters) == ()


def test_retention_is_compared_by_what_its_rules_say() -> None:
    (project,) = settings(
        """
        projects:
        - name: rec
          retention:
            schedule: daily
            keep:
            - {repositories: ret, tags: keep-*, always: true, untagged: false}
            - {repositories: ret, latestPushed: 1}
        """
    ).projects
    assert project.retention
    assert retention_lines(recorded("tag-retention", "get: rules got ids"), project.retention) == ()
    told = retention_lines(recorded("tag-retention", "get"), project.retention)
    assert [line.key for line in told] == ["retention.keep"]
    assert [line.key for line in retention_lines(None, project.retention)] == [
        "retention.schedule",
        "retention.keep",
    ]


def test_immutable_rules_are_what_they_say() -> None:
    first, bare, nowhere, odd = answers("immutable-tags", "list")[1]
    text = "projects: [{name: a, immutableTags: [{repositories: imm, tags: v*}, {exceptTags: v*}]}]"
    rule, other = settings(text).projects[0].immutable_tags
    assert rule_words(immutable_rule(rule)) == rule_words(first) == rule_words(bare)
    assert rule_words(immutable_rule(other)) == "tags but v* of **"
    assert rule_words(nowhere) == "tags v* of **"
    # What Harbor took without knowing it is another rule than ours.
    assert rule_words(odd) == "tags equals v* of imm"


def test_robots_are_compared_without_an_order_of_permissions() -> None:
    text = """
        robots:
        - name: ci
          description: recorded
          access:
          - {projects: ["*"], actions: ["repository:pull", "repository:push", "artifact:list",
             "artifact:read"]}
          - {actions: ["project:create", "project:list", "replication:read"]}
        """
    (robot,) = settings(text).robots
    found = recorded("robots", "get (no secret in the answer)")
    assert robot_lines(found, robot) == ()
    less = msgspec.structs.replace(robot, access=robot.access[:1], days=30, enabled=False)
    assert {str(line) for line in robot_lines(found, less)} == {
        "days: for ever -> 30",
        "enabled: yes -> no",
        (
            "may no longer: project:create in the system, project:list in the system, "
            "replication:read in the system -> -"
        ),
    }
    listed = recorded("robots", "list: robots of one project")[1]
    (project,) = settings(
        "projects: [{name: rec, robots: [{name: ro, description: recorded, days: 30, "
        "actions: ['repository:pull']}]}]"
    ).projects
    assert robot_lines(listed, project.robots[0], "rec") == ()


def test_endpoints_and_replications() -> None:
    wanted = settings(
        """
        registries:
        - {name: site, url: "http://10.55.0.1:5000/", type: docker-registry,
           description: plain distribution registry, verifyCertificate: false}
        - {name: self, url: "http://10.55.0.1:30002", username: admin, passwordFile: x,
           verifyCertificate: false}
        replications:
        - {name: pull-site, from: site, description: d, namespace: mirror,
           filters: {name: goharbor/redis-*, tags: v2*}}
        - {name: push-site, to: site, namespace: fromharbor, flatten: -1,
           filters: {name: rec/alpine}}
        """
    )
    assert list(problems(wanted)) == []
    listed = recorded("replication", "list")
    assert endpoint_lines(listed[0], wanted.registries[0]) == ()
    assert endpoint_lines(listed[2], wanted.registries[1]) == ()
    assert endpoint_lines(None, wanted.registries[1])
    pull, push = wanted.replications
    assert replication_lines(recorded("replication", "get (defaults filled in)"), pull) == ()
    (found,) = [one for one in answers("replication", "list")[3] if one["name"] == "push-site"]
    assert replication_lines(found, push) == ()
    (line,) = replication_lines(found, msgspec.structs.replace(push, trigger="event"))
    assert str(line) == "trigger: manual -> event_based"
    turned = msgspec.structs.replace(push, to="", from_="site")
    told = [str(line) for line in replication_lines(found, turned)]
    assert told == ["to: site -> -", "from: - -> site"]


def test_scanners_and_webhooks() -> None:
    (scanner,) = settings(
        "scanners: [{name: second, url: 'http://10.96.69.87:8080/', description: d, "
        "verifyCertificate: false, internalAddress: true}]"
    ).scanners
    found = next(
        one
        for many in answers("scanners", "list")
        for one in many
        if "second" in str(one) and "url" in one
    )
    assert scanner_lines(found, scanner) == ()
    (project,) = settings(
        """
        projects:
        - name: rec
          webhooks:
          - {name: hook, description: d, address: "http://10.55.0.1:5999/hook",
             events: [SCANNING_FAILED, PUSH_ARTIFACT, SCANNING_COMPLETED], format: CloudEvents,
             verifyCertificate: false, authHeaderFile: x}
        """
    ).projects
    found = recorded("webhooks", "get (the auth_header is readable)")
    (hook,) = project.webhooks
    assert webhook_lines(found, webhook_body(hook, "Bearer abc")) == ()
    (line,) = webhook_lines(found, webhook_body(hook, "Bearer xyz"))
    assert "abc" not in str(line)
    assert "xyz" not in str(line)


def test_the_example_in_the_documentation_has_every_section() -> None:
    text = (Path(__file__).parents[2] / "docs" / "harbor-settings.md").read_text()
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])["settings"]
    read = settings(yaml.safe_dump(example))
    assert list(problems(read)) == []
    assert set(example) == {field.encode_name for field in msgspec.structs.fields(HarborSettings)}
