from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from installer.deploy.haproxy import InstallHAProxy, configuration
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.harbor import Certificate, Expose, HAProxy, Harbor, LoadBalancer, SelfSigned

if TYPE_CHECKING:
    from pathlib import Path

PEM = b"-----BEGIN CERTIFICATE-----\n"


def harbor(external_url: str = "https://harbor.site.example", **changes: Any) -> Harbor:
    haproxy = replace(HAProxy(nodes=("10.0.0.1", "10.0.0.2")), **changes)
    return Harbor(
        external_url=external_url,
        certificate=Certificate(self_signed=SelfSigned()),
        load_balancer=LoadBalancer(haproxy),
    )


def lines(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().split(" ")[0] == word]


def test_terminate() -> None:
    text = configuration(harbor(), "harbor.pem")
    assert lines(text, "bind") == [
        "bind 0.0.0.0:443 ssl crt harbor.pem alpn h2,http/1.1",
        "bind 0.0.0.0:80",
        "bind 127.0.0.1:8404",
    ]
    assert lines(text, "server") == [
        "server 10.0.0.1 10.0.0.1:30002 check",
        "server 10.0.0.2 10.0.0.2:30002 check",
    ]
    assert "http-request set-header X-Forwarded-Proto https" in text
    assert "http-request redirect prefix https://harbor.site.example code 308" in text
    assert "hdr Host harbor.site.example\n" in text
    assert "mode tcp" not in text


def test_passthrough() -> None:
    text = configuration(harbor(mode="passthrough"), "harbor.pem")
    assert "harbor.pem" not in text
    assert " ssl " not in text
    assert lines(text, "server")[0] == "server 10.0.0.1 10.0.0.1:30003 check"
    assert lines(text, "bind")[0] == "bind 0.0.0.0:443"
    assert "check-ssl verify none" in text
    assert "X-Forwarded-Proto" not in text


@pytest.mark.parametrize("mode", ["terminate", "passthrough"])
def test_nothing_of_the_template_is_left(mode: str) -> None:
    text = configuration(harbor(mode=mode), "harbor.pem")
    assert "$" not in text
    assert "#[" not in text
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_the_node_ports_are_those_of_expose() -> None:
    moved = replace(harbor(), expose=Expose(http_port=31002, https_port=31003))
    assert "10.0.0.1:31002 check" in configuration(moved, "x.pem")
    passing = replace(harbor(mode="passthrough"), expose=Expose(http_port=31002, https_port=31003))
    assert "10.0.0.1:31003 check" in configuration(passing, "x.pem")


@pytest.mark.parametrize(("key", "frontend"), [("redirect", "redirect"), ("stats", "stats")])
def test_what_is_empty_is_left_out(key: str, frontend: str) -> None:
    assert f"frontend {frontend}" in configuration(harbor(), "x.pem")
    assert f"frontend {frontend}" not in configuration(harbor(**{key: ""}), "x.pem")


