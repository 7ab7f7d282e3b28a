"""The support bundle: what is in it, and above all what is not."""

from __future__ import annotations

import base64
import json
import re
import stat
import tarfile
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml

from installer.deploy import support
from installer.deploy.status import look
from installer.deploy.support import Summary, collect
from installer.errors import Corrupt, InvalidInput, TransferFailed
from installer.oci.platforms import own_platform
from installer.redaction import Redaction, blanked
from installer.site import credentials
from tests.unit.test_status import CORE, NOW, FakeSite, fake_site, pod, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(own_platform() != "linux/amd64", reason="test tools are amd64's")

CHOSEN = 'it\'s <p@ss>&"w/ör d"\\1'
"""A password as only people choose them: every form of it is another one."""
EARLIER = "EarlierPassw0rd"
UNKNOWN = {
    "jwt": "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJoYXJib3IifQ.c2lnbmF0dXJl",
    "basic": "YWRtaW46dW5rbm93bjEyMzQ1",
    "bearer": "f3b0c44298fc1c149afbf4c8996fb924",
    "login": "robot:unk-n0wn",
    "assigned": "nobody-told-me",
    "cookie": "sid=2c26b46b68ffc68ff99b",
    "pem": "MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBAL",
}
"""Secrets that the site does not know, in the places where programs write them."""
LOOKS = f"""\
token is {UNKNOWN["jwt"]} for admin
{{"level":"info","Authorization":["Basic {UNKNOWN["basic"]}"],"x":1}}
> Authorization: Bearer {UNKNOWN["bearer"]}
GET http://{UNKNOWN["login"]}@proxy.plant.example:3128/ 200
connecting with user=harbor password={UNKNOWN["assigned"]} host=db
{{"dbPassword": "{UNKNOWN["assigned"]}"}} {{\\"secret\\":\\"{UNKNOWN["assigned"]}\\"}}
Set-Cookie: {UNKNOWN["cookie"]}; Path=/
-----BEGIN RSA PRIVATE KEY-----
{UNKNOWN["pem"]}
-----END RSA PRIVATE KEY-----
the last line stays
"""


def go_json(text: str) -> str:
    """As encoding/json of Go writes a string."""
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    return "".join(f"\\u{ord(c):04x}" if c in "<>&" else c for c in escaped)


def forms(secret: str) -> dict[str, str]:
    """How a secret can stand in a text; each in a text in which it is whole."""
    data = secret.encode()
    encoded = {
        f"base64 behind {lead}": base64.b64encode(b"user:"[:lead] + data + b":end").decode()
        for lead in range(5)
    }
    urlsafe = base64.urlsafe_b64encode(b"\xff" + data).decode()
    return {
        "plain": secret,
        "quoted": json.dumps(secret),
        "unicode": json.dumps(secret, ensure_ascii=False),
        "JSON in JSON": json.dumps({"log": json.dumps({"text": secret})}),
        "before a colon": f"{secret}: has to be quoted in YAML",
        "go": f'"{go_json(secret)}"',
        "percent": quote(secret, safe=""),
        "login": f"postgres://harbor:{quote(secret, safe='')}@db:5432/registry",
        "base64": base64.b64encode(data).decode(),
        "base64 for URLs": urlsafe,
        **encoded,
    }


def unescaped(text: str) -> str:
    """A text with all layers of JSON's and YAML's escapes taken away."""
    text = re.sub(r"\\+u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text)
    return re.sub(r"\\+(?=[\\\"/])", "", text).replace("''", "'")


def pieces(secret: str) -> set[str]:
    """What of each form may be nowhere: its inner characters, in Base64 without the edges."""
    found = {secret, json.dumps(secret)[1:-1], go_json(secret), quote(secret, safe="")}
    found.add(json.dumps(secret, ensure_ascii=False)[1:-1])
    for name, form in forms(secret).items():
        if name.startswith("base64"):
            found.add(form.rstrip("=")[8:-8] if len(form) > 24 else form.rstrip("=")[4:-4])
    assert all(len(piece) >= 4 for piece in found), found
    return found


def pem(kind: str, line: str) -> str:
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{line}\n-----END {kind}PRIVATE KEY-----\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FakeSite]:
    with fake_site(tmp_path) as made:
        made.say(
            "helm history harbor harbor 256", [{"revision": 3, "description": "Upgrade complete"}]
        )
        made.say("helm.template", objects(made, {}))
        for words in ("persistentvolumes", *support._KINDS.values()):
            if words != "pods":
                made.say(f"kubectl get {words}", {"items": []})
        made.say("kubectl get pods wide", "NAME READY\nharbor-core-1 1/1\n")
        made.say("kubectl get secrets", "NAME TYPE DATA AGE\nharbor-core Opaque 8 1m\n")
        made.say("kubectl logs harbor-core-1 core", "listening on 8080\n")
        (made.state.folder / "seed").mkdir(mode=0o700, exist_ok=True)
        (made.state.folder / "seed/serve.log").write_text("serving test serial 1\n")
        yield made


