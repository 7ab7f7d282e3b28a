"""``installer site``: profiles become site.yaml, and the schema knows what the model knows."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.cli import cli
from installer.cli.site import site_schema
from installer.documents import parse_document
from installer.errors import AirgapError, InvalidInput
from installer.site.model import Site, read_site
from installer.site.profiles import PROFILES, check, profile_text, questions, with_value

SITES = Path(__file__).parents[2] / "manifests" / "sites"
HARBOR = "releases[0].harbor"


def init(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["site", "init", str(folder), *options])


def refusal(folder: Path, *options: str) -> InvalidInput:
    """What is said when nothing is written."""
    result = init(folder, *options)
    assert isinstance(result.exception, InvalidInput), result.exception
    assert not (folder / "site.yaml").exists()
    return result.exception


def written(folder: Path, *options: str) -> Any:
    result = init(folder, *options)
    assert result.exception is None, result.exception
    return yaml.safe_load((folder / "site.yaml").read_text())


def sets(**values: str) -> list[str]:
    """Options for keys of Harbor's section; __ stands for the dot."""
    pairs = ((f"{HARBOR}.{key.replace('__', '.')}", value) for key, value in values.items())
    return [word for key, value in pairs for word in ("--set", f"{key}={value}")]


def comments(text: str) -> list[str]:
    return re.findall(r"(?m)#.*$", text)


# Without a terminal


@pytest.mark.parametrize("profile", PROFILES)
def test_without_a_terminal_the_profile_is_written_as_it_is(tmp_path: Path, profile: str) -> None:
    result = init(tmp_path / "new" / "folder", "--profile", profile)
    assert result.exception is None
    target = tmp_path / "new" / "folder" / "site.yaml"
    assert target.read_bytes() == (SITES / f"{profile}.yaml").read_bytes()
    assert read_site(target).name == profile
    first, empty, *following = result.stdout.splitlines()
    assert first == f"wrote {target}"
    assert not empty
    assert [line.startswith("  installer run ") for line in following] == [False, True, True]
    assert str(target) in following[1]
    assert "--plan" in following[1]


