"""Section ``harbor.settings`` against the Harbor double: compared, applied, read again."""

from __future__ import annotations

import json
import ssl
import stat
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
import pytest
import yaml
from click.testing import CliRunner

from installer.cli import cli
from installer.deploy.plan import details
from installer.deploy.settings import ApplySettings
from installer.deploy.status.harbor import settings_lines
from installer.documents import parse_document
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.harbor.api import HarborClient, HarborRefused, WrongPassword
from installer.harbor.settings import engine, robots
from installer.harbor.settings.target import Target
from installer.site import authority
from installer.site.harbor import HostBundle
from installer.site.harbor_settings import HarborSettings
from installer.site.harbor_settings_check import problems
from installer.site.http import NotAnswering
from installer.site.model import read_site
from installer.site.section import absolute
from installer.site.settings_memory import FILE, SettingsMemory
from installer.site.state import State
from tests.harbor_double import HarborDouble
from tests.harbor_double.recordings import NotShared, folder
from tests.harbor_double.specification import BASE, Specification

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

PASSWORD = "Harbor12345"
KEY = "harbor/harbor"


def documented() -> str:
    """The example of the documentation, with another prefix of robots and default scanner."""
    text = (Path(__file__).parents[2] / "docs" / "harbor-settings.md").read_text()
    example = text.partition("```yaml\nsettings:\n")[2].partition("```")[0]
    for before, after in (
        ("robotPrefix: robot$", "robotPrefix: svc-"),
        ("defaultScanner: Trivy", "defaultScanner: second"),
        ("- {name: library, public: true}", '- {name: "2024", quota: unlimited}'),
    ):
        assert before in example
        example = example.replace(before, after)
    return textwrap.dedent(example)


EVERYTHING = documented()
SECRETS = {
    "ldap.password": "S3cret-of-ldap",
    "token": "t0ken-of-scanner",
    "hq.password": "Passw0rd-of-hq",
    "hook.header": "Bearer t0ken-of-hook",
}


class Watched(HarborClient):
    """Keeps what is sent; what ``deaf`` names is answered and not done."""

    deaf = ""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sent: list[tuple[str, str, Any]] = []

    def _ask(self, method: str, path: str, query: Any, document: Any = None) -> Any:
        self.sent.append((method, path, document))
        if self.deaf and method != "GET" and path.startswith(self.deaf):
            document = {"no_such_key": True}
        return super()._ask(method, path, query, document)


class Site:
    """A Harbor, a state folder that is held, and a folder with the files of site.yaml."""

    def __init__(self, double: HarborDouble, place: Path) -> None:
        self.double = double
        self.folder = place
        self.state = State(place / "state")
        for name, word in SECRETS.items():
            (place / name).write_text(f"{word}\n")

    def target(self, text: str, password: str = PASSWORD) -> Target:
        read = parse_document(text.encode(), "site.yaml", HarborSettings)
        assert list(problems(read)) == []
        client = Watched(self.double.url, "", [password], pauses=())
        return Target(client, absolute(read, self.folder), SettingsMemory(self.state, KEY))

    def compare(self, text: str) -> list[str]:
        found = engine.compare(self.target(text))
        return [f"{one.what}: {line}" for one in found.changes for line in one.lines]

    def apply(self, text: str) -> engine.Applied:
        return engine.apply(self.target(text))

    def admin(self) -> HarborClient:
        return HarborClient(self.double.url, "", [PASSWORD], pauses=())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    with HarborDouble() as double:
        double.state.scanner_answers = lambda _: True
        double.state.listening = lambda endpoint: endpoint == "10.0.0.1:514"
        made = Site(double, tmp_path)
        with made.state.held():
            yield made


def test_everything_is_made_so_and_then_there_is_nothing_to_do(site: Site) -> None:
    target = site.target(EVERYTHING)
    before = engine.compare(target)
    assert {method for method, _, _ in target.client.sent} == {"GET"}  # type: ignore[attr-defined]
    observed: list[str] = []
    done = engine.apply(target, lambda change: observed.append(change.what))
    assert len(done.changes) == len(before.changes) == len(observed)
    again = site.target(EVERYTHING)
    assert engine.apply(again) == engine.Applied((), (), done.remarks)
    assert {method for method, _, _ in again.client.sent} == {"GET"}  # type: ignore[attr-defined]
    # Harbor's own built-in scanner is nothing that somebody made.
    assert done.remarks == ()


