"""bundle.yaml: what it means, what is refused, and the spec that ``bundler init`` writes."""

from __future__ import annotations

import datetime as dt
import json
from importlib import resources
from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from bundler.cli.init import command as init
from bundler.spec import Spec
from bundler.spec_document import BundleSpec
from installer.errors import InvalidInput
from installer.schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "apiVersion: bundle/v1\nkind: BundleSpec\nname: harbor\n"
HELM = f"tools: [{{name: helm, source: ./helm, sha256: {'a' * 64}}}]\n"
FULL = (
    HEAD
    + HELM
    + """\
platforms: [linux/amd64, linux/arm64]
kubeVersion: 1.34.4
expires: 2027-06-30
charts:
- {name: harbor, source: "https://helm.goharbor.io", version: 1.19.1, profiles: [default, big]}
- {name: mine, source: ./mine.tgz}
- {name: other, source: "oci://ghcr.io/x/other", version: v1.0.0-rc.1+build}
profiles:
  big: {valuesFile: ./big.yaml}
  small: {values: {core: {replicas: 1}}}
images: [busybox:1.36, "quay.io/a/b@sha256:%s"]
databases: [{kind: trivy-db, source: "ghcr.io/aquasecurity/trivy-db:2"}]
files: [{name: runbook.pdf, source: ./runbook.pdf}]
"""
    % ("b" * 64)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("helm", "mine.tgz", "runbook.pdf"):
        (tmp_path / name).write_text(name)
    (tmp_path / "big.yaml").write_text("core: {replicas: 3}\n")
    return tmp_path


def load(folder: Path, text: str) -> Spec:
    (folder / "bundle.yaml").write_text(text)
    return Spec.load(folder / "bundle.yaml")


def test_a_full_spec(folder: Path) -> None:
    spec = load(folder, FULL)
    assert spec.document.expires == dt.date(2027, 6, 30)
    assert spec.document.channel == "stable"
    assert [chart.kind for chart in spec.document.charts] == ["repository", "file", "oci"]
    assert spec.document.charts[1].profiles == ("default",)
    assert spec.profiles == {
        "default": {},
        "big": {"core": {"replicas": 3}},
        "small": {"core": {"replicas": 1}},
    }
    assert [str(image) for image in spec.images] == [
        "docker.io/library/busybox:1.36",
        f"quay.io/a/b@sha256:{'b' * 64}",
    ]
    assert str(spec.document.tools[0].digest) == f"sha256:{'a' * 64}"
    assert spec.document.databases[0].reference.tag == "2"
    assert spec.local("./mine.tgz") == folder / "mine.tgz"
    assert spec.local("https://x.example") is None


REPOSITORY = "charts: [{name: h, source: 'https://h.example', version: 1.0.0"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("chart: []\n", ":4: chart: unknown key, did you mean 'charts'?", "known here"),
        ("channel: Stable\n", ":4: 'Stable' can't be a name", "lower-case"),
        ("platforms: [linux/amd46]\n", ":4: platforms[0]: expected one of linux/", "'linux/amd64'"),
        ("platforms: [windows/amd64]\n", "linux/riscv64, all, got 'windows/amd64'", ""),
        ("platforms: []\n", ":4: platforms: expected array of length >= 1", ""),
        ("platforms: all\n", ":4: platforms: expected array, got str", "in brackets"),
        ("platforms: [all]\n", ":4: `all` does not say what the site's nodes are", "[linux/amd64"),
        ("platforms: [linux/amd64, linux/amd64]\n", ":4: linux/amd64 is there twice", ""),
        ("kubeVersion: latest\n", ":4: kubeVersion is not a version", "1.34"),
        ("kubeVersion: 1.34\n", ":4: kubeVersion: expected str", "quotes"),
        ("expires: tomorrow\n", ":4: expires: ", ""),
        (f"{REPOSITORY}}}]\n", ":4: there are charts, but no tool named helm", "add it"),
        (f"{HELM}{REPOSITORY}, profiles: [defualt]}}]\n", "no profile 'defualt'", "'default'"),
        (f"{HELM}{REPOSITORY}, profiles: []}}]\n", "has no profile to render", ""),
        (
            f"{HELM}charts:\n- name: h\n  source: https://h.example\n",
            ":6: chart h needs a vers",
            "",
        ),
        (f"{HELM}charts: [{{name: h, source: ./no.tgz}}]\n", "no file './no.tgz'", "relative to"),
        (
            f"{HELM}charts: [{{name: h, source: ./mine.tgz, version: 1.0.0}}]\n",
            ":5: chart h is a local file",
            "remove",
        ),
        (
            f"{HELM}charts: [{{name: h, source: 'https://h.example', version: ^1.0.0}}]\n",
            "'^1.0.0' is no exact version",
            "",
        ),
        (
            f"{HELM}charts: [{{name: h, source: 'https://h.example/h.tgz', version: 1.0.0}}]\n",
            "is an archive",
            "address",
        ),
        (
            f"{HELM}charts: [{{name: h, source: 'ftp://h.example', version: 1.0.0}}]\n",
            "ftp://",
            "https://",
        ),
        (
            f"{HELM}charts:\n- &c {{name: h, source: ./mine.tgz}}\n- *c\n",
            ": h is there twice, first in line 6",
            "",
        ),
        ("profiles: {p: {values: {}, valuesFile: ./big.yaml}}\n", ":4: profile p has values", ""),
        ("profiles: {p: {valuesFile: ./no.yaml}}\n", ":4: there is no file './no.yaml'", ""),
        ("profiles: {p: {valueFile: ./x}}\n", ":4: profiles.p.valueFile: unknown key", ""),
        ("images: [{reference: a/b, platforms: []}]\n", ":4: images[0].platforms: expected", ""),
        ("images: [{reference: a/b, platforms: [all, all]}]\n", ":4: all is there twice", ""),
        ("imagePlatforms: [{match: a/*}]\n", "the key 'platforms' is missing", ""),
        ("imagePlatforms: [{match: a/*, platforms: [linux/arm/v8]}]\n", "got 'linux/arm/v8'", ""),
        ("imagePlatforms: [{match: a, platforms: [all, all]}]\n", ":4: all is there twice", ""),
        ("tools: [{name: t, source: ./helm}, {name: t, source: ./helm}]\n", "is there twice", ""),
        ("images: ['a b']\n", ":4: not an image reference", ""),
        ("images: [busybox, docker.io/library/busybox]\n", "is there twice", ""),
        ("tools: [{name: t, source: ./helm, sha256: abc}]\n", ":4: not a sha256 digest", "64"),
        ("tools: [{name: t, source: 'https://t.example/t'}]\n", "needs a sha256", "sha256From"),
        (
            "tools: [{name: t, source: 'https://t.example/t', sha256From: 'http://t.example/s'}]\n",
            "must be an https:// address",
            "",
        ),
        (f"tools: [{{name: t, source: ./helm, sha256: {'a' * 64}, sha256From: x}}]\n", "both", ""),
        ("tools: [{name: t, source: ./helm, member: ../x}]\n", "no path in an archive", ""),
        ("databases: [{kind: trivydb, source: 'x:1'}]\n", "expected one of trivy-db", "trivy-db"),
        ("databases: [{kind: trivy-db, source: ghcr.io/a/trivy-db}]\n", "say which tag", "2"),
        ("files: [{name: ../x, source: ./helm}]\n", "no plain file name", ""),
        ("files: [{name: x, source: 'https://x.example'}]\n", "taken from this machine", ""),
    ],
)
def test_mistakes(folder: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=r"bundle\.yaml:\d+: ") as caught:
        load(folder, HEAD + text)
    told = caught.value.message.replace("has sha256 and sha256From", "has both")
    assert message in told
    assert hint in caught.value.hint