def objects(site: FakeSite, data: dict[str, str]) -> str:
    image = f"{site.server.host}/goharbor/harbor-core:v1@{CORE.digest}"
    template = {"spec": {"containers": [{"name": "core", "image": image}]}}
    documents = [
        {"kind": "Deployment", "metadata": {"name": "core"}, "spec": {"template": template}},
        {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"port": "8080", **data}},
        {"kind": "Secret", "metadata": {"name": "core"}, "data": {"anything": "bm9ib2R5"}},
    ]
    return "".join(f"---\n# Source: harbor/x.yaml\n{yaml.safe_dump(d)}" for d in documents)


def gather(site: FakeSite, name: str = "support.tar.gz") -> tuple[Summary, dict[str, str]]:
    out = site.folder / name
    with site.context() as context:
        summary = collect(context, site.site_file, look(context, NOW), out, NOW)
    return summary, members(out)


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        found = {}
        for member in tar:
            assert member.isreg()
            assert member.mode == 0o600
            content = tar.extractfile(member)
            assert content is not None
            folder, _, name = member.name.partition("/")
            assert folder == "support-s"
            found[name] = content.read().decode()
    return found


# What is in it


def test_everything_is_there_and_can_be_read(site: FakeSite) -> None:
    site.say("kubectl get pods", {"items": [pod("harbor-core-1", restartCount=1)]})
    site.say("kubectl logs harbor-core-1 core previous", b"panic: \xff\xfe\n")
    summary, found = gather(site)
    assert summary.missing == ()
    assert [name for name, _ in summary.members] == list(found)
    assert dict(summary.members) == {name: len(text.encode()) for name, text in found.items()}
    assert set(found) == {
        "status.json", "versions.json", "cluster.json", "site.yaml", "journal.jsonl", "seed.log",
        "nodes.json", "volumes.json",
        *(f"releases/harbor.harbor/{name}" for name in
          ("values.json", "values-deployed.json", "objects.yaml", "history.json")),
        *(f"namespaces/harbor/{name}.json" for name in support._KINDS),
        "namespaces/harbor/pods.txt", "namespaces/harbor/secrets.txt",
        "namespaces/harbor/logs/harbor-core-1/core.log",
        "namespaces/harbor/logs/harbor-core-1/core.previous.log",
    }  # fmt: skip
    for name, text in found.items():
        if name.endswith(".json"):
            json.loads(text)
    assert found["namespaces/harbor/logs/harbor-core-1/core.log"] == "listening on 8080\n"
    assert (
        found["namespaces/harbor/logs/harbor-core-1/core.previous.log"] == "panic: \ufffd\ufffd\n"
    )
    assert json.loads(found["versions.json"])["bundle"]["digest"] == str(site.bundle.digest)
    assert json.loads(found["versions.json"])["helm"] == "4.0.0"
    assert json.loads(found["cluster.json"])["version"] == {"gitVersion": "v1.34.4"}
    assert yaml.safe_load(found["site.yaml"]) == yaml.safe_load(site.site_file.read_text())
    shown = list(yaml.safe_load_all(found["releases/harbor.harbor/objects.yaml"]))
    assert [d["kind"] for d in shown] == ["Deployment", "ConfigMap", "Secret"]
    assert shown[2]["data"] == {"anything": "***"}
    path = site.folder / "support.tar.gz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_volume_is_there_if_the_namespace_claims_it(site: FakeSite) -> None:
    volumes = [
        {"metadata": {"name": ns}, "spec": {"claimRef": {"namespace": ns}}}
        for ns in ("harbor", "other")
    ]
    site.say("kubectl get persistentvolumes", {"items": [*volumes, {"spec": {}}]})
    _, found = gather(site)
    assert [v["metadata"]["name"] for v in json.loads(found["volumes.json"])] == ["harbor"]


