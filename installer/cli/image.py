"""``installer image``: what Harbor is for, with nothing but the installer.

Every verb reaches Harbor in one of two ways: as admin of the site (``--site``), or at the host that
the image's name has, with the login of a robot or a person. A password is never an argument.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from installer.cli.console import (
    output_option,
    passphrase,
    print_json,
    print_table,
    progress,
    say,
    size_text,
)
from installer.errors import AcceptanceFailed, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from installer.bundle.digest import Digest
    from installer.deploy.harbor_access import HarborAccess
    from installer.oci.archive_store import ArchiveStore, FoundImage
    from installer.oci.bundle_store import BundleStore
    from installer.oci.copy import CopyItem

PASSPHRASE_VARIABLE = "INSTALLER_PASSPHRASE"  # noqa: S105 (a variable's name)
_SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")
_DOCKER = "docker:"


@click.group("image")
def command() -> None:
    """Push, sign, verify and scan images in Harbor."""


def harbor_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``reach``: from the image's name to the Harbor that it is in."""

    @click.option(
        "--site", "site_file", type=click.Path(path_type=Path), help="The site whose Harbor it is."
    )
    @click.option(
        "--state", "state_folder", type=click.Path(path_type=Path), help="Its state, see `run`."
    )
    @click.option("--release", default="", help="NAMESPACE/NAME, if the site has several Harbors.")
    @click.option(
        "--ca", type=click.Path(path_type=Path), help="Check https with it; without --site."
    )
    @click.option("--plain-http", is_flag=True, help="Speak http; without --site.")
    @click.option("--username", default="", help="Log in as a robot or a person instead of admin.")
    @click.option(
        "--password-file",
        metavar="FILE",
        default="",
        help="Its password; env:NAME takes it from a variable.",
    )
    @wraps(function)
    def wrapped(
        site_file: Path | None,
        state_folder: Path | None,
        release: str,
        ca: Path | None,
        username: str,
        password_file: str,
        *,
        plain_http: bool,
        **arguments: Any,
    ) -> Any:
        def reach(name: str) -> HarborAccess:
            from installer.cli.run import state_folder_of  # noqa: PLC0415 (slow to import)
            from installer.deploy.harbor_access import HarborAccess, access_to  # noqa: PLC0415
            from installer.oci.reference import DEFAULT_HOST, Reference  # noqa: PLC0415
            from installer.site.model import read_site  # noqa: PLC0415
            from installer.site.private import read_secret  # noqa: PLC0415
            from installer.site.state import State  # noqa: PLC0415

            if bool(username) != bool(password_file):
                raise InvalidInput("--username and --password-file belong together")
            word = read_secret(Path(password_file)) if password_file else ""
            if site_file is not None:
                if ca is not None or plain_http:
                    raise InvalidInput("--ca and --plain-http: site.yaml says that already")
                site = read_site(site_file)
                state = State(state_folder_of(site, state_folder))
                login = (username, word) if username else None
                return access_to(site, state, release, login=login)
            host = Reference.parse(name).host
            if host == DEFAULT_HOST:
                raise InvalidInput(
                    f"{name}: in which Harbor?", hint="give --site, or a name with Harbor's host"
                )
            scheme = "http" if plain_http else "https"
            words = (word,) if word else ()
            return HarborAccess(
                f"{scheme}://{host}", str(ca.absolute()) if ca else "", username, words
            )

        return function(reach=reach, **arguments)

    return wrapped


@command.command("keygen")
@click.option("--out", default="images.key", type=click.Path(path_type=Path), show_default=True)
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked twice.")
def keygen(out: Path, passphrase_file: str | None) -> None:
    """Make a passphrase-encrypted P-256 key (OUT) to sign images with, and its .pub."""
    from installer.keys import write_pair  # noqa: PLC0415 (slow to import)

    public, key = write_pair(
        out, lambda: passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=True)
    )
    say(
        f"{out}: private key, encrypted; keep it and its passphrase apart\n"
        f"{public}: public key, key id {key.public.key_id[:16]}; who pulls images verifies with it"
    )