def test_every_profile_of_the_folder_can_be_chosen() -> None:
    assert {path.stem for path in SITES.glob("*.yaml")} == set(PROFILES)


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "site.yaml"
    target.write_text("mine")
    done = process(tmp_path, "init", ".", "--set", "name=other")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: site.yaml: already exists"
    assert "choose another DIR" in done.stderr
    assert target.read_text() == "mine"


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").symlink_to(tmp_path / "elsewhere")
    assert isinstance(init(tmp_path).exception, InvalidInput)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        error = init(folder).exception
        assert isinstance(error, AirgapError)
        assert str(tmp_path / "file") in error.message


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    # A limit on the size of files is a disk that is full after 100 bytes.
    code = """
import resource, signal
from pathlib import Path
from installer.cli.site import _write
from installer.errors import TransferFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    _write(Path("site.yaml"), "x" * 200)
except TransferFailed as error:
    print(error.message, end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "site.yaml: can't be written: File too large"
    assert not (tmp_path / "site.yaml").exists()


# Settings


def test_settings_change_values_and_nothing_else(tmp_path: Path) -> None:
    found = written(
        tmp_path, "--profile", "demo",
        "--set", "name=plant-7",
        "--set", "cluster.kubeconfig=./admin.conf",
        *sets(
            externalURL="https://harbor.plant7.example",
            expose__httpPort="31000",
            loadBalancer__haproxy__nodes="10.0.0.1, 10.0.0.2",
            loadBalancer__haproxy__service="false",
            certificate__selfSigned__names="harbor,10.0.0.9",
            storage__nfs__mountOptions="[hard, 'nfsvers=4.2,ro']",
        ),
        "--set", "releases.0.values.core.replicas=2",
        "--set", r"releases[0].values.expose.ingress.annotations.nginx\.io/size=0",
        "--set", "releases[0].values.metrics.core.path=/m",
    )  # fmt: skip
    text = (tmp_path / "site.yaml").read_text()
    profile = (SITES / "demo.yaml").read_text()
    assert comments(text) == comments(profile)
    expected = yaml.safe_load(profile)
    harbor = expected["releases"][0]["harbor"]
    expected["name"] = "plant-7"
    expected["cluster"]["kubeconfig"] = "./admin.conf"
    harbor["externalURL"] = "https://harbor.plant7.example"
    harbor["expose"]["httpPort"] = 31000
    harbor["loadBalancer"]["haproxy"] = {"nodes": ["10.0.0.1", "10.0.0.2"], "service": False}
    harbor["certificate"]["selfSigned"]["names"] = ["harbor", "10.0.0.9"]
    harbor["storage"]["nfs"]["mountOptions"] = ["hard", "nfsvers=4.2,ro"]
    expected["releases"][0]["values"] = {
        "metrics": {"enabled": True, "core": {"path": "/m"}},
        "core": {"replicas": 2},
        "expose": {"ingress": {"annotations": {"nginx.io/size": 0}}},
    }
    assert found == expected
    changed = set(text.splitlines()) - set(profile.splitlines())
    assert "          nodes: [10.0.0.1, 10.0.0.2]" in changed
    assert "        selfSigned: {names: [harbor, 10.0.0.9]}" in changed
    assert len(changed) == 11  # a line for each setting


def test_one_way_takes_the_place_of_another(tmp_path: Path) -> None:
    found = written(
        tmp_path, "--profile", "production",
        *sets(storage__nfs="null", storage__storageClass="fast", redis="null", database="null"),
    )  # fmt: skip
    harbor = found["releases"][0]["harbor"]
    assert harbor["storage"] == {"nfs": None, "storageClass": "fast"}
    assert harbor["redis"] is None
    site = read_site(tmp_path / "site.yaml")
    assert site.releases[0].harbor is not None
    assert site.releases[0].harbor.database is None
    assert "sizes: {registry: 2Ti" in (tmp_path / "site.yaml").read_text()  # comments stay


def test_a_seed_can_be_another_one(tmp_path: Path) -> None:
    found = written(
        tmp_path, "--set", "seed.serve=null", "--set", "seed.push.registry=r.site:5000/air",
        "--set", "seed.push.plainHTTP=true",
    )  # fmt: skip
    assert found["seed"] == {
        "serve": None,
        "push": {"registry": "r.site:5000/air", "plainHTTP": True},
    }


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        (f"{HARBOR}.externalUrl=x", "unknown key, did you mean 'externalURL'?", "externalURL, ca"),
        ("clustr.context=x", "clustr: unknown key, did you mean 'cluster'?", "known here"),
        (f"{HARBOR}.storage.nfs.sever=x", "did you mean 'server'?", "known here"),
        ("zzz=x", "--set zzz: unknown key", "known here: apiVersion, kind, name"),
        (f"{HARBOR}.expose.httpPort=many", "expose.httpPort: expected int, got str", ""),
        (f"{HARBOR}.expose.httpPort=70000", "expose.httpPort: not a port", ""),
        (f"{HARBOR}.expose.type=nodport", "expected one of nodePort", "'nodePort'"),
        ("seed.serve.tls=perhaps", "seed.serve.tls: expected bool, got str", ""),
        ("seed.serve.address=10.0.0.5", "address: not a host:port", "10.0.0.5:5000"),
        ("cluster=x", "cluster: expected object, got str", ""),
        ("releases=x", "releases: expected array, got str", ""),
        ("releases[1].chart=x", "releases[1]: there are only 1", "whole list"),
        ("releases.chart=x", "releases: this is a list: write [0]", ""),
        ("name.first=x", "name: this is no map", ""),
        ("name=Plant 7", "'Plant 7' is not a name", "lower-case"),
        ("name=", "'' is not a name", "lower-case"),
        (f"{HARBOR}.storage.hostPath.path=/x", "storage: give exactly one of", ""),
        (f"{HARBOR}.externalURL=https://u:p@h", "not the URL of a host", ""),
        (f"{HARBOR}.loadBalancer.haproxy.nodes=", "nodes: none is given", ""),
        ("cluster.kubeconfig=~no-such-user-here/c", "there is no such user", ""),
        ("name", "--set name: not KEY=VALUE", "for example"),
        ("=x", "'' is not a key", "for example"),
        ("a..b=x", "'a..b' is not a key", ""),
        ("a[x]=1", "'a[x]' is not a key", ""),
        ("[0]=x", "this is no map", ""),
        ("apiVersion=site/v2", "expected site/v1", ""),
        ("name=\udc80", "name: the value is not UTF-8", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, setting: str, message: str, hint: str
) -> None:
    error = refusal(tmp_path / "d", "--profile", "demo", "--set", setting)
    assert message in error.message
    assert hint in error.hint
    assert "site.yaml:" not in error.message  # a line of a file that there is not
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "harborAdminPassword=geheim-1",
        "database.external.password=geheim-1",
        "proxy.httpProxy=http://ops:geheim-1@proxy:3128",
        "core.extraEnvVars=[{name: SOME_TOKEN, value: geheim-1}]",
        "internalTLS.core.key=-----BEGIN PRIVATE KEY----- geheim-1",
        "secretKey=geheim-1",
    ],
)
def test_a_secret_is_not_written(tmp_path: Path, setting: str) -> None:
    error = refusal(tmp_path, "--set", f"releases[0].values.{setting}")
    assert "this looks like a secret" in error.message
    assert "geheim" not in error.message + error.hint


def test_names_of_secrets_are_none(tmp_path: Path) -> None:
    names = [
        "existingSecretSecretKey=s", "internalTLS.core.secretName=s",
        "imagePullSecrets=[{name: pull}]", "core.tolerations=[{key: node, operator: Exists}]",
        "database.external.existingSecret=s",
    ]  # fmt: skip
    values = written(
        tmp_path, *(word for name in names for word in ("--set", f"releases[0].values.{name}"))
    )["releases"][0]["values"]
    assert values["imagePullSecrets"] == [{"name": "pull"}]
    assert values["internalTLS"] == {"core": {"secretName": "s"}}


# Any text comes back as it was given

TEXTS = [
    ("minimal", "cluster.context"),  # not there: becomes a line of a block
    ("minimal", "channel"),
    ("minimal", "releases[0].version"),
    ("minimal", f"{HARBOR}.storage.hostPath.path"),  # several maps that are not there
    ("demo", f"{HARBOR}.storage.nfs.path"),
    ("demo", f"{HARBOR}.database.admin.username"),  # has a comment behind
    ("demo", f"{HARBOR}.storage.nfs.mountOptions[0]"),
    ("production", f"{HARBOR}.storage.nfs.mountOptions[1]"),  # inside of brackets
    ("production", f"{HARBOR}.storage.nfs.server"),
    ("production", f"{HARBOR}.redis.sentinelMaster"),
    ("production", f"{HARBOR}.expose.ingressClass"),
    ("production", "releases[0].profile"),
]
PRINTABLE = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=30)
TRICKY = st.sampled_from(
    ["", "null", "~", "yes", "No", "1e3", "0x1F", "0o17", ".5", "1_000", "nan", "22:30",
     "2027-06-30", "{a}", "[a, b]", "a, b", "'", '"', "''", "\\n", "%a", "@a", "`a", "&a", "*a",
     "!a", "|", ">", "?", ",", "=", "<<", "...", "---", "- a", "# a", "a: b", "a #b", "? a",
     " a", "a ", "a:", "\U0001f600"]
)  # fmt: skip


def reached(document: Any, key: str) -> str:
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", key):
        document = document[name or int(index)]
    return str(document)


@settings(max_examples=100)
@given(place=st.sampled_from(TEXTS), value=TRICKY | PRINTABLE | st.text(max_size=10))
def test_text_comes_back_unchanged(place: tuple[str, str], value: str) -> None:
    profile, key = place
    if key.endswith("mountOptions[0]"):
        text = with_value(profile_text(profile), key.removesuffix("[0]"), "[hard]")
    else:
        text = profile_text(profile)
    once = with_value(text, key, value)
    again = with_value(with_value(once, key, ""), key, value)
    parse_document(once.encode(), "site.yaml", Site)
    assert reached(yaml.safe_load(again), key) == value
    assert reached(yaml.safe_load(once), key) == value
    assert reached(yaml.safe_load(with_value(once, key, "x")), key) == "x"
    assert with_value(once, key, "x") == with_value(text, key, "x")  # nothing else has changed


@settings(max_examples=50)
@given(value=TRICKY | PRINTABLE)
def test_text_on_the_command_line_comes_back_unchanged(value: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written(Path(folder), "--set", f"cluster.context={value}")
        assert read_site(Path(folder) / "site.yaml").cluster.context == value


# On a terminal


def process(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    code = "from installer.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "site", *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def typed(folder: Path, *argv: str, lines: list[str]) -> tuple[int, str]:
    """Run it on a terminal of its own and type a line at each prompt."""
    code = "from installer.cli import main; main()"
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code, "site", "init", *argv],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, waiting = "", list(lines)
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            with suppress(OSError):
                shown += os.read(ours, 4000).decode()
        if waiting and shown.endswith("]: "):
            os.write(ours, waiting.pop(0).encode() + b"\n")
            shown += "\n"
    if child.poll() is None:
        child.kill()
    os.close(ours)
    assert not waiting, shown
    return child.wait(), shown


def test_a_terminal_is_asked_for_what_differs_between_sites(tmp_path: Path) -> None:
    asked = list(questions(profile_text("demo")))
    answers = {question.key: "" for question in asked} | {
        "name": "plant-7",
        "seed.serve.address": "10.0.0.5:5000",
        f"{HARBOR}.storage.nfs.server": "10.0.0.9",
        f"{HARBOR}.loadBalancer.haproxy.nodes": "10.0.0.6,10.0.0.7",
    }
    code, shown = typed(tmp_path, "--profile", "demo", lines=list(answers.values()))
    assert code == 0, shown
    for question in asked:
        assert f"{question.words} [{question.default}]: " in shown
    expected = yaml.safe_load((SITES / "demo.yaml").read_text())
    expected["name"] = "plant-7"
    expected["seed"]["serve"]["address"] = "10.0.0.5:5000"
    expected["releases"][0]["harbor"]["storage"]["nfs"]["server"] = "10.0.0.9"
    expected["releases"][0]["harbor"]["loadBalancer"]["haproxy"]["nodes"] = ["10.0.0.6", "10.0.0.7"]
    text = (tmp_path / "site.yaml").read_text()
    assert yaml.safe_load(text) == expected
    assert len(set(text.splitlines()) ^ set((SITES / "demo.yaml").read_text().splitlines())) == 8


def test_an_answer_that_cannot_be_is_asked_for_again(tmp_path: Path) -> None:
    lines = ["Plant 7", "plant-7", "", "10.0.0.5", "10.0.0.5:5000", "harbor", "http://10.0.0.5"]
    code, shown = typed(tmp_path, lines=lines)
    assert code == 0, shown
    assert shown.count("error: ") == 3
    assert "'Plant 7' is not a name" in shown
    assert read_site(tmp_path / "site.yaml").image_prefix == "10.0.0.5:5000"


def test_settings_are_not_asked_for(tmp_path: Path) -> None:
    code, shown = typed(tmp_path, "--set", "name=plant-7", lines=[])
    assert code == 0, shown
    assert "[" not in shown
    assert read_site(tmp_path / "site.yaml").name == "plant-7"


def test_nobody_is_asked_when_the_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("mine")
    code, shown = typed(tmp_path, lines=[])
    assert code == 2
    assert "already exists" in shown


@pytest.mark.parametrize("profile", PROFILES)
def test_questions_are_about_what_is_in_the_profile_and_never_about_secrets(profile: str) -> None:
    asked = list(questions(text := profile_text(profile)))
    assert {"name", "cluster.kubeconfig", f"{HARBOR}.externalURL"} <= {q.key for q in asked}
    assert not [q for q in asked if re.search(r"(?i)passw|secret|token", q.key + q.words)]
    for question in asked:
        assert question.default in text
        assert yaml.safe_load(with_value(text, question.key, question.default)) == yaml.safe_load(
            text
        )


def test_what_is_written_is_no_secret_and_for_everybody(tmp_path: Path) -> None:
    init(tmp_path)
    assert stat.S_IMODE((tmp_path / "site.yaml").stat().st_mode) & 0o444


# The schema

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "null": type(None),
}
_SAID = {"$schema", "$defs", "title", "description", "default"}
_KNOWN = {
    "$ref",
    "anyOf",
    "enum",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
}


def differs(value: Any, schema: Any, root: Any, at: str = "") -> list[str]:
    """What a validator would say: knows the words that the schema uses, and refuses others."""
    assert set(schema) <= _SAID | _KNOWN, set(schema) - _SAID - _KNOWN
    if "$ref" in schema:
        return differs(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    if "anyOf" in schema:
        parts = [differs(value, part, root, at) for part in schema["anyOf"]]
        return [] if [] in parts else max(parts, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: not one of {schema['enum']}"]
    wanted = _TYPES[schema["type"]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        return [f"{at}: not a {schema['type']}"]
    found: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += differs(item, schema["items"], root, f"{at}[{index}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [
            f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value
        ]
        for name, item in value.items():
            if name in known:
                found += differs(item, known[name], root, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                found += [f"{at}.{name}: not known"]
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_have_the_schema(profile: str) -> None:
    schema = site_schema()
    assert differs(yaml.safe_load(profile_text(profile)), schema, schema) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", 7, ".name: not a string"),
        ("nmae", "x", ".nmae: not known"),
        ("kind", "Bundle", ".kind: not one of ['Site']"),
        ("releases", {}, ".releases: not a array"),
        ("cluster", {"kubeconfig": "x", "contxt": "y"}, ".cluster.contxt: not known"),
        ("cluster", {}, ".cluster: kubeconfig is missing"),
        ("seed", {"serve": {"listen": "a:1"}}, ".seed.serve: address is missing"),
        (
            "releases",
            [{"chart": "harbor", "harbor": {"externalURL": "x", "storage": {"nfs": {"sever": 1}}}}],
            ".releases[0].harbor.storage.nfs.sever: not known",
        ),
        (
            "releases",
            [{"chart": "harbor", "harbor": {"externalURL": "x", "expose": {"httpPort": True}}}],
            ".releases[0].harbor.expose.httpPort: not a integer",
        ),
    ],
)
def test_what_the_model_refuses_the_schema_refuses(key: str, value: Any, said: str) -> None:
    schema = site_schema()
    document = yaml.safe_load(profile_text("minimal")) | {key: value}
    assert said in differs(document, schema, schema)
    with pytest.raises(InvalidInput):
        check(yaml.safe_dump(document))


def test_the_schema_is_printed_with_words_for_people() -> None:
    done = CliRunner().invoke(cli, ["site", "schema"])
    assert done.exception is None
    schema = json.loads(done.stdout)
    assert schema == json.loads(json.dumps(site_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False, name
        assert section["description"], name
        assert "``" not in section["description"]
    serve = schema["$defs"]["Serve"]["properties"]
    assert serve["listen"]["type"] == "string"
    assert "host:port on this machine" in serve["listen"]["description"]
    assert '"local"' not in done.stdout  # what the model knows about paths is its own business


def test_every_key_of_the_model_is_in_the_schema() -> None:
    text = json.dumps(site_schema())
    for key in ("sentinelMaster", "containerdCertsDir", "plainHTTP", "haproxy", "mountOptions"):
        assert f'"{key}": {{' in text