def test_a_missing_spec_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file") as caught:
        Spec.load(tmp_path / "bundle.yaml")
    assert "bundler init" in caught.value.hint


def test_a_mistake_in_a_values_file_names_that_file(folder: Path) -> None:
    (folder / "big.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(InvalidInput, match=r"big\.yaml:2: duplicate key 'a'"):
        load(folder, FULL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: harbor\n", "# a comment\nname:   'harbor' # here\n"),
        (HEAD, "kind: BundleSpec\nname: harbor\napiVersion: bundle/v1\n"),
        ("kind: trivy-db, source: ", "source: "),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("{valuesFile: ./big.yaml}", "{values: {core: {replicas: 3}}}"),
        ("platforms:", "channel: stable\nplatforms:"),
        (f"sha256: {'a' * 64}", f"sha256: sha256:{'a' * 64}"),
    ],
)
def test_the_digest_stays_when_the_meaning_stays(folder: Path, old: str, new: str) -> None:
    before = load(folder, FULL).digest()
    assert old in FULL
    changed = FULL.replace(old, new)
    if new == "source: ":
        changed = changed.replace('trivy-db:2"}', 'trivy-db:2", kind: trivy-db}')
    assert changed != FULL
    assert load(folder, changed).digest() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.19.1", "1.19.2"),
        ("busybox:1.36", "busybox:1.37"),
        ("replicas: 1", "replicas: 2"),
        ("2027-06-30", "2027-07-01"),
        ("[linux/amd64, linux/arm64]", "[linux/amd64]"),
        ("trivy-db:2", "trivy-db:3"),
        ("kubeVersion: 1.34.4", "kubeVersion: 1.34.5"),
        ("a" * 64, "c" * 64),
    ],
)
def test_the_digest_changes_with_the_meaning(folder: Path, old: str, new: str) -> None:
    before = load(folder, FULL).digest()
    assert load(folder, FULL.replace(old, new)).digest() != before


