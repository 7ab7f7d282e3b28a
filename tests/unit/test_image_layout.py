"""What readers of docker-archives are shown of indexes, which their format does not know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.bundles import make_bundle, open_bundle
from tests.upstream.images import image, index, layer

if TYPE_CHECKING:
    from pathlib import Path

AMD64, V8, S390X = (
    image([layer(100, platform)], platform=platform)
    for platform in ("linux/amd64", "linux/arm64/v8", "linux/s390x")
)


def test_an_index_stands_for_the_first_platform_of_the_bundle_that_it_has(tmp_path: Path) -> None:
    made = make_bundle(
        tmp_path / "b.tar",
        {
            "corp.example/both:1": index([AMD64, V8]),
            "corp.example/one:1": index([S390X, AMD64]),
            "corp.example/other:1": index([S390X]),
            "corp.example/single:1": S390X,
        },
        platforms=("linux/arm64", "linux/amd64"),
    )
    with open_bundle(*made) as bundle:
        listed = json.loads(bundle.read("manifest.json"))
    configs = {entry["RepoTags"][0]: entry["Config"] for entry in listed}
    assert configs == {
        f"corp.example/{name}:1": f"blobs/sha256/{of.blobs[0].digest.removeprefix('sha256:')}"
        for name, of in (("both", V8), ("one", AMD64), ("single", S390X))
    }
