"""The installer as one file: what is taken for one, where it stands in a bundle, and its content.

Whether a real one runs is for tests/integration/test_installer_file.py.
"""

from __future__ import annotations

import io
import json
import platform
import stat
import struct
import sys
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

import msgspec
import pytest

from bundler import elf, installer_file, python_environment
from bundler.cache import BlobCache
from bundler.installer_format import ARCHITECTURES, COMPONENTS, PLACE, Component
from installer.cli.run import own_command
from installer.errors import InvalidInput
from tests.bundles import open_bundle
from tests.unit.test_build import Builder, builder
from tests.unit.test_cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from bundler.python_environment import Environment

__all__ = ["builder"]  # the fixture
COMPONENT = Component("python", "click", "8.3.0", "BSD-3-Clause", "ab" * 32)


def tiny(folder: Path, machine: str = "x86_64") -> Path:
    """An installer with the real first program, a list of components and nothing else."""
    content = io.BytesIO()
    content.write((resources.files("bundler") / "loader" / f"unpack-{machine}").read_bytes())
    with zipfile.ZipFile(content, "w") as archive:
        entry = zipfile.ZipInfo(COMPONENTS)
        archive.writestr(entry, msgspec.json.encode([COMPONENT]))
    path = folder / f"tiny-{machine}"
    path.write_bytes(content.getvalue())
    return path


def test_what_is_read_of_an_installer(tmp_path: Path) -> None:
    found = installer_file.read(tiny(tmp_path, "aarch64"))
    assert (found.architecture, found.name) == ("arm64", "installer-linux-arm64")
    assert found.components == (COMPONENT,)
    assert found.size == found.path.stat().st_size


def test_any_other_file_is_no_installer(tmp_path: Path) -> None:
    good = tiny(tmp_path).read_bytes()
    others = {
        "script": b"#!/bin/sh\nexit 0\n",
        "empty": b"",
        "cut off": good[:-40],
        "another program": good.replace(PLACE, bytes(len(PLACE))),
        "another machine": good[:18] + struct.pack("<H", 8) + good[20:],
        "other list": good.replace(b'"click"', b"click  "),
    }
    for name, data in others.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidInput, match="is not a whole installer"):
            installer_file.read(path)
    with pytest.raises(InvalidInput, match="No such file"):
        installer_file.read(tmp_path / "none")