# What is not


def plant(site: FakeSite, texts: list[str]) -> None:
    """Put every text wherever a text can be."""
    everything = "\n".join(texts)
    log = "".join(f"2026 INFO something {text} and more\n" for text in texts)
    site.say("kubectl logs harbor-core-1 core", log)
    site.say("kubectl logs harbor-core-1 core previous", log.encode() + b"\xff")
    events = [{"message": f"failed: {text}", "reason": "x"} for text in texts]
    site.say(f"kubectl get {support._KINDS['events']}", {"items": events})
    noted = {"kubectl.kubernetes.io/last-applied-configuration": everything, "note": everything}
    workload = {
        "metadata": {"name": "w", "annotations": noted, "managedFields": [everything]},
        "spec": {
            "args": texts,
            "env": [{"name": f"E{i}", "value": t} for i, t in enumerate(texts)],
        },
    }
    site.say(f"kubectl get {support._KINDS['workloads']}", {"items": [workload]})
    site.say("kubectl get services,endpointslices", {"items": [{"metadata": {"labels": noted}}]})
    labelled = {"name": "n", "annotations": {"x": everything}, "labels": {"x": everything}}
    site.say("kubectl get nodes", {"items": [{"metadata": labelled, "status": {"conditions": []}}]})
    site.say("kubectl get pods wide", log)
    site.say("kubectl get persistentvolumeclaims", {"items": [{"spec": everything}]})
    site.say("helm history harbor harbor 256", [{"revision": 1, "description": everything}])
    site.say("helm.template", objects(site, {f"k{i}": text for i, text in enumerate(texts)}))
    (site.state.folder / "seed/serve.log").write_text(log)
    with site.state.held():
        for text in texts:
            site.state.journal.append("failed", step="seed", text=text)