@pytest.mark.parametrize("version", ["2.14", "2.15"])
def test_what_is_sent_is_in_the_openapi_document(site: Site, version: str) -> None:
    specification = Specification(version)
    target = site.target(EVERYTHING)
    engine.apply(target)
    site.admin().put("/configurations", {"token_expiration": 1})
    changed = site.target(
        EVERYTHING.replace("latestPushed: 10", "latestPushed: 5")
        .replace("days: 365", "days: 30")
        .replace("50Gi", "60Gi")
        .replace("keepHours: 8760", "keepHours: 24")
        .replace("#00ab9a", "#ffffff")
        .replace("https://harbor.hq.example", "https://harbor2.hq.example")
        .replace("scanner.example:8080", "scanner.example:8081")
        .replace("trigger: event", "trigger: hourly")
        .replace("events: [PUSH_ARTIFACT]", "events: [PULL_ARTIFACT]")
    )
    assert len(engine.apply(changed).changes) == 10
    sent = [*target.client.sent, *changed.client.sent]  # type: ignore[attr-defined]
    bodies = [one for one in sent if one[2] is not None]
    assert len(bodies) > 30
    assert len({(method, path.split("/")[1]) for method, path, _ in bodies}) > 15
    for method, path, document in bodies:
        operation, _ = specification.find(method, BASE + path)
        (parameter,) = (one for one in operation.parameters if one["in"] == "body")
        validator = specification._validator(json.dumps(parameter["schema"]))
        assert isinstance(validator, jsonschema.Draft4Validator)
        found = [error.message for error in validator.iter_errors(document)]
        assert found == [], (method, path, found)


def test_only_what_differs_is_changed_and_the_rest_is_left_alone_and_said(site: Site) -> None:
    text = """
        projects:
        - {name: plant, scanOnPush: true, quota: 50Gi}
        labels: [{name: verified}]
        """
    site.apply(text)
    admin = site.admin()
    body = {"project_name": "by-hand", "metadata": {"public": "true"}}
    admin.post("/projects", body)
    admin.put("/projects/plant", {"metadata": {"auto_scan": "false", "prevent_vul": "true"}})
    admin.put("/configurations", {"token_expiration": 77})
    admin.post("/labels", {"name": "mine", "scope": "g", "color": "#000000"})
    admin.put("/system/gc/schedule", {"schedule": {"type": "Custom", "cron": "0 1 1 * * *"}})
    made = {"name": "old", "level": "system", "duration": -1, "permissions": [
        {"kind": "project", "namespace": "*", "access": [
            {"resource": "repository", "action": "pull"}]}]}  # fmt: skip
    admin.post("/robots", made)
    assert site.compare(text) == ["project plant: scanOnPush: no -> yes"]
    done = site.apply(text)
    assert [change.sentence for change in done.changes] == ["change project plant"]
    assert {remark.text.partition(":")[0] for remark in done.remarks} == {
        "project by-hand", "label mine", "robot robot$old",
        "schedule '0 1 1 * * *' of the garbage collection",
    }  # fmt: skip
    metadata = site.admin().get("/projects/plant")["metadata"]
    assert (metadata["auto_scan"], metadata["prevent_vul"]) == ("true", "true")
    assert site.admin().get("/configurations")["token_expiration"]["value"] == 77


