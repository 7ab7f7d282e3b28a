"""References: one image, one name, whoever wrote it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.bundle.digest import Digest
from installer.errors import InvalidInput
from installer.oci.reference import Reference

DIGEST = Digest.of(b"x")
COMPONENT = st.from_regex(r"\A[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}\Z")
HOST = st.sampled_from(
    ["docker.io", "ghcr.io", "localhost", "localhost:5000", "10.0.0.1:80", "[::1]:5000", "UP"]
)
TAG = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


@st.composite
def references(draw: st.DrawFn) -> Reference:
    parts = draw(st.lists(COMPONENT, min_size=2, max_size=4))
    digest = draw(st.none() | st.binary(max_size=3).map(Digest.of))
    return Reference(draw(HOST), "/".join(parts), draw(st.none() | TAG), digest)


@given(references())
def test_parse_and_str_go_round(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(st.text() | st.from_regex(r"[a-zA-Z0-9._/:@\[\]-]*", fullmatch=True))
def test_normalising_twice_changes_nothing_and_nothing_crashes(text: str) -> None:
    try:
        once = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(once)) == once


@given(references())
def test_the_default_host_may_be_left_out(reference: Reference) -> None:
    short = str(reference).removeprefix("docker.io/")
    first = reference.path.partition("/")[0]
    if reference.host == "docker.io" and "." not in first and first != "localhost":
        assert Reference.parse(short) == reference


@pytest.mark.parametrize(
    ("text", "host", "path", "tag"),
    [
        ("busybox", "docker.io", "library/busybox", None),
        ("busybox:1.36", "docker.io", "library/busybox", "1.36"),
        ("docker.io/busybox", "docker.io", "library/busybox", None),
        ("index.docker.io/busybox", "docker.io", "library/busybox", None),
        ("registry-1.docker.io/a/b", "docker.io", "a/b", None),
        ("goharbor/harbor-core:v2.14.4", "docker.io", "goharbor/harbor-core", "v2.14.4"),
        ("ghcr.io/aquasecurity/trivy-db:2", "ghcr.io", "aquasecurity/trivy-db", "2"),
        ("localhost/x", "localhost", "x", None),
        ("localhost", "docker.io", "library/localhost", None),
        ("host:5000/x", "host:5000", "x", None),
        ("host:5000/x:1", "host:5000", "x", "1"),
        ("name:5000", "docker.io", "library/name", "5000"),
        ("[::1]:5000/x", "[::1]:5000", "x", None),
        ("UP/x", "UP", "x", None),
        ("a.b/c", "a.b", "c", None),
        ("docker.io/a.b/c", "docker.io", "a.b/c", None),
    ],
)
def test_normalised_as_docker_does(text: str, host: str, path: str, tag: str | None) -> None:
    assert Reference.parse(text) == Reference(host, path, tag)
    assert Reference.parse(f"{text}@{DIGEST}") == Reference(host, path, tag, DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "Busybox",
        "a//b",
        "a:",
        "a@",
        "a@sha256:12",
        f"a@{DIGEST}@{DIGEST}",
        "a b",
        "a:b:c",
        "a:-x",
        "a:" + "x" * 129,
        "a_/b",
        "a..b/c",
        "https://ghcr.io/a",
        "../a",
        "ghcr.io/../a",
        "-a.b/c",
        "a\n",
        "a:1\n",
        "x/" + "a" * 255,
        "host:123456/x",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


def test_version_and_pinned() -> None:
    assert Reference.parse("a").version == "latest"
    assert Reference.parse("a:1").version == "1"
    pinned = Reference.parse("a:1").pinned(DIGEST)
    assert pinned.version == str(DIGEST)
    assert str(pinned) == f"docker.io/library/a:1@{DIGEST}"
    assert pinned.repository == "docker.io/library/a"
