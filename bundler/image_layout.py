"""The documents that let other tools read the bundle in place.

``index.json`` makes the tar an OCI image layout, ``manifest.json`` a docker-archive whose entries
point into the same blobs. What each reader needs, and what it trips over, is in docs/format.md:
images carry a short name without a colon (oras splits at the last one) and containerd's full
name; everything else carries only a name of our own (ctr 1.6 fails on a named artefact).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bundler.platforms import normal_platform
from installer.bundle.catalog import catalog
from installer.bundle.manifest import Image
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bundler.lock import Lock
    from installer.bundle.digest import Digest
    from installer.bundle.manifest import Manifest, Member
    from installer.oci.graph import Descriptor, ImageManifest

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}\n'
_OURS = "io.harbor-airgap.name"


def index_json(manifest: Manifest) -> bytes:
    """The layout's index: every content of the manifest by the names that its readers want."""
    short = _short_names(manifest)
    entries = []
    for named in catalog(manifest):
        content = named.content
        name = f"{named.repository}:{named.tag}" if named.tag else named.repository
        annotations = {_OURS: name}
        if isinstance(content, Image):
            annotations["io.containerd.image.name"] = content.reference
            annotations["org.opencontainers.image.ref.name"] = short[content.reference]
        entries.append(
            {
                "mediaType": content.media_type,
                "digest": content.digest,
                "size": content.manifest_size,
                "annotations": annotations,
            }
        )
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }
    return msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n"


def docker_manifest(lock: Lock, documents: Mapping[Digest, bytes]) -> bytes:
    """The docker-archive's list of images; ``documents`` are all manifests by digest.

    An index stands for the image of the first platform that the lock names, since a
    docker-archive knows no platforms; one for none of these is not in it.
    """
    entries = []
    for image in lock.images:
        platform = _image_manifest(image.root, documents, lock.platforms)
        if platform is None:
            continue
        reference = Reference.parse(image.reference)
        tag = f"{reference.repository}:{reference.tag}" if reference.tag else None
        entries.append(
            {
                "Config": platform.config.digest.blob_path,
                "RepoTags": [tag] if tag else [],
                "Layers": [layer.digest.blob_path for layer in platform.layers],
            }
        )
    return msgspec.json.format(msgspec.json.encode(entries), indent=1) + b"\n"


def _image_manifest(
    root: Descriptor, documents: Mapping[Digest, bytes], platforms: tuple[str, ...]
) -> ImageManifest | None:
    document = read_manifest(documents[root.digest], root.media_type, str(root.digest))
    if not isinstance(document, ImageIndex):
        return document
    for platform in map(normal_platform, platforms):
        for child in document.manifests:
            same = child.platform and normal_platform(child.platform) == platform
            if same and child.digest in documents:
                return _image_manifest(child, documents, platforms)
    return None


def _short_names(manifest: Manifest) -> dict[str, str]:
    """Names without a colon: the last component and the tag, longer where two would be alike."""
    names: dict[str, str] = {}
    for image in manifest.images:
        reference = Reference.parse(image.reference)
        version = reference.tag or (reference.digest.hex[:12] if reference.digest else "latest")
        parts = reference.repository.replace(":", "-").split("/")
        for count in range(1, len(parts) + 1):
            name = "-".join((*parts[-count:], version))
            if name not in names.values():
                names[image.reference] = name
                break
        else:
            names[image.reference] = f"{'-'.join(parts)}-{image.root.digest.hex}"
    return names


def readme(
    lock: Lock,
    installers: Sequence[str] = (),
    required: Sequence[Member] = (),
    held: str = "",
) -> bytes:
    """A page in plain words for whoever finds the disk: what it is and how to check it.

    ``installers`` are the paths of the installers in the bundle, ``required`` blobs that a delta
    leaves out, ``held`` says according to what.
    """
    lines = [
        f"{lock.name}, serial {lock.serial} of channel {lock.channel}, made {lock.created}",
        "",
        "This file is a bundle for an isolated site: a tar that is also an OCI image layout.",
        "bundle.json lists every other file in it with size and sha256, and is signed.",
        "",
        *(_about_delta(required, held) if required else ()),
        "BUNDLE is the file, release.pub the public key, which must have reached you over another",
        "way than this disk.",
        "",
    ]
    for installer in installers:
        lines += [
            f"Take out {installer} and check it before it runs for the first time;",
            "go on only if the second line says Verified OK, and the third OK:",
            "",
            f"  tar xf BUNDLE bundle.json bundle.json.sig {installer}",
            "  openssl dgst -sha256 -verify release.pub -signature bundle.json.sig bundle.json",
            (
                f'  grep -A2 \'"path": "{installer}"\' bundle.json'
                f' | sed -n \'s/.*"sha256": "\\(.*\\)".*/\\1  {installer}/p\' | sha256sum -c'
            ),
            "",
        ]
    name = f"./{installers[0]}" if installers else "installer"
    if installers:
        lines += [
            "It needs nothing of the machine but Linux, and checks everything else:",
            "",
        ]
    else:
        lines += [
            "Check the signature with openssl alone:",
            "",
            "  tar xf BUNDLE bundle.json bundle.json.sig",
            "  openssl dgst -sha256 -verify release.pub -signature bundle.json.sig bundle.json",
            "",
            "With the installer:",
            "",
        ]
    lines += [
        f"  {name} verify  BUNDLE --key release.pub",
        f"  {name} inspect BUNDLE --key release.pub",
        f"  {name} run     BUNDLE --key release.pub --site site.yaml",
        "",
        "Without any program of ours: check every file against bundle.json, once its signature",
        "held; nothing is unpacked, and the last line prints nothing but its sentence:",
        "",
        (
            "  tar xOf BUNDLE bundle.json | awk -F'\"' '/\"path\":/{p=$4}"
            ' /"sha256":/&&p{print $4"  "p;p=""}\' | sort > signed'
        ),
        (
            "  tar xf BUNDLE --exclude='bundle.json*'"
            " --to-command='echo \"$(sha256sum | cut -c1-64)  $TAR_FILENAME\"' | sort > found"
        ),
        "  diff signed found && echo every file is as signed",
        "",
    ]
    return "\n".join(lines).encode()


def _about_delta(required: Sequence[Member], held: str) -> tuple[str, ...]:
    size = sum(member.size for member in required)
    return (
        f"THIS IS A DELTA to {held}:",
        f"{len(required)} files, {size:,} bytes in all, are left out because the site has them;",
        "bundle.json lists them as required. docker load, ctr, oras, skopeo and podman can't read",
        "the images of a delta. The installer can, with the earlier bundles at hand, as many as it",
        "takes; it names what is missing before it changes anything:",
        "",
        "  installer verify BUNDLE --base EARLIER --key release.pub",
        "  installer run    BUNDLE --base EARLIER --key release.pub --site site.yaml",
        "",
    )