def test_a_robot_gets_its_secret_into_a_file_once(site: Site) -> None:
    done = site.apply(EVERYTHING)
    file = site.folder / "ci.secret"
    assert any(str(file) in note for note in done.notes)
    kept = site.state.path("robots/harbor_harbor/scan")
    for path, name in ((file, "svc-plant+ci"), (kept, "svc-scan")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secret = path.read_text().rstrip("\n")
        HarborClient(site.double.url, "", [secret], username=name).login()
        assert secret not in site.state.path(FILE).read_text()
        assert secret not in repr(done)
    # Whoever takes the file to where it is used does not lock anybody out with the next run.
    secret = file.read_text()
    file.unlink()
    assert site.apply(EVERYTHING).changes == ()
    assert not file.exists()
    site.state.journal.append("run")
    note = robots.renew_secret(site.target(EVERYTHING), "plant+ci")
    assert str(file) in note
    assert file.read_text() != secret
    with pytest.raises(PreflightFailed, match="no robot nobody") as refused:
        robots.renew_secret(site.target(EVERYTHING), "nobody")
    assert "plant+ci" in refused.value.hint


def test_a_secret_that_a_stopped_run_lost_is_made_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "robots: [{name: scan, access: [{projects: ['*'], actions: ['repository:pull']}]}]"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(robots, "write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            site.apply(text)
    (line,) = site.compare(text)
    assert "lost" in line
    site.apply(text)
    secret = site.state.path("robots/harbor_harbor/scan").read_text().strip()
    HarborClient(site.double.url, "", [secret], username="robot$scan").login()
    assert site.compare(text) == []


def test_a_robot_of_others_keeps_its_secret_and_a_file_of_others_is_not_overwritten(
    site: Site,
) -> None:
    text = "robots: [{name: old, access: [{actions: ['project:list']}], secretFile: ./old}]"
    admin = site.admin()
    access = [{"resource": "user", "action": "list"}]
    permissions = [{"kind": "system", "namespace": "/", "access": access}]
    body = {"name": "old", "level": "system", "duration": -1, "permissions": permissions}
    secret = admin.post("/robots", body).document["secret"]
    done = site.apply(text)
    assert [str(line) for line in done.changes[0].lines] == [
        "may no longer: user:list in the system -> -",
        "may: - -> project:list in the system",
    ]
    assert "not known here" in done.remarks[0].text
    HarborClient(site.double.url, "", [secret], username="robot$old").login()
    assert not (site.folder / "old").exists()
    (site.folder / "old").write_text("somebody's")
    text = text.replace("name: old", "name: new")
    with pytest.raises(PreflightFailed, match="is there already"):
        site.apply(text)
    assert (site.folder / "old").read_text() == "somebody's"
    assert len(list(site.admin().pages("/robots"))) == 1


def test_a_secret_is_sent_again_only_when_it_is_another_one(site: Site) -> None:
    everything = yaml.safe_load(EVERYTHING)
    text = yaml.safe_dump({key: everything[key] for key in ("login", "scanners", "registries")})
    site.apply(text)
    assert site.compare(text) == []
    for name in ("hq.password", "ldap.password", "token"):
        (site.folder / name).write_text("An0ther-one")
    told = site.compare(text)
    assert len(told) == 3
    assert "An0ther-one" not in str(told)
    site.apply(text)
    assert site.compare(text) == []
    SettingsMemory(site.state, KEY).forget_secrets()
    assert len(site.compare(text)) == 3
    site.apply(text)
    assert site.compare(text) == []
    (site.folder / "hq.password").write_text("\n")
    with pytest.raises(InvalidInput, match=r"hq\.password: it is empty"):
        site.compare(text)
    # A file that is gone is not asked for again.
    (site.folder / "hq.password").unlink()
    assert site.compare(text) == []
    assert stat.S_IMODE(site.state.path(FILE).stat().st_mode) == 0o600
    for word in (*SECRETS.values(), "An0ther-one"):
        assert word not in site.state.path(FILE).read_text()


def test_an_endpoint_that_does_not_answer_is_told_with_what_to_do(site: Site) -> None:
    site.double.state.reachable = lambda _: False
    with pytest.raises(HarborRefused, match="the registry is unhealthy") as refused:
        site.apply(EVERYTHING)
    assert "http://127.0.0.1:5000" in refused.value.hint
    for word in SECRETS.values():
        assert word not in refused.value.message + refused.value.hint
    # What was done before stays; the next run goes on from there.
    site.double.state.reachable = lambda _: True
    assert site.apply(EVERYTHING).changes
    assert site.compare(EVERYTHING) == []


def test_a_syslog_server_that_does_not_answer_is_not_kept(site: Site) -> None:
    with pytest.raises(HarborRefused, match="could not connect") as refused:
        site.apply("auditLog: {forwardTo: 10.0.0.9:514, keepInDatabase: false}")
    assert "TCP" in refused.value.hint
    found = site.admin().get("/configurations")
    assert found["audit_log_forward_endpoint"]["value"] == ""
    site.apply("auditLog: {forwardTo: 10.0.0.1:514, keepInDatabase: false}")
    assert site.compare("auditLog: {forwardTo: 10.0.0.1:514, keepInDatabase: true}") == [
        "audit log: auditLog.keepInDatabase: no -> yes"
    ]
    # One without the other would be refused.
    site.apply("auditLog: {forwardTo: '', keepInDatabase: true}")


def test_what_harbor_answers_with_200_and_ignores_is_an_error(site: Site) -> None:
    target = site.target("system: {tokenMinutes: 45}")
    target.client.deaf = "/configurations"  # type: ignore[attr-defined]
    with pytest.raises(DeploymentFailed, match="tokenMinutes: 30 -> 45"):
        engine.apply(target)


@pytest.mark.parametrize(
    ("version", "said", "text"),
    [
        (
            "v2.13.0",
            "singleActive: Harbor 2.13.0",
            """
            registries: [{name: a, url: "http://x"}]
            replications: [{name: r, to: a, singleActive: true}]
            """,
        ),
        ("v2.14.4-79a297f7", "only 2.15", "registries: [{name: a, url: 'http://x', ca: ./token}]"),
        (
            "v2.14.4",
            "serveDeleted",
            """
            registries: [{name: a, url: "http://x"}]
            projects: [{name: p, proxyCache: {registry: a, serveDeleted: true}}]
            """,
        ),
        (
            "v2.12.4",
            "Harbor 2.12.4 has no event pull_artifact",
            "auditLog: {purge: {schedule: daily, keepHours: 1, events: [pull_artifact]}}",
        ),
        ("v2.14.4", "has no event nonsense", "auditLog: {disabledEvents: [nonsense]}"),
        ("v2.14.4", "no scanner 'Clair'", "defaultScanner: Clair"),
    ],
)
def test_what_this_harbor_does_not_have_is_refused_before_anything_is_changed(
    site: Site, version: str, said: str, text: str
) -> None:
    site.double.state.version = version
    document = yaml.safe_load(text) | {"system": {"tokenMinutes": 99}}
    target = site.target(yaml.safe_dump(document))
    with pytest.raises(PreflightFailed, match=said):
        engine.apply(target)
    assert {method for method, _, _ in target.client.sent} == {"GET"}  # type: ignore[attr-defined]


def test_what_only_harbor_2_15_has(tmp_path: Path) -> None:
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    text = """
        registries:
        - {name: hub, url: "https://hub.example", type: docker-registry, ca: ./ca.pem}
        projects:
        - {name: mirror, proxyCache: {registry: hub, serveDeleted: true, kilobytesPerSecond: 100}}
        replications: [{name: r, from: hub, singleActive: true}]
        """
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n")
    with HarborDouble(version="2.15") as double:
        double.state.version = "v2.15.1"
        site = Site(double, tmp_path)
        with site.state.held():
            site.apply(text)
            assert site.compare(text) == []
            found = site.admin().get("/projects/mirror")["metadata"]
            assert found["proxy_cache_local_on_not_found"] == "true"
            assert found["proxy_speed_kb"] == "100"
            # Whether Harbor shows the authority or not.
            (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIC\n")
            (line,) = site.compare(text)
            assert "registry hub: ca" in line


def test_harbor_2_12_purges_by_operations_and_a_newer_one_is_said(site: Site) -> None:
    site.double.state.version = "v2.12.4"
    target = site.target("auditLog: {purge: {schedule: daily, keepHours: 24, events: [pull]}}")
    (change,) = engine.compare(target).changes
    assert "events: - -> pull" in [str(line) for line in change.lines]
    change.apply()  # the double is of 2.14, and forgets it
    sent = [body for _, path, body in target.client.sent if "purge" in path and body]  # type: ignore[attr-defined]
    assert sent[0]["parameters"]["include_operations"] == "pull"
    site.double.state.version = "v2.17.0"
    assert "known for 2.12" in engine.compare(site.target("system: {}")).remarks[0].text


def test_what_cannot_be_changed_is_said_before(site: Site) -> None:
    text = """
        registries:
        - {name: cache, url: "http://127.0.0.1:5000", type: docker-registry}
        - {name: other, url: "http://127.0.0.1:5001", type: docker-registry}
        projects: [{name: mirror, proxyCache: {registry: cache}}]
        """
    site.apply(text)
    with pytest.raises(PreflightFailed, match="its proxy cache is of cache, not of other"):
        site.apply(text.replace("registry: cache}", "registry: other}"))
    with pytest.raises(PreflightFailed, match="its type is docker-registry, not harbor"):
        site.apply(text.replace('5001", type: docker-registry', '5001", type: harbor'))


def test_a_robot_that_expired_is_said(site: Site) -> None:
    text = "robots: [{name: old, days: 1, access: [{actions: ['project:list']}]}]"
    site.apply(text)
    (robot,) = site.double.state.robots.values()
    robot["expires_at"] = 1_000_000_000
    done = site.apply(text)
    assert "expired at 2001-09-09" in done.remarks[0].text


def test_users_of_a_directory_need_their_secret_once(site: Site) -> None:
    text = yaml.safe_dump({"login": yaml.safe_load(EVERYTHING)["login"]})
    (site.folder / "ldap.password").unlink()
    with pytest.raises(InvalidInput, match=r"ldap.password: there is no such file"):
        site.apply(text)
    (site.folder / "ldap.password").write_text("S3cret-of-ldap")
    site.apply(text)
    (site.folder / "ldap.password").unlink()
    assert site.compare(text.replace("dc=plant,dc=example\n", "dc=other\n"))
    oidc = """
        login:
          oidc: {name: Plant, endpoint: "https://login.example/realms/plant/", clientId: harbor,
            clientSecretFile: ./token, adminGroup: admins, logout: true}
          primary: true
        """
    site.apply(oidc)
    assert site.compare(oidc) == []
    found = site.admin().get("/configurations")
    assert found["auth_mode"]["value"] == "oidc_auth"
    assert found["oidc_admin_group"]["value"] == "admins"


def test_members_and_their_roles(site: Site) -> None:
    admin = site.admin()
    user = {"username": "alice", "email": "a@x.example", "realname": "A", "password": "Passw0rdA"}
    admin.post("/users", user)
    text = "projects: [{name: plant, members: [{user: alice, role: developer}]}]"
    site.apply(text)
    assert site.compare(text.replace("developer", "maintainer")) == [
        "member alice of project plant: role: developer -> maintainer"
    ]
    site.apply(text.replace("developer", "maintainer"))
    done = site.apply("projects: [{name: plant}]")
    assert [remark.text for remark in done.remarks] == [
        "member alice of project plant: not in the file, left as it is"
    ]
    with pytest.raises(HarborRefused, match="user nobody is not found"):
        site.apply("projects: [{name: plant, members: [{user: nobody, role: guest}]}]")


def test_a_wrong_password_is_told_and_a_missing_file_too(site: Site) -> None:
    with pytest.raises(WrongPassword):
        engine.compare(site.target(EVERYTHING, password="wrong"))
    (site.folder / "hq.password").unlink()
    with pytest.raises(InvalidInput, match=r"registry hq: .*hq.password: there is no such file"):
        site.apply(EVERYTHING)


def test_over_tls_only_with_the_authority_of_the_site(tmp_path: Path) -> None:
    authority.ensure_certificates(tmp_path, "x", ["127.0.0.1"], authority.utc_now())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    try:
        folder()
    except NotShared as missing:
        pytest.skip(str(missing))
    with HarborDouble(context=context) as double:
        ca = str(tmp_path / "ca.crt")
        with HarborClient(double.url, ca, [PASSWORD], pauses=()) as client:
            assert str(client.version()) == "2.14.4"
        with (
            HarborClient(double.url, "", [PASSWORD], pauses=()) as client,
            pytest.raises(NotAnswering, match="TLS"),
        ):
            client.version()
        # Nobody was told the password.
        assert all(path != "/api/v2.0/users/current" for _, path in double.requests[2:])


# The command, and the step of a run

SITE = """
apiVersion: site/v1
kind: Site
name: x
cluster: {kubeconfig: ./k}
seed: {serve: {listen: "127.0.0.1:1", address: "127.0.0.1:1"}}
releases:
- chart: harbor
  harbor:
    externalURL: HARBOR
    adminPasswordFile: env:AIRGAP_ADMIN
    settings:
"""


@pytest.fixture
def site_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRGAP_ADMIN", PASSWORD)
    path = site.folder / "site.yaml"
    text = SITE.replace("HARBOR", site.double.url, 1)
    path.write_text(text + textwrap.indent(EVERYTHING, " " * 6))
    return path


def command(site_file: Path, *argv: str) -> Result:
    state = ["--site", str(site_file), "--state", str(site_file.parent / "cli")]
    return CliRunner().invoke(cli, ["harbor", *argv, *state], standalone_mode=False)


def test_the_command_from_a_difference_to_none(site: Site, site_file: Path) -> None:
    state = site.folder / "cli"
    diff = command(site_file, "diff")
    assert diff.return_value == 8, diff.exception
    assert "make project plant" in diff.stdout
    assert not state.exists()
    found = json.loads(command(site_file, "diff", "--output", "json").stdout)
    assert found["version"] == "2.14.4"
    lines = [line for change in found["changes"] for line in change["differences"]]
    assert {"key": "quota", "now": "-", "wanted": "50Gi"} in lines
    done = command(site_file, "apply")
    assert done.exception is None
    assert f"{len(found['changes'])} changed" in done.stdout
    assert "    quota: - -> 50Gi" in done.stderr
    same = command(site_file, "diff")
    assert (same.return_value, same.stdout.splitlines()[-1]) == (0, "nothing to change")
    again = json.loads(command(site_file, "apply", "--output", "json").stdout)
    assert (again["changes"], again["notes"]) == ([], [])
    assert "nothing to do" in command(site_file, "apply").stdout
    journal = (state / "journal.jsonl").read_text()
    assert "make project plant" in journal
    renewed = command(site_file, "renew-secret", "plant+ci")
    assert renewed.exception is None
    secret = (site.folder / "ci.secret").read_text().strip()
    for text in (diff.output, done.output, journal, renewed.output):
        for word in (*SECRETS.values(), PASSWORD, secret):
            assert word not in text


def test_the_command_says_what_it_lacks(
    site: Site, site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("installer.harbor.api.time.sleep", lambda _: None)
    site.double.gateway_down = True
    assert isinstance(command(site_file, "diff").exception, NotAnswering)
    monkeypatch.setenv("AIRGAP_ADMIN", "Wr0ng-password")
    site.double.gateway_down = False
    refused = command(site_file, "diff").exception
    assert isinstance(refused, WrongPassword)
    assert "Wr0ng-password" not in refused.message
    text = site_file.read_text()
    site_file.write_text(text.replace("    adminPasswordFile: env:AIRGAP_ADMIN\n", ""))
    assert "no password of admin" in str(command(site_file, "diff").exception)
    assert "0 releases of Harbor a/b" in str(
        command(site_file, "diff", "--release", "a/b").exception
    )
    site_file.write_text(text[: text.index("    settings:")])
    assert "no section harbor.settings" in str(command(site_file, "diff").exception)
    site_file.write_text(text.replace("./ci.secret", "./no-folder/ci.secret"))
    assert "no such output" in str(command(site_file, "apply").exception)


def test_a_run_sets_it_after_harbor_is_healthy(site: Site, site_file: Path) -> None:
    read = read_site(site_file)
    (release,) = read.releases
    assert release.harbor
    step = ApplySettings(read, release, release.harbor, site.state)
    assert step.is_needed()
    site.double.gateway_down = True
    assert not step.check()
    assert "can't be told" in details(step)[0]
    site.double.gateway_down = False
    assert not step.check()
    assert "project plant: quota: - -> 50Gi" in step.details()
    (line,) = settings_lines("harbor", step)
    assert (line.state, "50Gi" in line.text) == ("warning", False)
    note = step.apply()
    assert "its secret is in" in note
    assert step.check()
    assert step.details() == []
    assert [line.state for line in settings_lines("harbor", step)] == ["ok"]
    site.double.gateway_down = True
    (line,) = settings_lines("harbor", step)
    assert "can't be compared" in line.text
    site.double.gateway_down = False
    site.admin().post("/projects", {"project_name": "bundle"})
    assert [one.text[:14] for one in step.compare().remarks] == ["project bundle"]
    # What another step of a run makes is nothing that somebody made by hand.
    hosting = msgspec.structs.replace(release.harbor, host_bundle=HostBundle("bundle"))
    assert ApplySettings(read, release, hosting, site.state).compare().remarks == ()
    without = msgspec.structs.replace(release.harbor, settings=None)
    assert not ApplySettings(read, release, without, site.state).is_needed()