def test_ipv6_is_bracketed_and_names_are_unique() -> None:
    site = harbor(
        "https://[FD00::A]:8443",
        nodes=("fd00:0::1", "[fd00::2]", "Node-3.site"),
        listen="[::]:443",
        stats="[::1]:8404",
    )
    text = configuration(site, "x.pem")
    assert lines(text, "server") == [
        "server fd00::1 [fd00::1]:30002 check",
        "server fd00::2 [fd00::2]:30002 check",
        "server node-3.site node-3.site:30002 check",
    ]
    assert [line.split(" ")[1] for line in lines(text, "bind")] == [
        "[::]:443",
        "0.0.0.0:80",
        "[::1]:8404",
    ]
    assert "redirect prefix https://[fd00::a]:8443 code 308" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": ()}, "none is given"),
        ({"nodes": ("10.0.0.1", "10.0.0.1")}, "twice"),
        ({"nodes": ("fd00::1", "[fd00:0:0::1]")}, "twice"),
        ({"nodes": ("A.site", "a.site")}, "twice"),
        ({"nodes": ("10.0.0.300",)}, "neither a host name"),
        ({"nodes": ("10.0.0.1:30002",)}, "neither a host name"),
        ({"nodes": ("fe80::1%eth0",)}, "neither a host name"),
        ({"nodes": ("",)}, "neither a host name"),
        ({"nodes": ("unix@/run/docker.sock",)}, "neither a host name"),
        ({"listen": "fd@3:443"}, "not a host:port"),
        ({"listen": "a,b:443"}, "neither a host name"),
        ({"listen": "${HOME}:443"}, "neither a host name"),
        ({"listen": "10.0.0.1"}, "not a host:port"),
        ({"listen": "0.0.0.0:443 user root"}, "not a host:port"),
        ({"stats": "0.0.0.0:443"}, "listen and stats have the same port"),
        ({"redirect": "127.0.0.1:8404"}, "redirect and stats have the same port"),
    ],
)
def test_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)) as caught:
        configuration(harbor(**changes), "x.pem")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "url",
    [
        "http://harbor.site",
        "harbor.site",
        "https://",
        "https://harbor.site/path",
        "https://harbor.site?x",
        "https://user@harbor.site",
        "https://harbor.site:0",
        "https://harbor.site:443:443",
        "https://harbor.site%[src]",
        "https://harbor.site code 301",
        "https://[fd00::1",
    ],
)
def test_url_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        configuration(harbor(url), "x.pem")


@pytest.mark.parametrize(
    "path", ["", "a b.pem", "a\nb.pem", "a\u2028b", "a#b", "$HOME/a", "a\\b", "'a", 'a"', "a\udc80"]
)
def test_certificate_path_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="can't hold the path"):
        configuration(harbor(), path)


def test_without_a_load_balancer() -> None:
    with pytest.raises(InvalidInput, match="loadBalancer"):
        configuration(Harbor(external_url="https://harbor.site"), "x.pem")


NASTY = st.text(
    st.one_of(st.sampled_from("\n\r\t \\\"'#$%{}[]()@,;:/*=\0\x85\u2028aZ09.-"), st.characters()),
    max_size=12,
)

SAFE = re.compile(r"[a-z0-9.:/\[\]-]+\Z")


@given(
    prefix=st.sampled_from(["", "10.0.0.1", "node", "[fd00::1]", "127.0.0.1:8500", "https://h"]),
    nasty=NASTY,
    suffix=st.sampled_from(["", ":8501", ".site", "\n    stats admin if TRUE"]),
    key=st.sampled_from(["nodes", "listen", "redirect", "stats", "url", "file"]),
)
def test_nothing_breaks_out_of_its_line(prefix: str, nasty: str, suffix: str, key: str) -> None:
    value = prefix + nasty + suffix
    changes: dict[str, Any] = {}
    if key == "nodes":
        changes["nodes"] = (value,)
    elif key in ("listen", "redirect", "stats"):
        changes[key] = value
    site = harbor(value, **changes) if key == "url" else harbor(**changes)
    plain = harbor(**({key: ""} if changes and not value else {}))
    try:
        text = configuration(site, value if key == "file" else "x.pem")
    except InvalidInput:
        return
    expected = configuration(plain, "x.pem").splitlines()
    if key == "nodes":
        del expected[next(i for i, line in enumerate(expected) if " 10.0.0.2 " in line)]
    found = text.splitlines()
    assert len(found) == len(expected)
    for one, other in zip(map(str.split, found), map(str.split, expected), strict=True):
        assert len(one) == len(other)
        for word, plain_word in zip(one, other, strict=True):
            assert word == plain_word or key == "file" or SAFE.match(word)


# ---- the step, as far as it needs neither HAProxy nor systemd


