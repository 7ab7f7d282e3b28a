"""The signatures of an image in its registry: put there, found, and checked with a public key.

Harbor's content trust asks only whether something looks like a signature, and takes a made-up one.
So whoever wants to know asks here. The same switch refuses the manifest of an unsigned image to
everybody, who signs included: the older form is pushed first, which needs no more than the image's
digest, and after that the manifest can be had for the newer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.errors import Corrupt, NotFound, TransferFailed, Unsigned, WrongSignature
from installer.oci import artefact
from installer.oci.cosign import (
    MAX_PAYLOAD_BYTES,
    SigningIdentity,
    accessory_tag,
    is_sigstore_bundle,
    simple_signatures,
    verify_sigstore_bundle,
    verify_simple_signing,
)
from installer.oci.graph import ImageIndex, ImageManifest, read_manifest
from installer.oci.http import PolicyRefused
from installer.oci.signing import sigstore_bundle, simple_signing
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.digest import Digest
    from installer.keys import SigningKey
    from installer.oci.cosign import VerifiedSignature
    from installer.oci.graph import Descriptor
    from installer.oci.registry import RegistryStore

_MOST_REFERRERS = 200
"""An image has a handful; reading thousands would be what an attacker wants."""


@dataclass(frozen=True)
class Signed:
    """What signing did: digests whose signatures were made, and those that had them already.

    ``without_bundle`` lack the newer form, since a policy of the project keeps the manifest back.
    """

    made: tuple[Digest, ...] = ()
    there: tuple[Digest, ...] = ()
    without_bundle: tuple[Digest, ...] = ()


def verify(
    registry: RegistryStore, repository: str, digest: Digest, identity: SigningIdentity
) -> tuple[VerifiedSignature, ...]:
    """Give every signature of the key over the image, at least one.

    Raises Unsigned when there is no signature at all, WrongSignature when none is of this key.
    """
    tagged = _tagged(registry, repository, digest)
    failed: WrongSignature | None = None
    held: list[VerifiedSignature] = []
    for manifest in (*([tagged] if tagged else ()), *_referring(registry, repository, digest)):
        for outcome in _checked(registry, repository, manifest, digest, identity):
            if isinstance(outcome, WrongSignature):
                failed = outcome
            else:
                held.append(outcome)
    if held:
        return tuple(held)
    where = f"{registry.host}/{repository}@{digest}"
    if failed is not None:
        raise WrongSignature(f"{where}: {failed.message}", hint=failed.hint)
    raise Unsigned(f"{where}: not signed", hint="`installer image sign` signs it")


def sign(registry: RegistryStore, repository: str, digest: Digest, key: SigningKey) -> Signed:
    """Sign an image in both forms, with all platforms if it is an index; what is there stays.

    Harbor asks for the signature of a platform's manifest as well, since nodes pull that. Raises
    TransferFailed, also when a signature is not there after it was pushed.
    """
    made: list[Digest] = []
    there: list[Digest] = []
    bare: list[Digest] = []
    waiting = [digest]
    while waiting:
        now = waiting.pop(0)
        is_new = _sign_simple(registry, repository, now, key)
        try:
            root = registry.resolve(repository, str(now))
        except PolicyRefused:
            bare.append(now)
        except NotFound:
            if now == digest:
                raise
            continue  # an index may name platforms that nobody pushed
        else:
            is_new |= _sign_bundle(registry, repository, root, key)
            waiting += _platforms(registry, repository, root)
        (made if is_new else there).append(now)
    return Signed(tuple(made), tuple(there), tuple(bare))


def _sign_simple(registry: RegistryStore, repository: str, digest: Digest, key: SigningKey) -> bool:
    identity = SigningIdentity.parse(key.public_pem(), "the signing key")

    def holds(manifest: ImageManifest | None) -> bool:
        outcomes = _checked(registry, repository, manifest, digest, identity) if manifest else ()
        return any(not isinstance(outcome, WrongSignature) for outcome in outcomes)

    before = _tagged(registry, repository, digest)
    if holds(before):
        return False
    made = simple_signing(key, f"{registry.host}/{repository}", digest, before)
    artefact.push(registry, repository, made, accessory_tag(digest, ".sig"))
    if not holds(_tagged(registry, repository, digest)):
        raise TransferFailed(
            f"{registry.host}/{repository}@{digest}: the signature was pushed and is not there",
            hint="did somebody else sign it at the same moment? run it again",
        )
    return True


def _sign_bundle(
    registry: RegistryStore, repository: str, root: Descriptor, key: SigningKey
) -> bool:
    identity = SigningIdentity.parse(key.public_pem(), "the signing key")
    for manifest in _referring(registry, repository, root.digest):
        for outcome in _checked(registry, repository, manifest, root.digest, identity):
            if not isinstance(outcome, WrongSignature):
                return False
    made = sigstore_bundle(key, root)
    if any(
        found.digest == made.root.digest for found in registry.referrers(repository, root.digest)
    ):
        return False  # it is there, and a policy keeps it back
    artefact.push(registry, repository, made)
    return True


def _platforms(registry: RegistryStore, repository: str, root: Descriptor) -> list[Digest]:
    data = read_all(registry, repository, root)
    manifest = read_manifest(data, root.media_type, f"{repository}@{root.digest}")
    return [d.digest for d in manifest.manifests] if isinstance(manifest, ImageIndex) else []


def _tagged(registry: RegistryStore, repository: str, digest: Digest) -> ImageManifest | None:
    try:
        found = registry.resolve(repository, accessory_tag(digest, ".sig"))
    except NotFound:
        return None
    return _read(registry, repository, found)


def _referring(registry: RegistryStore, repository: str, digest: Digest) -> Iterator[ImageManifest]:
    for found in registry.referrers(repository, digest)[:_MOST_REFERRERS]:
        try:
            manifest = _read(registry, repository, found)
        except NotFound:
            continue  # deleted, and still listed under the referrers tag
        except PolicyRefused:
            continue  # content trust lets through .sig, and no other accessory (Harbor 2.14)
        if manifest is not None and manifest.subject and manifest.subject.digest == digest:
            yield manifest


def _read(registry: RegistryStore, repository: str, at: Descriptor) -> ImageManifest | None:
    manifest = read_manifest(read_all(registry, repository, at), at.media_type, str(at.digest))
    return manifest if isinstance(manifest, ImageManifest) else None


def _checked(
    registry: RegistryStore,
    repository: str,
    manifest: ImageManifest,
    digest: Digest,
    identity: SigningIdentity,
) -> Iterator[VerifiedSignature | WrongSignature]:
    """What each signature that a manifest carries turns out to be."""
    for layer, signature in simple_signatures(manifest):
        if layer.size <= MAX_PAYLOAD_BYTES:
            payload = read_all(registry, repository, layer)
            try:
                yield verify_simple_signing(payload, signature, identity, digest)
            except WrongSignature as error:
                yield error
    for layer in manifest.layers:
        if is_sigstore_bundle(layer.media_type) and layer.size <= MAX_PAYLOAD_BYTES:
            try:
                data = read_all(registry, repository, layer)
                yield verify_sigstore_bundle(data, identity, digest)
            except Corrupt as error:
                yield WrongSignature(error.message)
            except WrongSignature as error:
                yield error