@pytest.mark.parametrize("name", ["helm", "mine.tgz", "runbook.pdf", "big.yaml"])
def test_the_digest_changes_with_local_files(folder: Path, name: str) -> None:
    before = load(folder, FULL).digest()
    with (folder / name).open("a") as file:
        file.write("other: 1\n")
    assert load(folder, FULL).digest() != before


@pytest.mark.parametrize(
    ("arguments", "chart"), [([], "1.19.1"), (["--version", "2.14"], "1.18.4")]
)
def test_init_writes_a_spec_that_loads(tmp_path: Path, arguments: list[str], chart: str) -> None:
    target = tmp_path / "new"
    result = CliRunner().invoke(init, ["harbor", str(target), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert "bundler lock" in result.output
    spec = Spec.load(target / "bundle.yaml")
    assert spec.document.charts[0].version == chart
    assert {tool.name for tool in spec.document.tools} == {"helm", "kubectl"}
    assert [database.kind for database in spec.document.databases] == [
        "trivy-db",
        "trivy-java-db",
        "trivy-checks",
    ]
    assert spec.digest() == Spec.load(target / "bundle.yaml").digest()


def test_init_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "bundle.yaml").write_text("mine")
    result = CliRunner().invoke(init, ["harbor", str(tmp_path)])
    assert isinstance(result.exception, InvalidInput)
    assert "already exists" in result.exception.message
    assert (tmp_path / "bundle.yaml").read_text() == "mine"


def test_the_schema_takes_the_specs_that_come_along_and_refuses_misspelt_keys() -> None:
    schema = json_schema(BundleSpec, "bundle.yaml")
    validator = jsonschema.Draft202012Validator(schema)
    folder = resources.files("manifests") / "bundles"
    for name in ("harbor.yaml", "harbor-2.14.yaml", "harbor-platform.yaml"):
        document = yaml.safe_load((folder / name).read_text())
        validator.validate(json.loads(json.dumps(document, default=str)))
        assert not validator.is_valid(document | {"chart": []})
        assert not validator.is_valid(document | {"images": [{"referense": "a/b:1"}]})
        assert validator.is_valid(document | {"images": ["a/b:1", {"reference": "a/c:1"}]})
        assert validator.is_valid(document | {"platforms": ["linux/arm/v6", "all"]})
        assert not validator.is_valid(document | {"platforms": ["linux/arm/v8"]})
        assert not validator.is_valid(document | {"platforms": "all"})
