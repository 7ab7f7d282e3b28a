from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from installer.errors import InvalidInput
from installer.site.model import read_site
from installer.site.section import split_address

MINIMAL = Path(__file__).parents[2] / "manifests" / "sites" / "minimal.yaml"


def site(tmp_path: Path, **changes: Any) -> Path:
    document = yaml.safe_load(MINIMAL.read_text()) | changes
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


def harbor(**changes: Any) -> dict[str, Any]:
    return {"chart": "harbor", "harbor": {"externalURL": "http://h.test:30002"}} | changes


def test_the_minimal_example_is_a_site() -> None:
    found = read_site(MINIMAL)
    assert found.image_prefix == "10.55.0.1:5000"
    assert found.releases[0].key == "harbor/harbor"
    assert found.seed.serve is not None
    assert found.seed.serve.tls


def test_the_commented_keys_of_the_example_exist(tmp_path: Path) -> None:
    text = MINIMAL.read_text()
    for comment in (
        "# channel:", "# context:", "# tls:", "# service:", "# profile:", "# timeout:", "# ca: ./h"
    ):  # fmt: skip
        assert comment in text
        text = text.replace(comment, comment.removeprefix("# "))
    path = tmp_path / "site.yaml"
    path.write_text(text)
    found = read_site(path)
    assert found.channel == "stable"
    assert found.cluster.context == "admin"
    assert found.releases[0].timeout == 900
    assert found.releases[0].harbor is not None
    assert found.releases[0].harbor.ca == str(tmp_path / "harbor-ca.pem")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    path = site(
        tmp_path,
        cluster={"kubeconfig": "admin.conf"},
        seed={"push": {"registry": "r:5000/x", "ca": "ca.pem", "username": "u",
                       "passwordFile": "p"}},
        nodes={"containerdCertsDir": "certs.d"},
    )  # fmt: skip
    found = read_site(path)
    assert found.cluster.kubeconfig == str(tmp_path / "admin.conf")
    assert found.seed.push is not None
    assert found.seed.push.ca == str(tmp_path / "ca.pem")
    assert found.seed.push.password_file == str(tmp_path / "p")
    assert found.nodes.containerd_certs_dir == str(tmp_path / "certs.d")
    assert found.image_prefix == "r:5000/x"


SERVE = {"listen": "0.0.0.0:5000", "address": "10.0.0.5:5000"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "Bundle"}, "expected Site"),
        ({"releaes": []}, "did you mean 'releases'"),
        ({"name": "Plant 7"}, "is not a name"),
        ({"seed": {}}, "exactly one of serve and push"),
        ({"seed": {"serve": SERVE, "push": {"registry": "r:1"}}}, "exactly one"),
        ({"seed": {"serve": SERVE | {"address": "10.0.0.5"}}}, "address: not a host:port"),
        ({"seed": {"serve": SERVE | {"listen": "0.0.0.0:99999"}}}, "listen: not a host:port"),
        ({"seed": {"serve": SERVE | {"address": "http://x:5000"}}}, "not a host:port"),
        ({"seed": {"push": {"registry": "https://r:5000"}}}, "registry:"),
        ({"seed": {"push": {"registry": "r:5000/UP"}}}, "registry:"),
        ({"seed": {"push": {"registry": "r:5000", "username": "u"}}}, "belong together"),
        ({"cluster": {"kubeconfig": ""}}, "kubeconfig: it is empty"),
        ({"cluster": None}, "'cluster' is missing"),
        ({"releases": []}, "nothing to install"),
        ({"releases": [{"chart": "harbor"}]}, "the section harbor is missing"),
        ({"releases": [harbor(), harbor()]}, "is there twice"),
        ({"releases": [harbor(timeout=0)]}, "seconds, above 0"),
        ({"releases": [harbor(namespace="a/b")]}, "is not a name"),
        ({"releases": [harbor(harbor={"externalURL": "h.test"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalURL": "https://h/x"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalURL": "https://u:p@h"})]}, "not the URL of a host"),
        ({"releases": [harbor(harbor={"externalUrl": "https://h"})]}, "'externalURL'"),
    ],
)
def test_what_cannot_work_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = site(tmp_path, **changes)
    with pytest.raises(InvalidInput) as caught:
        read_site(path)
    assert words in caught.value.message + caught.value.hint
    assert caught.value.message.startswith(f"{path}:")


def test_an_ipv6_address_is_one() -> None:
    assert split_address("[fd00::5]:5000") == ("fd00::5", 5000)


def test_a_missing_file_points_to_an_example(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_site(tmp_path / "none.yaml")
    assert "minimal.yaml" in caught.value.hint
