"""The order of checks is what archive's docstring says, in the code and in what comes out."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pytest

from installer.bundle import archive
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.trust import KeyTrust
from installer.errors import AirgapError, Corrupt, Expired, WrongSignature
from installer.keys import generate
from tests.attacks.mutants import resigned, sample

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GOOD = sample()
EXPIRED = sample(key=GOOD.key, expires="2026-05-31T00:00:00Z")
STRANGER = generate(b"y")[0]

# Faults in the order in which they must be found, by the number of the check.
FAULTS: dict[int, tuple[type[AirgapError], str]] = {
    1: (Corrupt, "signature members differ"),
    2: (WrongSignature, "no signature of release.pub"),
    3: (Corrupt, "malformed"),
    4: (Expired, "expired at"),
    5: (Corrupt, "it was extended"),
}


def test_each_number_of_the_docstring_stands_beside_the_code_in_that_order() -> None:
    written = [
        int(n) for n in re.findall(r"^\((\d)\) (?!to )", archive.__doc__ or "", re.MULTILINE)
    ]
    assert written == list(range(len(written)))
    code = Path(archive.__file__).read_text(encoding="utf-8")
    beside = re.findall(r"  # \((\d)\)(?:, \((\d)\))?$", code, re.MULTILINE)
    assert {int(n) for pair in beside for n in pair if n} == set(written)
    body = code.partition("def verify(")[2].partition("def ")[0].split('"""')[2]
    assert [int(n) for n in re.findall(r"\((\d)\)", body)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("faults", [*combinations(FAULTS, 1), *combinations(FAULTS, 2)])
def test_of_two_faults_the_earlier_check_finds_its_own(
    faults: tuple[int, ...], tmp_path: Path
) -> None:
    good = EXPIRED if 4 in faults else GOOD
    payload = good.payload + b"x" if 3 in faults else good.payload
    data = resigned(good, payload, key=STRANGER if 2 in faults else None)
    if 1 in faults:
        data = data.replace(b'"signature":"M', b'"signature":"N', 1)
    if 5 in faults:
        data += b"\0"
    path = tmp_path / "faulty.tar"
    path.write_bytes(data)
    error, words = FAULTS[faults[0]]
    trust = KeyTrust(GOOD.key.public, "release.pub")
    with UnverifiedBundle(path) as unverified, pytest.raises(error, match=words):
        unverified.verify(trust, NOW)