def step(folder: Path, tls: bytes | None = PEM, key: str = "harbor/harbor", **changes: Any) -> Any:
    changes = {"file": str(folder / "haproxy.cfg"), "service": False, **changes}
    return InstallHAProxy(harbor(**changes), key, lambda: tls)


@pytest.fixture
def _no_haproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr("installer.environment._PATH", str(empty))


@pytest.mark.usefixtures("_no_haproxy")
def test_files_for_another_machine(tmp_path: Path) -> None:
    made = step(tmp_path)
    assert made.name == "loadbalancer:harbor/harbor"
    made.preflight()
    assert not made.check()
    note = made.apply()
    assert "not installed here" in note
    assert "belong into one folder" in note
    assert made.check()
    pem = tmp_path / "harbor-harbor-harbor.pem"
    assert pem.read_bytes() == PEM
    assert pem.stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "haproxy.cfg").read_text()
    assert text.startswith("# harbor-airgap harbor/harbor: ")
    assert " crt harbor-harbor-harbor.pem " in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "haproxy.cfg", pem.name]
    pem.write_bytes(b"other")
    assert not made.check()


@pytest.mark.usefixtures("_no_haproxy")
def test_certificate_not_made_yet(tmp_path: Path) -> None:
    made = step(tmp_path, tls=None)
    made.preflight()
    assert not made.check()
    with pytest.raises(DeploymentFailed, match="no certificate"):
        made.apply()
    assert not (tmp_path / "haproxy.cfg").exists()


@pytest.mark.usefixtures("_no_haproxy")
def test_passthrough_leaves_no_key_behind(tmp_path: Path) -> None:
    step(tmp_path).apply()
    made = step(tmp_path, tls=None, mode="passthrough")
    assert not made.check()
    note = made.apply()
    assert "private key" not in note
    assert made.check()
    assert not (tmp_path / "harbor-harbor-harbor.pem").exists()


@pytest.mark.usefixtures("_no_haproxy")
def test_a_foreign_file_is_kept_each_time(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("global\n    # by hand\n")
    file.chmod(0o640)
    made = step(tmp_path)
    assert "kept as haproxy.cfg.before-harbor-airgap" in made.sentence
    made.preflight()
    assert "haproxy.cfg.before-harbor-airgap" in made.apply()
    assert "is kept as" not in made.sentence
    kept = tmp_path / "haproxy.cfg.before-harbor-airgap"
    assert kept.read_text() == "global\n    # by hand\n"
    assert kept.stat().st_mode & 0o777 == 0o640
    made = step(tmp_path, stats="")
    assert "before-harbor-airgap" not in made.apply()  # ours is no foreign one
    file.write_text("other\n")
    assert "before-harbor-airgap-2" in made.apply()
    assert kept.read_text() == "global\n    # by hand\n"
    file.write_text("other\n")
    made.apply()
    assert not (tmp_path / "haproxy.cfg.before-harbor-airgap-3").exists()


@pytest.mark.usefixtures("_no_haproxy")
def test_another_releases_file_is_refused(tmp_path: Path) -> None:
    step(tmp_path).apply()
    with pytest.raises(PreflightFailed, match="load balancer of release harbor/harbor"):
        step(tmp_path, key="second/harbor").preflight()
    step(tmp_path).preflight()


@pytest.mark.usefixtures("_no_haproxy")
def test_a_run_that_ended_before_the_reload_is_not_done(tmp_path: Path) -> None:
    made = step(tmp_path)
    made.apply()
    assert made.check()
    (tmp_path / ".haproxy.cfg.before-harbor-airgap.pending").touch()
    assert not made.check()
    made.apply()
    assert made.check()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("global\n")
    (tmp_path / "haproxy.cfg").symlink_to(tmp_path / "real")
    with pytest.raises(InvalidInput, match=r"haproxy\.cfg"):
        step(tmp_path).preflight()


def test_what_can_not_be_written_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        step(tmp_path, nodes=("a b",), service=True).preflight()
