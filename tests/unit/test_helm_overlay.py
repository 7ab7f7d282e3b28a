"""The overlay on the forms in which charts describe images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from installer.bundle.digest import Digest
from installer.helm.overlay import image_overlay
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = Digest("a" * 64)


def bundle(*images: str) -> Callable[[Reference], Reference | None]:
    known = {Reference.parse(image) for image in images}

    def place(reference: Reference) -> Reference | None:
        if reference not in known:
            return None
        return Reference("seed:5000", reference.path, reference.tag or "latest", DIGEST)

    return place


@pytest.mark.parametrize(
    ("defaults", "image", "expected"),
    [
        (
            {"core": {"image": {"repository": "goharbor/core", "tag": "v1"}}},
            "goharbor/core:v1",
            {"core": {"image": {"repository": "seed:5000/goharbor/core", "tag": f"v1@{DIGEST}"}}},
        ),
        (
            {"image": {"registry": "quay.io", "repository": "a/b", "tag": 1.2, "digest": ""}},
            "quay.io/a/b:1.2",
            {
                "image": {
                    "registry": "seed:5000",
                    "repository": "a/b",
                    "tag": "1.2",
                    "digest": str(DIGEST),
                }
            },
        ),
        (
            {"image": {"repository": "a/b", "tag": ""}},
            "a/b:v3.0",
            {"image": {"repository": "seed:5000/a/b", "tag": f"v3.0@{DIGEST}"}},
        ),
        (
            {
                "imageRegistry": "quay.io",
                "imageNamespace": "j",
                "w": {"image": {"name": "c", "repository": ""}},
            },
            "quay.io/j/c:3.0",
            {"w": {"image": {"repository": "seed:5000/j/c", "tag": f"3.0@{DIGEST}"}}},
        ),
        (
            {"image": {"baseRepo": "registry.k8s.io", "x": {"repository": "/s/x", "tag": "v1"}}},
            "registry.k8s.io/s/x:v1",
            {"image": {"x": {"repository": "seed:5000/s/x", "tag": f"v1@{DIGEST}"}}},
        ),
        (
            {"initContainers": [{"name": "w", "image": "busybox:1", "env": []}, {"name": "z"}]},
            "busybox:1",
            {
                "initContainers": [
                    {"name": "w", "image": f"seed:5000/library/busybox:1@{DIGEST}", "env": []},
                    {"name": "z"},
                ]
            },
        ),
        (
            {
                "global": {"imageRegistry": "quay.io"},
                "image": {"registry": "docker.io", "repository": "a/b", "tag": "1"},
            },
            "quay.io/a/b:1",
            {
                "global": {"imageRegistry": "seed:5000"},
                "image": {"registry": "seed:5000", "repository": "a/b", "tag": f"1@{DIGEST}"},
            },
        ),
    ],
)
def test_each_form_is_replaced(
    defaults: dict[str, Any], image: str, expected: dict[str, Any]
) -> None:
    assert image_overlay(defaults, {}, bundle(image), "3.0") == expected


def test_what_the_bundle_does_not_have_is_left_alone() -> None:
    defaults = {"image": {"repository": "a/b", "tag": "1"}, "x": {"image": "c:1"}, "n": [{"a": 1}]}
    assert image_overlay(defaults, {}, bundle("other:1")) == {}


def test_the_users_values_count() -> None:
    defaults = {"core": {"image": {"repository": "a/b", "tag": "1"}}, "old": {"image": "c:1"}}
    values = {"core": {"image": {"tag": "2"}}, "old": None}
    overlay = image_overlay(defaults, values, bundle("a/b:2", "c:1"))
    assert overlay == {"core": {"image": {"repository": "seed:5000/a/b", "tag": f"2@{DIGEST}"}}}
