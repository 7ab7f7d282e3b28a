"""Signing and pushing where content trust keeps manifests back, as Harbor's does; and forgeries."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from installer import keys
from installer.bundle.digest import Digest
from installer.deploy.harbor_access import HarborAccess
from installer.errors import InvalidInput, Unsigned, WrongSignature
from installer.harbor.scan import Artifact
from installer.oci import signatures
from installer.oci.artefact import push
from installer.oci.copy import CopyItem, copy
from installer.oci.cosign import SigningIdentity, accessory_tag
from installer.oci.graph import Descriptor
from installer.oci.http import Patience, PolicyRefused
from installer.oci.registry import RegistryStore
from installer.oci.signing import simple_signing
from tests.upstream.images import OCI_MANIFEST, image, index, layer
from tests.upstream.registry import Registry
from tests.upstream.server import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = keys.generate(b"secret")[0]
OTHER = keys.generate(b"secret")[0]
APP = image([layer(1000, "app")])
ARM = image([layer(1000, "arm")], platform="linux/arm64")
DIGEST = Digest.parse(APP.digest)
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")


class Trusting(Registry):
    """Refuses what looks unsigned, with the words of Harbor 2.14; ``always`` whatever it looks."""

    always = False

    def answer(self, request: Request) -> Answer:
        found = _MANIFEST.fullmatch(request.path)
        if found and request.method in ("GET", "HEAD") and found[1] in self.repositories:
            repository = self.repositories[found[1]]
            digest = repository.tags.get(found[2], found[2])
            is_image = digest in (APP.digest, ARM.digest) and digest in repository.manifests
            signed = f"{digest.replace(':', '-')}.sig" in repository.tags
            if is_image and (self.always or not signed):
                message = "The image is not signed by cosign."
                error = {"code": "PROJECTPOLICYVIOLATION", "message": message}
                return Answer(412, {}, json.dumps({"errors": [error]}).encode())
        return super().answer(request)


@pytest.fixture
def registry() -> Iterator[Trusting]:
    with Trusting() as running:
        yield running


@pytest.fixture
def store(registry: Trusting) -> Iterator[RegistryStore]:
    with RegistryStore(registry.host, patience=Patience(backoff=0)) as opened:
        yield opened


def identity(key: keys.SigningKey = KEY) -> SigningIdentity:
    return SigningIdentity.parse(key.public_pem(), "test.pub")


def test_an_unsigned_image_is_signed_though_nobody_may_pull_it(
    registry: Trusting, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.put("team/app", "1", APP)
    with pytest.raises(PolicyRefused, match="not signed by cosign"):
        store.resolve("team/app", "1")

    class Api:
        def get(self, path: str, *_: Any, **__: Any) -> Artifact:
            assert path == "/projects/team/repositories/app/artifacts/1"
            return Artifact(APP.digest)

    monkeypatch.setattr(HarborAccess, "client", lambda _: nullcontext(Api()))
    access = HarborAccess(registry.url)
    assert access.digest(store, access.reference("team/app:1")) == DIGEST
    done = signatures.sign(store, "team/app", DIGEST, KEY)
    assert (done.made, done.without_bundle) == ((DIGEST,), ())
    assert store.resolve("team/app", "1").digest == DIGEST
    held = signatures.verify(store, "team/app", DIGEST, identity())
    assert [one.form for one in held] == ["simple-signing", "sigstore-bundle"]
    again = signatures.sign(store, "team/app", DIGEST, KEY)
    assert (again.made, again.there) == ((), (DIGEST,))


def test_a_policy_that_keeps_it_back_all_the_same_leaves_the_older_form(
    registry: Trusting, store: RegistryStore
) -> None:
    registry.always = True
    registry.put("team/app", "1", APP)
    assert signatures.sign(store, "team/app", DIGEST, KEY).without_bundle == (DIGEST,)
    (one,) = signatures.verify(store, "team/app", DIGEST, identity())
    assert one.form == "simple-signing"


def test_of_an_index_what_nobody_pushed_is_left_out(
    registry: Trusting, store: RegistryStore
) -> None:
    both = index([APP, ARM])
    registry.put("team/app", "1", both)
    del registry.repositories["team/app"].manifests[ARM.digest]
    registry.repositories["team/app"].tags[f"{ARM.digest.replace(':', '-')}.sig"] = "none"
    done = signatures.sign(store, "team/app", Digest.parse(both.digest), KEY)
    assert set(done.made) == {Digest.parse(both.digest), DIGEST}


def test_what_is_there_and_kept_back_is_not_pushed_again(store: RegistryStore) -> None:
    with Registry() as source:
        source.put("app", "1", APP)
        root = Descriptor(OCI_MANIFEST, DIGEST, len(APP.top.data))
        with RegistryStore(source.host) as reading:
            items = [CopyItem("app", "team/app", root, ("1",))]
            assert copy(reading, store, items).manifests_moved == 1
            again = copy(reading, store, items)
    assert (again.manifests_moved, again.blobs_moved) == (0, 0)


def test_signatures_that_say_nothing_of_this_image(
    registry: Trusting, store: RegistryStore
) -> None:
    registry.put("team/app", "1", APP)
    registry.put("team/arm", "1", ARM)
    with pytest.raises(Unsigned, match="not signed"):
        signatures.verify(store, "team/app", DIGEST, identity())
    # A good signature of another image, moved to this one: Harbor counts it.
    moved = simple_signing(KEY, "somewhere/else", Digest.parse(ARM.digest))
    push(store, "team/app", moved, accessory_tag(DIGEST, ".sig"))
    assert store.resolve("team/app", "1").digest == DIGEST
    with pytest.raises(WrongSignature, match="about the image"):
        signatures.verify(store, "team/app", DIGEST, identity())
    signatures.sign(store, "team/app", DIGEST, OTHER)
    with pytest.raises(WrongSignature):
        signatures.verify(store, "team/app", DIGEST, identity())
    assert signatures.verify(store, "team/app", DIGEST, identity(OTHER))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("quay.io/team/app:1", "and Harbor at"),
        ("docker.io/library/app:1", "and Harbor at"),
        ("Team/app:1", "is at Team"),
        ("team/app:bad tag", "bad tag"),
    ],
)
def test_names_of_other_hosts_are_refused(name: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        HarborAccess("https://harbor.site").reference(name)


def test_the_password_is_in_no_repr() -> None:
    assert "geheim" not in repr(HarborAccess("https://harbor.site", passwords=("geheim",)))