def test_no_form_of_a_secret_is_in_any_member(site: FakeSite) -> None:
    site.say("kubectl get pods", {"items": [pod("harbor-core-1", restartCount=1)]})
    kept = credentials.kept(site.state, "harbor/harbor")
    assert kept is not None
    (site.folder / "admin.password").write_text(f"{CHOSEN}\n")
    proxy = {"httpProxy": "http://ops:Proxy-Geheim9@proxy:3128"}
    site.released = {
        "harbor": {"externalURL": site.server.url, "adminPasswordFile": "admin.password"},
        "values": {"proxy": proxy},
    }
    site.write_site()
    with site.site_file.open("a") as file:
        file.write(f"# the old password was {EARLIER}\n")
    site.say("helm get values harbor harbor", site.values() | {"adminPassword": EARLIER})
    client_key = pem("EC ", "MHcCAQEEIClientKeyClientKeyClient")
    kubeconfig = {
        "users": [
            {
                "user": {
                    "token": "kube-t0ken-of-admin",
                    "client-key-data": base64.b64encode(client_key.encode()).decode(),
                }
            }
        ]
    }
    (site.folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    private = site.state.folder / "seed/tls.key"
    private.write_text(pem("", "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49"))
    secrets = [
        *(text for text in kept.texts() if text and "\n" not in text),
        CHOSEN,
        EARLIER,
        "Proxy-Geheim9",
        "kube-t0ken-of-admin",
    ]
    texts = [form for secret in secrets for form in forms(secret).values()]
    keys = [kept.token_key, client_key, private.read_text()]
    lines = {part for key in keys for part in key.splitlines() if "-----" not in part}
    encoded = [base64.b64encode(key.encode()).decode() for key in keys]
    texts += [*keys, *(key.replace("\n", "\n    ") for key in keys), *lines, *encoded]
    plant(site, texts)
    summary, found = gather(site)
    assert summary.missing == ()
    forbidden = {piece for secret in secrets for piece in pieces(secret)} | lines
    forbidden |= {text[8:-8] for text in encoded}
    planted = "\n".join(texts)
    for piece in forbidden:
        assert piece in planted  # else the next assertion would prove nothing
        for name, text in found.items():
            assert piece not in text, (piece, name)
            assert piece not in unescaped(text), (piece, name)
    for name in ("seed.log", "namespaces/harbor/logs/harbor-core-1/core.previous.log"):
        assert found[name].count("***") >= len(secrets), name
        assert found[name].count("and more") == len(texts), name
    for name, text in found.items():
        if name.endswith(".json"):
            json.loads(text)
    list(yaml.safe_load_all(found["releases/harbor.harbor/objects.yaml"]))
    assert "the old password" not in found["site.yaml"]


def test_what_looks_like_a_secret_is_one(site: FakeSite) -> None:
    plant(site, [LOOKS])
    site.say("kubectl logs harbor-core-1 core", LOOKS)
    _, found = gather(site)
    for name, text in found.items():
        for secret in UNKNOWN.values():
            assert secret not in text, name
    log = found["namespaces/harbor/logs/harbor-core-1/core.log"]
    for rest in ("for admin", "proxy.plant.example", "host=db", '"x":1', "the last line stays"):
        assert rest in log


def test_secrets_of_the_cluster_are_listed_and_never_read(site: FakeSite) -> None:
    _, found = gather(site)
    asked = [call for call in site.calls() if " get secrets" in call]
    assert len(asked) == 1
    assert "get secrets --namespace=harbor" in asked[0]
    assert "--output" not in asked[0]
    assert found["namespaces/harbor/secrets.txt"].endswith("harbor-core Opaque 8 1m\n")


def test_damaged_secrets_stop_it_for_nobody_knows_what_to_leave_out(site: FakeSite) -> None:
    (site.state.folder / "secrets.json").write_text("{")
    with pytest.raises(Corrupt):
        gather(site)
    assert not (site.folder / "support.tar.gz").exists()


# What can't be had


def test_a_cluster_that_is_away_costs_its_part_only(site: FakeSite) -> None:
    site.silence("kubectl version")
    site.silence("helm.template")
    summary, found = gather(site)
    assert not [name for name in found if name.startswith("namespaces/")]
    assert {"status.json", "site.yaml", "journal.jsonl", "seed.log"} <= set(found)
    assert found["missing.txt"].splitlines() == list(summary.missing)
    assert any("can't be reached" in words for words in summary.missing)
    assert json.loads(found["releases/harbor.harbor/values.json"])["secretKey"] == "***"


def test_each_thing_that_is_missing_is_named(site: FakeSite) -> None:
    site.silence("kubectl logs harbor-core-1 core")
    site.silence("helm history harbor harbor 256")
    site.silence("kubectl get ingresses")
    (site.state.folder / "seed/serve.log").unlink()
    summary, found = gather(site)
    missing = {line.partition(":")[0] for line in summary.missing}
    assert missing >= {
        "releases/harbor.harbor/history.json",
        "namespaces/harbor/ingresses.json",
        "namespaces/harbor/logs/harbor-core-1/core.log",
    }
    assert missing.isdisjoint(found)
    assert "nothing answers to kubectl.get.ingresses" in found["missing.txt"]


def test_long_logs_are_cut_at_lines_and_kept_at_the_end(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "_MAX_LOG", 1000)
    name = "namespaces/harbor/logs/harbor-core-1/core.log"
    site.say("kubectl logs harbor-core-1 core", "".join(f"line {i}\n" for i in range(9000)))
    _, found = gather(site, "a.tar.gz")
    assert found[name].splitlines() == [f"line {i}" for i in range(8950, 9000)]
    site.say("kubectl logs harbor-core-1 core", "".join(f"{i} {'x' * 300}\n" for i in range(90)))
    _, found = gather(site, "b.tar.gz")
    assert [text.split()[0] for text in found[name].splitlines()] == ["40", "41", "42"]
    assert found[name].endswith("x\n")


def test_all_logs_together_have_a_limit(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "MAX_LOGS", 2500)
    pods = [pod(f"p{i}") for i in range(5)]
    site.say("kubectl get pods", {"items": pods})
    for i in range(5):
        site.say(f"kubectl logs p{i} core", f"{i} {'y' * 97}\n" * 10)
    summary, found = gather(site)
    logs = [text for name, text in found.items() if "/logs/" in name]
    assert 2000 <= sum(map(len, logs)) <= 2500
    assert sum("left out" in line for line in summary.missing) == 2


# The file


def test_nothing_is_overwritten(site: FakeSite) -> None:
    out = site.folder / "support.tar.gz"
    out.write_text("precious")
    with pytest.raises(InvalidInput, match="there already"):
        gather(site)
    assert out.read_text() == "precious"
    out.unlink()
    out.symlink_to(site.folder / "elsewhere")
    with pytest.raises(InvalidInput, match="there already"):
        gather(site)
    with pytest.raises(InvalidInput, match="no such folder"):
        gather(site, "no/support.tar.gz")


def test_what_appears_meanwhile_is_not_overwritten_either(site: FakeSite) -> None:
    out = site.folder / "support.tar.gz"
    with site.context() as context:
        found = look(context, NOW)
        out.write_text("precious")
        with pytest.raises(InvalidInput), out.open("rb") as stream:
            support._place(out, stream)
        assert found.lines
    assert out.read_text() == "precious"


def test_a_file_that_can_not_be_finished_is_not_left_behind(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise TransferFailed("is the disk full?")

    monkeypatch.setattr(support, "write_file", full)
    before = set(site.folder.iterdir())
    with pytest.raises(TransferFailed):
        gather(site)
    assert set(site.folder.iterdir()) == before


def test_the_command_says_what_is_in_it(site: FakeSite) -> None:
    out = site.folder / "out.tar.gz"
    done = run(site, "support-bundle", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "namespaces/harbor/logs/harbor-core-1/core.log" in done.stdout
    assert "look through it before you send it" in done.stdout
    assert set(members(out)) >= {"status.json", "versions.json"}
    done = run(site, "support-bundle", f"--out={out}")
    assert done.returncode == 2
    assert "is there already" in done.stderr


# The sieves


@pytest.mark.parametrize("form", forms(CHOSEN))
@pytest.mark.parametrize("secret", [CHOSEN, "aB3dE6gH9jK2mN5p"])
def test_every_form_is_cut_out(secret: str, form: str) -> None:
    text = forms(secret)[form]
    shown = Redaction([secret, quote(secret, safe="")])(f"before {text} after")
    assert "***" in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert not [piece for piece in pieces(secret) if piece in shown]


def test_a_short_secret_is_cut_out_as_a_word() -> None:
    shown = Redaction(["abc", "a.c"])("abc=1 (abc) abcd xabc a.c axc")
    assert shown == "***=1 (***) abcd xabc *** axc"


def test_without_secrets_a_text_stays_as_it_is() -> None:
    text = (
        'secret "harbor-tls" not found; password authentication failed for user "harbor"\n'
        "secretName: harbor-tls\nauth:\\n  htpasswd:\\n    realm: x\n"
        '{"automountServiceAccountToken": false, "token": null, "n": 1}\n'
        "unauthorized: authorization failed at https://10.0.0.5:5000/v2/x@sha256:00\n"
        "- secret:\n    secretName: harbor-core\n"
    )
    assert Redaction([])(text) == text


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ({"password": "x"}, {"password": "***"}),
        ({"dbPassword": 1234}, {"dbPassword": "***"}),
        ({"password": ""}, {"password": ""}),
        ({"tokens": ["a", "b"]}, {"tokens": ["***", "***"]}),
        ({"accesskey": "x", "key": "node-role"}, {"accesskey": "***", "key": "node-role"}),
        ({"secretName": "t", "passwordFile": "./f"}, {"secretName": "t", "passwordFile": "./f"}),
        ({"existingSecret": "s"}, {"existingSecret": "s"}),
        ({"secret": {"secretName": "s", "key": "k"}}, {"secret": {"secretName": "s", "key": "k"}}),
        ({"env": [{"name": "A_PASSWORD", "value": "x"}]},
         {"env": [{"name": "A_PASSWORD", "value": "***"}]}),
        ({"env": [{"name": "PORT", "value": "1"}]}, {"env": [{"name": "PORT", "value": "1"}]}),
        ({"kind": "Secret", "data": {"a": "b"}}, {"kind": "Secret", "data": {"a": "***"}}),
        ({"kind": "Secret", "stringData": "x"}, {"kind": "Secret", "stringData": "***"}),
        ({"kind": "SecretList", "items": [{"data": {"a": "b"}}]},
         {"kind": "SecretList", "items": [{"data": {"a": "***"}}]}),
        ({"items": [{"kind": "Secret", "data": {"a": "b"}}]},
         {"items": [{"kind": "Secret", "data": {"a": "***"}}]}),
        ({"kind": "ConfigMap", "data": {"a": "b"}}, {"kind": "ConfigMap", "data": {"a": "b"}}),
        ({"automountServiceAccountToken": False}, {"automountServiceAccountToken": False}),
        ({"metadata": {"managedFields": [1], "name": "x"}}, {"metadata": {"name": "x"}}),
    ],
)  # fmt: skip
def test_keys_say_what_is_blanked(document: Any, shown: Any) -> None:
    assert blanked(document) == shown
