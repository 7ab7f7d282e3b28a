"""Packaged charts read in memory: what they say, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from installer.errors import InvalidInput
from installer.helm.chart import MAX_CHART_BYTES, MAX_FILE_BYTES, ChartArchive

CHARTS = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared") / "charts"
CHART = "apiVersion: v2\nname: demo\nversion: 1.0.0\n"


def member(name: str, content: bytes | str = b"") -> tuple[tarfile.TarInfo, bytes]:
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def chart(**files: str) -> bytes:
    """A chart; ``values_yaml="…"`` is its file values.yaml, ``__`` a slash."""
    named = {key.replace("__", "/").replace("_yaml", ".yaml"): text for key, text in files.items()}
    named = {"Chart.yaml": CHART} | named
    return packed(*(member(f"demo/{name}", text) for name, text in named.items()))


def test_what_a_chart_says() -> None:
    data = chart(
        Chart_yaml=CHART + "appVersion: '2.1'\nkubeVersion: '>= 1.20-0 & < 2'\n",
        values_yaml="a: {b: 1}\n# c: 2\na2: 2001-01-01\n",
    )
    read = ChartArchive.read(data)
    assert (read.name, read.version, read.app_version) == ("demo", "1.0.0", "2.1")
    assert (read.kube_version, read.type) == (">= 1.20-0 & < 2", "application")
    assert read.values == {"a": {"b": 1}, "a2": "2001-01-01"}
    assert read.commented == {("c",)}


def test_the_config_is_what_helm_writes() -> None:
    text = CHART + (
        "type: application\nkubeVersion: '>=1 <2&'\nappVersion: 2\nkeywords: []\nunknown: x\n"
        "annotations: {b: '1', a: x}\nmaintainers: [{url: u, name: n}]\ndescription: é\n"
        "dependencies: [{name: d, version: '1', alias: e, import-values: [x]}]\n"
    )
    assert ChartArchive.read(chart(Chart_yaml=text)).config.decode() == (
        '{"name":"demo","version":"1.0.0","description":"é","maintainers":[{"name":"n","url":"u"}],'
        '"apiVersion":"v2","appVersion":"2","annotations":{"a":"x","b":"1"},'
        '"kubeVersion":"\\u003e=1 \\u003c2\\u0026",'
        '"dependencies":[{"name":"d","version":"1","repository":"","import-values":["x"],'
        '"alias":"e"}],"type":"application"}'
    )


def test_values_of_subcharts_lie_below_alias_or_name() -> None:
    sub = "apiVersion: v2\nname: {}\nversion: 1.0.0\n"
    data = chart(
        Chart_yaml=CHART
        + "dependencies: [{name: db, alias: one}, {name: db, alias: two}, {name: web}]\n",
        values_yaml="one: {port: 1}\nglobal: {a: 1}\n",
        charts__db__Chart_yaml=sub.format("db"),
        charts__db__values_yaml="port: 5432\nimage: {tag: x}\nglobal: {b: 2}\n# option: 1\n",
        charts__db__charts__deep__Chart_yaml=sub.format("deep"),
        charts__db__charts__deep__values_yaml="z: 1\n",
        charts__web__Chart_yaml=sub.format("web"),
        charts___ignored__Chart_yaml="broken: [",
    )
    read = ChartArchive.read(data)
    deep = {"z": 1}
    assert read.values["one"]["port"] == 1
    assert read.values["two"] == {
        "port": 5432,
        "image": {"tag": "x"},
        "global": {"b": 2},
        "deep": deep,
        "tags": {},
    }
    assert read.values["web"] == {}
    assert read.values["global"] == {"a": 1, "b": 2}
    assert ("two", "option") in read.commented


def test_packed_subcharts_and_old_requirements() -> None:
    inner = packed(
        member("db/Chart.yaml", "name: db\nversion: 1\n"), member("db/values.yaml", "p: 1")
    )
    data = packed(
        member("demo/Chart.yaml", "apiVersion: v1\nname: demo\nversion: 1.0.0\n"),
        member("demo/requirements.yaml", "dependencies: [{name: db, alias: x}]\n"),
        member("demo/charts/db-1.tgz", inner),
    )
    read = ChartArchive.read(data)
    assert read.values["x"] == {"p": 1}
    assert json.loads(read.config)["dependencies"] == [
        {"name": "db", "repository": "", "alias": "x"}
    ]


def link(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


GOOD = member("demo/Chart.yaml", CHART)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a packaged chart"),
        (b"no gzip", "not a packaged chart"),
        (gzip.compress(b"no tar" * 100), "not a packaged chart"),
        (packed(GOOD)[:-20], "not a packaged chart"),
        (packed(), "no Chart.yaml"),
        (packed(member("demo/values.yaml", "a: 1")), "no Chart.yaml"),
        (packed(member("demo/Chart.yaml", "version: 1\n")), "has no 'name'"),
        (packed(member("demo/Chart.yaml", "[]")), "expected a map"),
        (packed(member("demo/Chart.yaml", "a: [")), "Chart.yaml:"),
        (packed(member("demo/Chart.yaml", b"\xff")), "not UTF-8"),
        (packed(GOOD, GOOD), "is there twice"),
        (packed(GOOD, member("/etc/passwd", "x")), "unsafe path"),
        (packed(GOOD, member("demo/../../x", "x")), "unsafe path"),
        (packed(GOOD, member("demo\\..\\x", "x")), "unsafe path"),
        (packed(GOOD, link("demo/a", tarfile.SYMTYPE)), "is a link, a device or sparse"),
        (packed(GOOD, link("demo/a", tarfile.LNKTYPE)), "is a link, a device or sparse"),
        (packed(GOOD, link("demo/a", tarfile.FIFOTYPE)), "is a link, a device or sparse"),
        (packed(GOOD, member("demo/big", b"\0" * (MAX_FILE_BYTES + 1))), "has over"),
        (gzip.compress(b"\0" * (MAX_CHART_BYTES + 1), 1), "unpacks to more than"),
        (b"\0" * (20 * 1024 * 1024 + 1), "larger than"),
    ],
    # Not the bytes: gzip writes the time into them.
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=r"bad\.tgz") as caught:
        ChartArchive.read(data, "bad.tgz")
    assert message in caught.value.message


def test_charts_packed_in_each_other_without_end() -> None:
    data = packed(GOOD)
    for _ in range(7):
        data = packed(GOOD, member("demo/charts/x.tgz", data))
    with pytest.raises(InvalidInput, match="nested deeper"):
        ChartArchive.read(data)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no such file"):
        ChartArchive.read(tmp_path / "x.tgz")


@pytest.mark.parametrize(
    ("file", "name", "version", "app"),
    [
        ("harbor-1.19.1", "harbor", "1.19.1", "2.15.1"),
        ("harbor-1.18.4", "harbor", "1.18.4", "2.14.4"),
        ("cert-manager-v1.21.1", "cert-manager", "v1.21.1", "v1.21.1"),
        ("vault-0.34.1", "vault", "0.34.1", "2.0.4"),
        ("csi-driver-nfs-4.13.4", "csi-driver-nfs", "4.13.4", "4.13.4"),
    ],
)
def test_published_charts(file: str, name: str, version: str, app: str) -> None:
    path = CHARTS / f"{file}.tgz"
    if not path.exists():
        pytest.skip(f"{path} is not there: set AIRGAP_SHARED to the folder with the charts")
    read = ChartArchive.read(path)
    assert (read.name, read.version, read.app_version) == (name, version, app)
    assert read.values