@command.command("push")
@click.argument("source")
@click.option(
    "--to", "target", default="", metavar="REF", help="Its name in Harbor, for one image."
)
@click.option("--project", default="", help="Push all into this project, under their own names.")
@click.option("--image", "wanted", default="", metavar="NAME", help="Which image of SOURCE.")
@click.option(
    "--key", "key_file", type=click.Path(path_type=Path), help="Public key, if SOURCE is a bundle."
)
@harbor_options
@output_option
def push(
    source: str,
    target: str,
    project: str,
    wanted: str,
    key_file: Path | None,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Push images and charts from SOURCE into Harbor, with digests compared on the way.

    SOURCE is a bundle (with --key), an OCI image layout (folder or tar), a docker-archive, a
    packaged chart (.tgz), or docker:NAME for an image of this machine's Docker Engine.

    Exit code 2: SOURCE or a name is wrong. 3: the bundle is not trusted. 4: something differs from
    its digest. 6: Harbor refused, or network or disk.
    """
    from installer.oci.copy import copy  # noqa: PLC0415 (slow to import)

    if bool(target) == bool(project):
        raise InvalidInput(
            "give --to or --project", hint="--to PROJECT/NAME:TAG names one image, --project all"
        )
    access = reach(target or f"{project}/x")
    with ExitStack() as stack:
        store, images = _source(source, key_file, stack)
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
    source: str, key_file: Path | None, stack: ExitStack
) -> tuple[ArchiveStore | BundleStore, Sequence[FoundImage]]:
    """Open what images come from; the stack keeps it open."""
    from installer.oci.archive_store import (  # noqa: PLC0415 (slow to import)
        FoundImage,
        is_bundle,
        open_archive,
    )

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
        from installer.bundle.catalog import catalog  # noqa: PLC0415 (slow to import)
        from installer.bundle.manifest import Chart, Image  # noqa: PLC0415
        from installer.cli.open import TrustOptions, open_verified  # noqa: PLC0415
        from installer.oci.bundle_store import BundleStore  # noqa: PLC0415

        if key_file is None:
            raise InvalidInput(
                f"{path}: is a bundle, which is used only if its signature holds",
                hint="give --key release.pub",
            )
        bundle = stack.enter_context(open_verified(path, TrustOptions(key_file, None)))
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
    if key_file is not None:
        raise InvalidInput(f"{path}: is no bundle, so that --key says nothing about it")
    if path.suffix == ".tgz":
        from installer.helm.artefact import chart_store  # noqa: PLC0415 (only for charts)

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
    from installer.oci.copy import CopyItem  # noqa: PLC0415 (slow to import)
    from installer.oci.reference import Reference  # noqa: PLC0415

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
    from installer.oci.reference import Reference  # noqa: PLC0415 (slow to import)

    try:
        reference = Reference.parse(wanted)
        return any(Reference.parse(name) == reference for name in image.names)
    except InvalidInput:
        return False


def _path_of(image: FoundImage) -> str:
    """Repository that a bundle has it under; archives don't ask."""
    from installer.oci.reference import Reference  # noqa: PLC0415 (slow to import)

    return Reference.parse(image.names[0]).path if image.names else "image"


def _bytes(store: ArchiveStore | BundleStore, items: Sequence[CopyItem]) -> int:
    """What there is to move at most; 0 where only the copy itself finds out."""
    from installer.oci.graph import ImageIndex, read_manifest  # noqa: PLC0415 (slow to import)
    from installer.oci.store import read_all  # noqa: PLC0415

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


@command.command("sign")
@click.argument("reference", metavar="REF")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path))
@click.option("--passphrase-file", help=f"Else {PASSPHRASE_VARIABLE}, else asked.")
@harbor_options
@output_option
def sign(
    reference: str,
    key_file: Path,
    passphrase_file: str | None,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Sign the image REF in Harbor with the private key, as cosign does.

    Both of cosign's forms are written: the older one is what every Harbor counts as a signature.
    Of an image for several platforms each is signed. Signing again changes nothing.

    Exit code 2: the key or the name is wrong. 6: Harbor refused, or can't be reached.
    """
    from installer import keys  # noqa: PLC0415 (slow to import)
    from installer.oci import signatures  # noqa: PLC0415

    access = reach(reference)
    wanted = access.reference(reference)
    key = keys.load(key_file, passphrase(passphrase_file, PASSPHRASE_VARIABLE, confirm=False))
    with access.registry() as registry:
        digest = access.digest(registry, wanted)
        done = signatures.sign(registry, wanted.path, digest, key)
    name = f"{wanted.repository}@{digest}"
    if output == "json":
        print_json(
            {
                "image": name,
                "keyId": key.public.key_id,
                "signed": [str(one) for one in done.made],
                "unchanged": [str(one) for one in done.there],
                "withoutBundle": [str(one) for one in done.without_bundle],
            }
        )
        return
    click.echo(name)
    said = f"{len(done.made)} signed" if done.made else "signed before"
    say(f"{said} with key {key.public.key_id[:16]}; check it: installer image verify --key PUB")
    if done.without_bundle:
        say(
            f"warning: {len(done.without_bundle)} only in the older form: "
            "a policy of the project keeps the manifest back"
        )


@command.command("verify")
@click.argument("reference", metavar="REF")
@click.option("--key", "key_file", required=True, type=click.Path(path_type=Path))
@harbor_options
@output_option
def verify(
    reference: str, key_file: Path, reach: Callable[[str], HarborAccess], output: str
) -> None:
    """Check that REF is signed with the key whose public half is given; signs of cosign count.

    Harbor's own content trust only looks whether there is something that looks like a signature.

    Exit code 3: not signed, or not with this key. 6: Harbor can't be reached.
    """
    from installer.cli.open import read_key  # noqa: PLC0415 (slow to import)
    from installer.oci import signatures  # noqa: PLC0415
    from installer.oci.cosign import SigningIdentity  # noqa: PLC0415

    access = reach(reference)
    wanted = access.reference(reference)
    identity = SigningIdentity.parse(read_key(key_file), str(key_file))
    with access.registry() as registry:
        digest = access.digest(registry, wanted)
        held = signatures.verify(registry, wanted.path, digest, identity)
    name = f"{wanted.repository}@{digest}"
    forms = list(dict.fromkeys(one.form for one in held))
    if output == "json":
        print_json({"image": name, "keyId": identity.key_id, "forms": forms})
    else:
        click.echo(name)
        say(f"signed with key {identity.key_id[:16]} ({', '.join(forms)})")


@command.command("scan")
@click.argument("reference", metavar="REF")
@click.option(
    "--severity",
    type=click.Choice(_SEVERITIES, case_sensitive=False),
    help="Fail if something of this severity or a worse one is found.",
)
@click.option("--timeout", default=900, show_default=True, help="Seconds to wait for the scan.")
@harbor_options
@output_option
def scan(
    reference: str,
    severity: str | None,
    timeout: int,
    reach: Callable[[str], HarborAccess],
    output: str,
) -> None:
    """Let Harbor scan the image REF now, wait for it, and show what it found.

    Exit code 6: Harbor can't be reached. 7: it refuses to scan that. 8: the scan failed, or found
    something of --severity.
    """
    from installer.harbor.scan import find_artifact  # noqa: PLC0415 (slow to import)
    from installer.harbor.scan import scan as run_scan  # noqa: PLC0415

    access = reach(reference)
    wanted = access.reference(reference)
    with access.client() as client:
        digest = (
            str(wanted.digest or "") or find_artifact(client, wanted.path, wanted.version).digest
        )
        watch = (lambda state: say(f"scan: {state.lower()}")) if output == "table" else _silent
        report = run_scan(client, wanted.path, digest, patience=timeout, watch=watch)
    name = f"{wanted.repository}@{digest}"
    counts = report.counts()
    found = report.worst_first
    if output == "json":
        import msgspec  # noqa: PLC0415 (slow to import)

        print_json({"image": name, "counts": counts} | msgspec.to_builtins(report))
    else:
        rows = [
            (one.severity, one.id, one.package, one.version, one.fix_version or "-")
            for one in found
        ]
        if rows:
            print_table(name, ("severity", "id", "package", "version", "fixed in"), rows)
        summary = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing found"
        click.echo(f"{summary}; scanned by {report.scanner.name} {report.scanner.version}")
    if severity and (bad := report.at_least(severity.lower())):
        raise AcceptanceFailed(
            f"{name}: {len(bad)} findings of severity {severity.lower()} or worse",
            hint="update the packages that have a fix, and push and scan the new image",
        )


def _silent(state: str) -> None:
    del state
