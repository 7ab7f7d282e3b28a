"""Upstream's own signatures, checked while the lock is made; what held how goes into the lock.

A signature counts when the key that the spec names made it, over the digest that the reference has
upstream: that of an index, or else of the one manifest that is carried. A person may vouch instead,
by writing the digest into the spec or giving a file of theirs. With ``verify: {required: true}``
nothing else comes into a lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bundler.sources.upstream import registry_blob
from installer.bundle.manifest import Verification
from installer.errors import Corrupt, NotTrusted, Unsigned, WrongSignature
from installer.oci.cosign import (
    is_sigstore_bundle,
    simple_signatures,
    verify_sigstore_bundle,
    verify_simple_signing,
)
from installer.oci.graph import ImageManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bundler.lock import Lock
    from bundler.sources.accessories import Found
    from bundler.sources.upstream import Upstream
    from installer.bundle.digest import Digest
    from installer.oci.cosign import SigningIdentity, VerifiedSignature
    from installer.oci.reference import Reference

_WEAK = frozenset({"checksum"})
"""A checksum from the server of the file itself protects from damage, not from that server."""
_SHOWN = 20


def pinned() -> tuple[Verification, ...]:
    """A person wrote the digest into the spec."""
    return (Verification("pinned"),)


def verify_signed(
    upstream: Upstream,
    reference: Reference,
    found: Sequence[Found],
    subjects: Iterable[Digest],
    identity: SigningIdentity,
) -> Verification:
    """Find a signature of ``identity`` over the first of ``subjects`` that has one.

    ``found`` is what the repository says of them. Raises Unsigned or WrongSignature (what is there
    and why it doesn't hold), or TransferFailed.
    """
    refusals: list[str] = []
    for subject in dict.fromkeys(subjects):
        of_it = (one for one in found if one.entry.subject == str(subject))
        for check in (c for one in of_it for c in _checks(upstream, reference, one)):
            try:
                held = check(identity, subject)
            except (WrongSignature, Corrupt) as error:
                refusals.append(error.message)
                continue
            return Verification("cosign", identity.name, held.key_id, held.form, str(held.digest))
    if not refusals:
        raise Unsigned(
            f"{reference}: has no signature, and {identity.name} is to have signed it",
            hint="see whether its maker signs this tag; else pin it by digest, without `verify`",
        )
    told = "; ".join(dict.fromkeys(refusals))
    raise WrongSignature(
        f"{reference}: {len(refusals)} signatures, none that holds for {identity.name}: {told}",
        hint="compare the key with the one that its maker publishes; don't use it otherwise",
    )


def _checks(
    upstream: Upstream, reference: Reference, found: Found
) -> Iterator[Callable[[SigningIdentity, Digest], VerifiedSignature]]:
    """Each signature in an accessory, to be tried with a key."""
    manifest = found.manifest
    if not isinstance(manifest, ImageManifest):
        return
    for layer, signature in simple_signatures(manifest):
        payload = upstream.document(registry_blob(reference, layer))
        yield lambda key, digest, p=payload, s=signature: verify_simple_signing(p, s, key, digest)  # type: ignore[misc]
    for layer in manifest.layers:
        if is_sigstore_bundle(layer.media_type):
            bundle = upstream.document(registry_blob(reference, layer))
            yield lambda key, digest, b=bundle: verify_sigstore_bundle(b, key, digest)  # type: ignore[misc]


def check_required(lock: Lock) -> None:
    """Refuse a lock with anything in it that nobody vouches for; raises NotTrusted naming all."""
    named = [
        *((f"image {i.reference}", i.verified) for i in lock.images),
        *((f"chart {c.name} {c.version}", c.verified) for c in lock.charts),
        *((f"tool {t.name}", t.verified) for t in lock.tools),
        *((f"database {d.reference}", d.verified) for d in lock.databases),
        *((f"file {f.name}", f.verified) for f in lock.files),
    ]
    open_ = [name for name, held in named if all(one.method in _WEAK for one in held)]
    if not open_:
        return
    more = [f"and {len(open_) - _SHOWN} more"] if len(open_) > _SHOWN else []
    lines = "".join(f"\n- {line}" for line in (*open_[:_SHOWN], *more))
    raise NotTrusted(
        f"the spec wants all verified or pinned by hand, and {len(open_)} things aren't:{lines}",
        hint="name a key under `verify`, or write the digest into the spec",
    )