def test_the_installer_is_in_the_bundle_and_beside_it(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    given = tiny(builder.folder, platform.machine())
    installer = installer_file.read(given)
    done = builder.build("--output", "json", installer=given)
    assert done.returncode == 0, done.stderr
    beside = builder.folder / installer.name
    assert json.loads(done.stdout)["installers"] == [installer.name]
    assert beside.read_bytes() == given.read_bytes()
    assert stat.S_IMODE(beside.stat().st_mode) == 0o755
    with open_bundle(builder.out, (builder.folder / "release.pub").read_bytes()) as bundle:
        paths = [member.path for member in bundle.manifest.members]
        assert paths[:3] == ["README.txt", installer.name, "oci-layout"]
        member = bundle.manifest.member(installer.name)
        assert (member.digest, member.executable) == (installer.digest, True)
        assert f"bundle.json.sig {installer.name}\n" in bundle.read("README.txt").decode()
    shown = run("installer", "inspect", "out.tar", "--key", "release.pub", cwd=builder.folder)
    assert installer.name in shown.stdout
    assert installer.digest.hex[:12] in shown.stdout
    first = builder.out.read_bytes()
    assert builder.build(installer=given).returncode == 0  # what is there is an installer
    assert builder.verify().returncode == 0
    area = bundle.manifest.signature_area
    assert builder.out.read_bytes()[area:] == first[area:]


def test_a_delta_brings_the_same_installer_again(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    given = tiny(builder.folder, platform.machine())
    assert builder.build(installer=given).returncode == 0
    assert builder.build("--since", "out.tar", installer=given, out="delta.tar").returncode == 0
    pem = (builder.folder / "release.pub").read_bytes()
    with open_bundle(builder.folder / "delta.tar", pem) as bundle:
        name = installer_file.read(given).name
        assert bundle.read(name) == given.read_bytes()
        assert f"bundle.json.sig {name}\n" in bundle.read("README.txt").decode()
        assert bundle.manifest.required
        assert all(member.path.startswith("blobs/") for member in bundle.manifest.required)


def test_installers_of_several_architectures(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    own = tiny(builder.folder, platform.machine())
    other = tiny(builder.folder, "aarch64" if platform.machine() == "x86_64" else "x86_64")
    done = builder.build("--installer", str(other), "--output", "json", installer=own)
    assert done.returncode == 0, done.stderr
    names = ["installer-linux-amd64", "installer-linux-arm64"]
    assert json.loads(done.stdout)["installers"] == names
    assert "no installer in it is" not in done.stderr
    plan = builder.build("--installer", str(other), "--dry-run", "--output", "json", installer=own)
    sizes = own.stat().st_size + other.stat().st_size
    assert json.loads(plan.stdout)["copied"] >= sizes


def test_what_is_refused_before_anything_is_fetched(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    given = tiny(builder.folder, platform.machine())
    before = builder.served()
    twice = builder.build("--installer", str(given), installer=given)
    assert (twice.returncode, "two files for one architecture" in twice.stderr) == (2, True)
    both = builder.build("--no-installer", installer=given)
    assert (both.returncode, "exclude each other" in both.stderr) == (2, True)
    beside = builder.folder / installer_file.read(given).name
    beside.write_text("a report of that name")
    kept = builder.build(installer=given)
    assert (kept.returncode, "is not an installer" in kept.stderr) == (2, True)
    assert beside.read_text() == "a report of that name"
    assert builder.served() == before
    builder.assert_no_bundle()


def test_a_bundle_without_installer_says_how_to_check_it(builder: Builder) -> None:
    assert builder.lock().returncode == 0
    assert builder.build().returncode == 0
    with open_bundle(builder.out, (builder.folder / "release.pub").read_bytes()) as bundle:
        assert [m.path for m in bundle.manifest.members][:2] == ["README.txt", "oci-layout"]
        assert "installer-linux" not in bundle.read("README.txt").decode()


@pytest.fixture(scope="module")
def environment() -> Environment:
    if platform.machine() not in ARCHITECTURES:
        pytest.skip("no installer can be made on this machine")
    return python_environment.environment()


def test_what_is_packed_is_what_the_installer_imports(environment: Environment) -> None:
    names = {c.name for c in environment.components if c.kind == "python"}
    assert {"harbor-airgap", "click", "cryptography", "cffi", "rich", "urllib3"} <= names
    assert not {"pytest", "mypy", "ruff", "pip-tools", "Pygments"} & names
    assert {"installer/cli/__init__.py", "json/decoder.py"} <= environment.code.keys()
    assert {"manifests/sites/demo.yaml", "certifi/cacert.pem"} <= environment.data.keys()
    assert not [name for name in environment.code if name.startswith(("bundler/", "test/"))]
    assert "cryptography.hazmat.bindings._rust" in environment.native
    assert "libc.so.6" in environment.libraries
    assert environment.loader.name.startswith("ld-")
    for component in environment.components:
        assert len(component.sha256) == 64, component
        assert component.version or component.kind == "library", component
        assert component.license or component.kind == "library", component


def test_the_digest_stands_for_every_byte_that_is_packed(
    environment: Environment, tmp_path: Path
) -> None:
    before = environment.digest()
    assert python_environment.environment().digest() == before
    changed = tmp_path / "decoder.py"
    changed.write_bytes(environment.code["json/decoder.py"].read_bytes() + b"\n")
    kept = environment.code["json/decoder.py"]
    environment.code["json/decoder.py"] = changed
    assert environment.digest() != before
    environment.code["json/decoder.py"] = kept


def test_a_mark_that_others_can_write_to_vouches_for_nothing(tmp_path: Path) -> None:
    cache, mark = BlobCache(tmp_path), tmp_path / "installers" / "key"
    blob = cache.put([tiny(tmp_path).read_bytes()])
    mark.parent.mkdir(mode=0o700)
    mark.write_text(blob.digest.hex)
    kept = installer_file._kept(cache, mark)
    assert kept is not None
    assert kept.digest == blob.digest
    for place in (mark, mark.parent):
        mode = place.stat().st_mode
        place.chmod(mode | 0o020)
        assert installer_file._kept(cache, mark) is None
        place.chmod(mode)
    blob.path.write_bytes(b"damaged")
    assert installer_file._kept(cache, mark) is None


def test_what_is_never_loaded_is_left_out_of_a_program(environment: Environment) -> None:
    whole = environment.loader.read_bytes()
    packed = elf.loaded_part(environment.loader)
    assert len(packed) <= len(whole)
    assert list(elf.segments(packed)) == list(elf.segments(whole))
    with pytest.raises(InvalidInput, match="no 64-bit"):
        list(elf.segments(b"#!/bin/sh\n"))


def test_one_file_starts_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``run`` does for the seed registry: without a Python beside it."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/usr/local/bin/installer")
    assert own_command() == ("/usr/local/bin/installer",)
