"""``installer image push``: from a file or the Docker Engine into Harbor."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from installer.bundle.catalog import catalog
from installer.bundle.manifest import Chart, Image
from installer.cli.console import output_option, print_json, progress, say, size_text
from installer.cli.image.reach import harbor_options
from installer.cli.open import TrustOptions, open_verified, trust_options
from installer.errors import InvalidInput
from installer.helm.artefact import chart_store
from installer.oci.archive_store import FoundImage, is_bundle, open_archive
from installer.oci.bundle_store import BundleStore
from installer.oci.copy import CopyItem, copy
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from installer.bundle.digest import Digest
    from installer.deploy.harbor_access import HarborAccess
    from installer.oci.archive_store import ArchiveStore

_DOCKER = "docker:"


@click.command("push")
@click.argument("source")
@click.option(
    "--to", "target", default="", metavar="REF", help="Its name in Harbor, for one image."
)
@click.option("--project", default="", help="Push all into this project, under their own names.")
@click.option("--image", "wanted", default="", metavar="NAME", help="Which image of SOURCE.")
@trust_options
@harbor_options
@output_option
def command(
    source: str,
    target: str,
    project: str,
    wanted: str,
    trusted: TrustOptions,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Push images and charts from SOURCE into Harbor, with digests compared on the way.

    SOURCE is a bundle (with --key or --trust-root), an OCI image layout (folder or tar), a
    docker-archive, a packaged chart (.tgz), or docker:NAME for an image of this machine's Docker
    Engine.

    Exit code 2: SOURCE or a name is wrong. 3: the bundle is not trusted. 4: something differs from
    its digest. 6: Harbor refused, or network or disk.
    """
    if bool(target) == bool(project):
        raise InvalidInput(
            "give --to or --project", hint="--to PROJECT/NAME:TAG names one image, --project all"
        )
    access = reach(target or f"{project}/x")
    with ExitStack() as stack:
        store, images = _source(source, trusted, stack)
        items = _items(images, access, source, target, project, wanted)
        registry = stack.enter_context(access.registry())
        total = _bytes(store, items)
        with progress("pushing", total) as advance:
            done = copy(store, registry, items, progress=advance)
        pushed = [
            {
                "reference": f"{access.host}/{item.target_repository}"
                + "".join(f":{tag}" for tag in item.tags),
                "digest": str(item.root.digest),
            }
            for item in items
        ]
    if output == "json":
        print_json({"images": pushed, "bytes": done.bytes_moved})
    else:
        for one in pushed:
            click.echo(f"{one['reference']}@{one['digest']}")
        say(
            f"{len(pushed)} pushed: {done.blobs_moved} blobs ({size_text(done.bytes_moved)}) and "
            f"{done.manifests_moved} manifests moved, the rest was there"
        )


def _source(
    source: str, trusted: TrustOptions, stack: ExitStack
) -> tuple[ArchiveStore | BundleStore, Sequence[FoundImage]]:
    """Open what images come from; the stack keeps it open."""
    passing = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harbor-airgap-")))
    if source.startswith(_DOCKER):
        from installer.oci.docker_engine import saved  # noqa: PLC0415 (only here)

        name = source.removeprefix(_DOCKER)
        path = passing / "saved.tar"
        with path.open("xb") as out, progress(f"docker save {name}", 0) as advance:
            for chunk in saved(name):
                out.write(chunk)
                advance(len(chunk))
    else:
        path = Path(source)
        if not path.exists():
            raise InvalidInput(
                f"{path}: there is no such file or folder",
                hint=f"an image of the Docker Engine is {_DOCKER}NAME",
            )
    if is_bundle(path):
        if not trusted:
            raise InvalidInput(
                f"{path}: is a bundle, which is used only if its signature holds",
                hint="give --key release.pub",
            )
        bundle = stack.enter_context(open_verified(path, trusted))
        store = BundleStore(bundle)
        images = [
            FoundImage(one.root, (one.reference,))
            for one in bundle.manifest.contents
            if isinstance(one, Image)
        ]
        images += [
            FoundImage(named.content.root, (f"{named.repository}:{named.tag}",))
            for named in catalog(bundle.manifest)
            if isinstance(named.content, Chart)
        ]
        return store, images
    if trusted:
        raise InvalidInput(
            f"{path}: is no bundle, so that --key and --trust-root say nothing about it"
        )
    if path.suffix == ".tgz":
        chart = chart_store(path)
        return chart, chart.images
    folder = passing / "layers"
    folder.mkdir()
    archive = open_archive(path, folder)
    return archive, archive.images


def _items(
    images: Sequence[FoundImage],
    access: HarborAccess,
    source: str,
    target: str,
    project: str,
    wanted: str,
) -> list[CopyItem]:
    """Which images go where; raises InvalidInput when that isn't clear."""
    chosen = [
        image
        for image in images
        if not wanted or wanted in (*image.names, str(image.root.digest)) or _means(image, wanted)
    ]
    names = ", ".join(name for image in images for name in image.names) or "none has a name"
    if not chosen or (target and len(chosen) > 1):
        raise InvalidInput(
            f"{source}: {len(chosen)} images {wanted or 'to choose from'}: {names[:500]}",
            hint="--image NAME chooses one" + ("; --project takes all" if target else ""),
        )
    if target:
        reference = access.reference(target)
        if reference.digest:
            raise InvalidInput(f"--to {target}: a digest can't be chosen, only a tag")
        (image,) = chosen
        source_path = _path_of(image)
        return [CopyItem(source_path, reference.path, image.root, (reference.version,))]
    items = []
    folder = project if project.startswith(f"{access.host}/") else f"{access.host}/{project}"
    for image in chosen:
        if not image.names:
            raise InvalidInput(
                f"{source}: {image.root.digest} has no name",
                hint="push it by itself: --image DIGEST --to PROJECT/NAME:TAG",
            )
        named = Reference.parse(image.names[0])
        path = named.path.removeprefix("library/")
        tags = () if named.digest and not named.tag else (named.tag or "latest",)
        place = access.reference(f"{folder}/{path}").path
        items.append(CopyItem(named.path, place, image.root, tags))
    return items


def _means(image: FoundImage, wanted: str) -> bool:
    """Whether a name that a person shortened is the image's."""
    try:
        reference = Reference.parse(wanted)
        return any(Reference.parse(name) == reference for name in image.names)
    except InvalidInput:
        return False


def _path_of(image: FoundImage) -> str:
    """Repository that a bundle has it under; archives don't ask."""
    return Reference.parse(image.names[0]).path if image.names else "image"


def _bytes(store: ArchiveStore | BundleStore, items: Sequence[CopyItem]) -> int:
    """What there is to move at most; 0 where only the copy itself finds out."""
    blobs: dict[Digest, int] = {}
    waiting = [(item, item.root) for item in items]
    while waiting:
        item, root = waiting.pop()
        if not store.exists(item.source_repository, root):
            continue
        data = read_all(store, item.source_repository, root)
        manifest = read_manifest(data, root.media_type, item.name)
        if isinstance(manifest, ImageIndex):
            waiting += [(item, child) for child in manifest.manifests]
        else:
            blobs |= {child.digest: child.size for child in manifest.children}
    return sum(blobs.values())
