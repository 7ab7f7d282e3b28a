"""Steps one by one, on real files, processes and sockets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from installer.bundle.digest import Digest
from installer.bundle.manifest import Chart
from installer.bundle.trust import TrustAnchor
from installer.deploy import daemon, systemd
from installer.deploy.charts import find_chart, profile_values
from installer.deploy.deployment import VerifyContent
from installer.deploy.images import SiteImages, accepted_ids
from installer.deploy.kubectl import Kubectl
from installer.deploy.nodes import TellNodes, hosts_toml
from installer.deploy.seed import ServeBundle
from installer.deploy.tools import Toolbox
from installer.errors import Corrupt, DeploymentFailed, InvalidInput, PreflightFailed
from installer.helm.images import FoundImage, Origin
from installer.oci.platforms import own_platform
from installer.oci.reference import Reference
from installer.site.model import Cluster, Nodes, Push, Release, Seed, Serve, Site
from installer.site.state import State
from tests.bundles import damage, make_bundle, open_bundle
from tests.upstream.images import Content, artefact, image, index, layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle

pytestmark = pytest.mark.skipif(own_platform() != "linux/amd64", reason="test tools are amd64's")

CORE = image([layer(2000, "core")])
MANY = index([image([layer(10, "m")], platform=p) for p in ("linux/amd64", "linux/arm64")])
HELM = b"#!/bin/sh\necho helm\n"
KUBECTL = b"#!/bin/sh\necho kubectl\n"


def tool(content: bytes) -> Any:
    return artefact(Content("application/json", b"{}"), [Content("application/x", content)])


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[VerifiedBundle]:
    path, pem = make_bundle(
        tmp_path / "b.tar",
        {"docker.io/goharbor/harbor-core:v1": CORE, "quay.io/x/many:2": MANY},
        tools={"helm": tool(HELM), "kubectl": tool(KUBECTL)},
    )
    with open_bundle(path, pem) as opened:
        yield opened


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def site(seed: Seed, certs: str = "") -> Site:
    return Site("site/v1", "Site", "s", Cluster("k"), seed, (), nodes=Nodes(certs))


# Tools


def test_tools_appear_private_and_executable(bundle: VerifiedBundle, tmp_path: Path) -> None:
    box = Toolbox(bundle, tmp_path / "tools")
    assert not box.check()
    box.apply()
    assert box.check()
    assert box.helm.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "tools").stat().st_mode & 0o777 == 0o700
    assert subprocess.run([box.kubectl], capture_output=True, check=True).stdout == b"kubectl\n"


@pytest.mark.parametrize("harm", ["bytes", "mode", "link", "gone"])
def test_a_tool_that_was_touched_is_copied_again(
    bundle: VerifiedBundle, tmp_path: Path, harm: str
) -> None:
    box = Toolbox(bundle, tmp_path / "tools")
    box.apply()
    if harm == "bytes":
        box.helm.write_bytes(HELM.replace(b"helm", b"evil"))
    elif harm == "mode":
        box.helm.chmod(0o777)
    else:
        box.helm.unlink()
        if harm == "link":
            box.helm.symlink_to(box.kubectl)
    assert not box.check()
    box.apply()
    assert box.check()
    assert box.helm.read_bytes() == HELM
    assert box.kubectl.read_bytes() == KUBECTL


def test_a_tool_whose_digest_differs_never_appears(bundle: VerifiedBundle, tmp_path: Path) -> None:
    damage(bundle.path, bundle, str(Digest.of(HELM)))
    box = Toolbox(bundle, tmp_path / "tools")
    with pytest.raises(Corrupt):
        box.apply()
    assert list((tmp_path / "tools").iterdir()) == []


def test_a_bundle_without_kubectl_is_refused(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "b.tar", {}, tools={"helm": tool(HELM)})
    with open_bundle(path, pem) as opened, pytest.raises(PreflightFailed, match="no kubectl"):
        Toolbox(opened, tmp_path)


# Content


def test_content_is_checked_once_for_a_file(bundle: VerifiedBundle, state: State) -> None:
    step = VerifyContent(bundle, state)
    assert not step.check()
    step.apply()
    assert step.check()
    os.utime(bundle.path)
    assert not step.check()


def test_damage_anywhere_stops_before_anything(bundle: VerifiedBundle, state: State) -> None:
    damage(bundle.path, bundle, CORE.blobs[-1].digest, at=100)
    with pytest.raises(Corrupt, match="1 members"):
        VerifyContent(bundle, state).apply()


# Images


@pytest.mark.parametrize("prefix", ["seed:5000", "reg.site/a/b"])
def test_an_image_keeps_its_path_and_tag_at_the_site(bundle: VerifiedBundle, prefix: str) -> None:
    images = SiteImages(bundle.manifest, prefix)
    for text in ("goharbor/harbor-core:v1", "docker.io/goharbor/harbor-core:v1"):
        target = images.target(Reference.parse(text))
        assert str(target) == f"{prefix}/goharbor/harbor-core:v1@{CORE.digest}"
        assert target is not None
        assert images.carried(target)
    by_digest = images.target(Reference.parse(f"quay.io/x/many@{MANY.digest}"))
    assert by_digest is not None
    assert by_digest.tag == "2"


@pytest.mark.parametrize(
    "text",
    ["goharbor/harbor-core:v2", "ghcr.io/goharbor/harbor-core:v1", "goharbor/harbor-core",
     f"goharbor/harbor-core:v1@sha256:{'0' * 64}"],
)  # fmt: skip
def test_an_image_that_is_not_carried_has_no_place(bundle: VerifiedBundle, text: str) -> None:
    assert SiteImages(bundle.manifest, "seed:5000").target(Reference.parse(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "docker.io/goharbor/harbor-core:v1",
        "seed:5000/goharbor/harbor-core:v1",  # no digest: somebody may move the tag
        f"seed:5000/goharbor/harbor-core:v1@sha256:{'0' * 64}",
        f"seed:5000/goharbor/other:v1@{CORE.digest}",
        f"other:5000/goharbor/harbor-core:v1@{CORE.digest}",
    ],
)
def test_every_rendered_image_must_be_the_bundles_at_the_seed(
    bundle: VerifiedBundle, text: str
) -> None:
    found = FoundImage(Reference.parse(text), text, Origin("Job", "j", "", "spec.image"))
    with pytest.raises(PreflightFailed) as caught:
        SiteImages(bundle.manifest, "seed:5000").check([found], "h/h")
    assert text in caught.value.message
    assert "Job/j spec.image" in caught.value.message


def test_a_node_may_report_index_manifest_or_config(bundle: VerifiedBundle) -> None:
    accepted = accepted_ids(bundle)
    for content in (MANY.top, *MANY.manifests, CORE.top, CORE.blobs[0]):
        assert content.digest.removeprefix("sha256:") in accepted
    assert CORE.blobs[-1].digest.removeprefix("sha256:") not in accepted


# Nodes


def test_nothing_in_hosts_toml_leads_elsewhere() -> None:
    text = hosts_toml("10.0.0.5:5000", tls=True, ca=True)
    assert text == (
        'server = "https://10.0.0.5:5000"\n\n[host."https://10.0.0.5:5000"]\n'
        '  capabilities = ["pull", "resolve"]\n  ca = "ca.crt"\n'
    )
    assert "http://r" in hosts_toml("r", tls=False, ca=False)


def test_a_node_is_told_in_place(tmp_path: Path, state: State) -> None:
    (tmp_path / "certs.d").mkdir()
    where = site(Seed(serve=Serve("0.0.0.0:5000", "10.0.0.5:5000")), str(tmp_path / "certs.d"))
    step = TellNodes(where, state, lambda: b"PEM")
    assert not step.check()
    assert step.apply() == ""
    assert step.check()
    folder = tmp_path / "certs.d" / "10.0.0.5:5000"
    assert (folder / "ca.crt").read_bytes() == b"PEM"
    assert (folder / "hosts.toml").stat().st_mode & 0o777 == 0o644
    (folder / "hosts.toml").write_text("")
    assert not step.check()


def test_from_another_machine_a_person_is_told(state: State) -> None:
    where = site(Seed(push=Push("reg.site:5000/x", plain_http=True)))
    step = TellNodes(where, state, lambda: None)
    assert not step.check()
    assert "copy the folder" in step.apply()
    assert step.check()
    text = (state.folder / "nodes" / "reg.site:5000" / "hosts.toml").read_text()
    assert text.startswith('server = "http://reg.site:5000"')


def test_a_certs_folder_that_is_not_there_is_not_invented(tmp_path: Path, state: State) -> None:
    where = site(Seed(serve=Serve("h:1", "h:1", tls=False)), str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="no such folder"):
        TellNodes(where, state, lambda: None).apply()


# Background processes

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_a_process_is_found_again_and_ended(tmp_path: Path) -> None:
    pid_file, log = tmp_path / "pid", tmp_path / "log"
    process = daemon.start(SLEEP, log, pid_file)
    assert daemon.running(pid_file) == process
    assert os.getsid(process.pid) == process.pid
    assert log.stat().st_mode & 0o777 == 0o600
    daemon.stop(pid_file)
    assert daemon.running(pid_file) is None
    daemon.stop(pid_file)


@pytest.mark.parametrize("field", ["start", "boot"])
def test_another_process_with_its_id_is_not_mistaken_nor_killed(tmp_path: Path, field: str) -> None:
    pid_file = tmp_path / "pid"
    process = daemon.start(SLEEP, tmp_path / "log", pid_file)
    real = pid_file.read_bytes()
    try:
        pid_file.write_bytes(msgspec.json.encode(json.loads(real) | {field: "1"}))
        assert daemon.running(pid_file) is None
        daemon.stop(pid_file)
        os.kill(process.pid, 0)
    finally:
        pid_file.write_bytes(real)
        daemon.stop(pid_file)


def test_a_process_in_the_background_sees_nothing_of_the_operators_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLER_PASSPHRASE", "geheim")
    process = daemon.start(SLEEP, tmp_path / "log", tmp_path / "pid")
    try:
        while daemon.last_words(tmp_path / "log") != "up":
            time.sleep(0.05)
        environment = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
        assert {line.partition("=")[0] for line in environment} <= {"HOME", "PATH", "LC_ALL", ""}
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path("/")
    finally:
        daemon.stop(tmp_path / "pid")


def test_kubectl_sees_nothing_of_the_operators_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.office:3128")
    monkeypatch.setenv("KUBECONFIG", "/elsewhere")
    binary = tmp_path / "kubectl"
    binary.write_text("#!/bin/sh\nenv\n")
    binary.chmod(0o700)
    said = Kubectl(binary, Cluster("k"), tmp_path / "cache").run("version")
    assert f"HOME={tmp_path / 'cache'}" in said
    assert "PROXY" not in said
    assert "KUBECONFIG" not in said


def test_a_kubectl_that_cannot_be_executed_is_not_taken_for_a_silent_cluster(
    tmp_path: Path,
) -> None:
    (tmp_path / "kubectl").touch(mode=0o600)
    with pytest.raises(PreflightFailed, match="can't be executed: Permission denied") as caught:
        Kubectl(tmp_path / "kubectl", Cluster("k"), tmp_path / "cache").run("version")
    assert "noexec" in caught.value.hint


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_GRACE", 0.5)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)"]
    daemon.start(command, tmp_path / "log", tmp_path / "pid")
    while daemon.last_words(tmp_path / "log") != "up":
        time.sleep(0.05)
    daemon.stop(tmp_path / "pid")
    assert daemon.running(tmp_path / "pid") is None


def test_programs_that_a_killed_installer_left_are_ended(tmp_path: Path) -> None:
    binary = tmp_path / "helm"
    binary.write_bytes(_sleep().read_bytes())
    binary.chmod(0o700)
    ours, elsewhere = ({"HOME": str(tmp_path / name)} for name in ("work", "passing"))
    with (
        subprocess.Popen([binary, "60"], env=ours) as left,
        subprocess.Popen([binary, "60"], env=elsewhere) as looks,
        subprocess.Popen([_sleep(), "60"], env=ours) as other,
    ):
        try:
            time.sleep(0.2)
            daemon.end_programs(binary, tmp_path / "work")
            assert left.wait(5) == -signal.SIGTERM
            assert other.poll() is None
            assert looks.poll() is None
        finally:
            other.kill()
            looks.kill()


def test_a_program_that_nothing_ends_is_told_instead_of_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "helm"
    binary.write_bytes(_sleep().read_bytes())
    binary.chmod(0o700)
    sent = []
    with subprocess.Popen([binary, "60"], env={"HOME": str(tmp_path)}) as left:
        time.sleep(0.2)
        # A process in the state D can't be had in a test: signals that never arrive are like it.
        with monkeypatch.context() as patched:
            patched.setattr(daemon, "_GRACE", 0.5)
            patched.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
            with pytest.raises(DeploymentFailed, match=f"helm: process {left.pid} of an earlier"):
                daemon.end_programs(binary, tmp_path)
        left.kill()
    assert {(left.pid, signal.SIGTERM), (left.pid, signal.SIGKILL)} == set(sent)


def _sleep() -> Path:
    return Path(shutil.which("sleep") or "/bin/sleep").resolve()


def test_a_seed_that_cannot_start_says_why(bundle: VerifiedBundle, state: State) -> None:
    serve = Serve("127.0.0.1:1", "127.0.0.1:1", tls=False, service="none")
    command = (sys.executable, "-c", "raise SystemExit('port is taken')")
    step = ServeBundle(
        site(Seed(serve=serve)),
        serve,
        state,
        bundle,
        command=command,
        key=TrustAnchor(b"K", "k.pub"),
    )
    assert not step.check()
    with pytest.raises(DeploymentFailed, match=r"ended at \S+\n  port is taken"):
        step.apply()


def test_the_unit_takes_every_argument_as_it_is() -> None:
    command = ["/usr/bin/python", "-m", "installer", "serve", '/mnt/a b/50%"$x\\.tar']
    text = systemd.unit_text("plant-7", command)
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert line.endswith('"serve" "/mnt/a b/50%%\\"$$x\\\\.tar"')
    assert "WantedBy=multi-user.target" in text
    assert "\nCacheDirectory=harbor-airgap\nCacheDirectoryMode=0700\n" in text
    assert systemd.unit_name("plant-7") == "harbor-airgap-plant-7.service"


@pytest.mark.parametrize("word", ["/mnt/a\nExecStartPre=/bin/sh", "/mnt/\x1b[2J", "/mnt/\udcff"])
def test_a_path_that_would_add_lines_to_the_unit_is_refused(
    bundle: VerifiedBundle, state: State, word: str
) -> None:
    with pytest.raises(InvalidInput, match="can't hold the argument"):
        systemd.unit_text("plant-7", ["/usr/bin/python", word])
    serve = Serve("127.0.0.1:1", "127.0.0.1:1", tls=False, service="systemd")
    step = ServeBundle(
        site(Seed(serve=serve)),
        serve,
        state,
        bundle,
        command=(word,),
        key=TrustAnchor(b"K", "k.pub"),
    )
    with pytest.raises(InvalidInput, match="can't hold the argument"):
        step.preflight()


# Charts and profiles


def chart(version: str, **profiles: dict[str, Any]) -> Chart:
    return Chart(
        digest=str(Digest.of(b"")), media_type="m", manifest_size=1, name="harbor",
        version=version, app_version="1", source="s", sha256="0" * 64, size=1, profiles=profiles,
    )  # fmt: skip


def test_a_chart_is_found_by_name_and_if_need_be_version(bundle: VerifiedBundle) -> None:
    two = msgspec.structs.replace(bundle.manifest, charts=(chart("1.0.0"), chart("2.0.0")))
    assert find_chart(two, Release("harbor", "2.0.0")).version == "2.0.0"
    with pytest.raises(InvalidInput, match="several versions") as caught:
        find_chart(two, Release("harbor"))
    assert "1.0.0, 2.0.0" in caught.value.hint
    with pytest.raises(InvalidInput, match="no version 3") as caught:
        find_chart(two, Release("harbor", "3"))
    with pytest.raises(InvalidInput, match="no chart") as caught:
        find_chart(two, Release("habor"))
    assert "'harbor'" in caught.value.hint


def test_a_profile_is_found_or_suggested() -> None:
    entry = chart("1.0.0", default={"a": 1}, metrics={"b": 2})
    assert profile_values(entry, Release("harbor")) == {"a": 1}
    assert profile_values(entry, Release("harbor", profile="metrics")) == {"b": 2}
    assert profile_values(chart("1.0.0"), Release("harbor")) == {}
    with pytest.raises(InvalidInput) as caught:
        profile_values(entry, Release("harbor", profile="metric"))
    assert "'metrics'" in caught.value.hint
