"""What an export lets Harbor do, asked of a real NFS server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from installer.deploy.nfs import Export, NfsRefused, check_export, examine_export
from installer.harbor.values import OWNERS
from installer.site.harbor import Nfs
from tests import programs
from tests.integration.ganesha import ganesha

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from installer.deploy.preflight.verdict import Check
    from tests.integration.ganesha import NfsServer

    Serve = Callable[..., NfsServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    with ExitStack() as stack:

        def start(**options: str) -> NfsServer:
            try:
                return stack.enter_context(ganesha(folder, **options))
            except programs.ProgramMissing as missing:
                pytest.skip(str(missing))

        yield start


def make(folder: Path, owners: dict[str, int]) -> None:
    for name, owner in owners.items():
        (folder / name).mkdir()
        os.chown(folder / name, owner, owner)


def look(server: NfsServer, minor: int = 1, path: str = "") -> Export:
    return examine_export("127.0.0.1", server.port, path or server.path, OWNERS, minor=minor)


def judge(server: NfsServer, *, here: bool = True, size: str = "1Mi", path: str = "") -> Check:
    nfs = Nfs(server="127.0.0.1", path=path or server.path, size=size)
    return check_export("NFS", nfs, server.port, 1, here=here)


@pytest.mark.parametrize("minor", [0, 1, 2])
def test_folders_owners_and_space_are_the_servers(serve: Serve, minor: int) -> None:
    server = serve()
    make(server.folder, {"registry": 10000, "redis": 0})
    found = look(server, minor)
    assert found.root_writes
    assert found.folders.keys() == {"registry", "redis"}
    assert found.folders["registry"].belongs_to(10000)
    assert found.folders["registry"].writable
    assert not found.folders["redis"].belongs_to(999)
    assert not found.folders["redis"].writable
    free = os.statvfs(server.folder)
    assert found.available == pytest.approx(free.f_bavail * free.f_frsize, rel=0.1)


def test_nothing_is_left_behind_on_the_export(serve: Serve) -> None:
    server = serve()
    make(server.folder, {"registry": 10000})
    before = [(entry.name, entry.stat()) for entry in os.scandir(server.folder)]
    look(server)
    assert [(entry.name, entry.stat()) for entry in os.scandir(server.folder)] == before


def test_an_empty_export_where_root_is_root_is_fine(serve: Serve) -> None:
    check = judge(serve())
    assert check.state == "ok"
    assert "0 of 5 folders are there, the others will be made" in check.text


def test_root_that_is_nobody_needs_the_folders_to_be_there(serve: Serve) -> None:
    server = serve(squash="root_squash")
    check = judge(server)
    assert (check.state, judge(server, here=False).state) == ("failed", "warning")
    assert "registry (user 10000)" in check.text
    assert "chown" in check.hint
    make(server.folder, OWNERS)
    assert judge(server).state == "ok"


def test_what_is_read_only_is_refused(serve: Serve) -> None:
    assert judge(serve(access="RO")).state == "failed"


def test_little_room_is_told(serve: Serve) -> None:
    check = judge(serve(), size="100Ei")
    assert check.state == "warning"
    assert "100Ei is declared" in check.text


@pytest.mark.parametrize("path", ["/srv/nfs/other", "/srv/nfs/harbor/deep/er", "/nothing"])
def test_a_path_that_is_not_exported(serve: Serve, path: str) -> None:
    check = judge(serve(), path=path)
    assert check.state == "failed"
    assert "there is no such folder, or it is not exported" in check.text


def test_a_file_is_no_export(serve: Serve) -> None:
    server = serve()
    (server.folder / "file").write_text("x")
    with pytest.raises(NfsRefused, match="not a folder"):
        look(server, path=f"{server.path}/file")


def test_a_server_of_another_minor_version(serve: Serve) -> None:
    server = serve(minors="0")
    with pytest.raises(NfsRefused, match="does not speak this version"):
        look(server)
    assert look(server, 0).root_writes
