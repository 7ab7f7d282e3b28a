"""Spec to lock: what a person wrote becomes every digest, size and place that a build needs.

(1) tools, since the Helm among them is the one that renders, here as at the site;
(2) charts;
(3) each profile of each chart is rendered, and the objects searched for images;
(4) these and the spec's own images are resolved, each with the fields that want it;
(5) Trivy's databases and other files;
(6) all of it becomes one lock, whose names at the site must not clash.

Failures of one step are told together: whoever mends a spec wants to run this twice, not ten times.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from bundler.cache import read_chunks
from bundler.lock import Excluded, Lock, bundle_manifest, encode_lock
from bundler.pins import pins
from bundler.platforms import named
from bundler.sources.chart import lock_chart, provenance
from bundler.sources.file import lock_file
from bundler.sources.image import lock_image
from bundler.sources.tool import lock_tool
from bundler.sources.trivy import lock_database
from bundler.sources.upstream import Locked
from bundler.sources.verification import check_required
from bundler.spec import matches
from installer.bundle.catalog import catalog
from installer.bundle.digest import verified
from installer.bundle.manifest import (
    SIGNATURE_AREA,
    Origin,
    Verification,
    decode,
    encode,
    format_time,
)
from installer.documents import nearest
from installer.errors import (
    AirgapError,
    Corrupt,
    InvalidInput,
    NotFound,
    NotTrusted,
    TransferFailed,
)
from installer.helm.chart import ChartArchive
from installer.helm.client import Helm
from installer.helm.images import find_images
from installer.helm.values import unknown_keys
from installer.oci.platforms import own_platform

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from bundler.lock import Blob
    from bundler.sources.upstream import Upstream
    from bundler.spec import Spec
    from bundler.spec_document import BundleSpec
    from bundler.spec_document import Chart as ChartSource
    from bundler.spec_document import Database as DatabaseSource
    from installer.bundle.manifest import Chart, Database, Image, Tool
    from installer.oci.reference import Reference

THREADS = 8
"""Requests at once: most of the time goes into waiting for registries."""
HELM = "helm"
"""Name of the tool that renders charts."""
_NAMESPACE = "default"
_SHOWN = 3

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def resolve(
    spec: Spec,
    upstream: Upstream,
    *,
    now: datetime,
    previous: Lock | None = None,
    update: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Lock:
    """Resolve everything in the spec; ``progress`` is told in a few words what comes next.

    Where nothing differs from ``previous``, its serial and date are kept. With ``update`` only what
    it names is taken anew, all else by the digests of ``previous``. Raises InvalidInput, NotFound,
    TransferFailed, Corrupt or NotTrusted.
    """
    wanted = spec.document
    if update and previous is not None:
        upstream.pins = pins(previous, update)
    if wanted.expires and wanted.expires < now.date():
        raise InvalidInput(f"{spec.path}: expires: {wanted.expires} has passed already")
    platforms = named(wanted.platforms)
    with ThreadPoolExecutor(THREADS) as pool:
        each = partial(_each, pool)
        progress(f"resolving {len(wanted.tools)} tools and {len(wanted.charts)} charts")
        tools = each(partial(lock_tool, upstream, platforms[0]), wanted.tools)  # (1)
        charts = each(partial(_lock_chart, upstream, spec), wanted.charts)  # (2)
        origins = {image: [_own(wanted)] for image in spec.images}
        excluded: tuple[Excluded, ...] = ()
        if charts:
            progress(f"rendering {sum(len(c.entry.profiles) for c in charts)} profiles")
            with _renderer(upstream, spec, tools, charts) as (render, vouch):  # (3)
                charts = each(vouch, zip(wanted.charts, charts, strict=True))
                for found in each(render, _renderings(charts)):
                    for reference, origin in found:
                        origins.setdefault(reference, []).append(origin)
        excluded = _exclude(spec, origins)
        _check_rules(spec, origins)
        progress(f"resolving {len(origins)} images")
        images = each(partial(_lock_image, upstream, spec), origins.items())  # (4)
        progress(f"resolving {len(wanted.databases)} databases and {len(wanted.files)} files")
        databases = each(partial(_lock_database, upstream, spec, now), wanted.databases)  # (5)
        files = each(partial(lock_file, upstream), wanted.files)
    locked: list[Locked[Any]] = [*tools, *charts, *images, *databases, *files]
    draft = Lock(  # (6)
        api_version="bundle/v1",
        kind="BundleLock",
        name=wanted.name,
        channel=wanted.channel,
        serial=0,
        created=format_time(now),
        spec_digest=str(spec.digest()),
        platforms=platforms,
        blobs=merge_blobs(blob for item in locked for blob in item.blobs),
        expires=f"{wanted.expires}T23:59:59Z" if wanted.expires else "",
        charts=tuple(sorted((c.entry for c in charts), key=lambda c: (c.name, c.version))),
        images=tuple(sorted((i.entry for i in images), key=lambda i: i.reference)),
        tools=tuple(sorted((t.entry for t in tools), key=lambda t: (t.name, t.platform))),
        databases=tuple(sorted((d.entry for d in databases), key=lambda d: d.reference)),
        files=tuple(sorted((f.entry for f in files), key=lambda f: f.name)),
        excluded=excluded,
    )
    _check(draft)
    if wanted.verify.required:
        check_required(draft)
    return number(draft, previous, now)


def number(draft: Lock, previous: Lock | None, now: datetime) -> Lock:
    """Give a lock its serial and date: those of the previous one when all else is the same.

    A serial is at least the time in seconds, so that it grows even when a lock was lost.
    """
    if previous is not None:
        same = msgspec.structs.replace(draft, serial=previous.serial, created=previous.created)
        if encode_lock(same) == encode_lock(previous):
            return previous
    serial = max(previous.serial + 1 if previous else 0, int(now.timestamp()))
    return msgspec.structs.replace(draft, serial=serial, created=format_time(now))


def merge_blobs(blobs: Iterable[Blob]) -> tuple[Blob, ...]:
    """Each blob once, by digest; of several places the same one is chosen whatever their order.

    Raises Corrupt when one digest is said to have two sizes.
    """
    chosen: dict[str, Blob] = {}
    for blob in blobs:
        other = chosen.setdefault(blob.digest, blob)
        if other.size != blob.size:
            raise Corrupt(
                f"{blob.digest} has {blob.size} bytes in {blob.repository or blob.source}, "
                f"{other.size} in {other.repository or other.source}",
                hint="one of these manifests is wrong; nothing can be built from it",
            )
        chosen[blob.digest] = min(blob, other, key=_preference)
    return tuple(chosen[digest] for digest in sorted(chosen))


def _preference(blob: Blob) -> tuple[bool, str, str, str, str]:
    """What is in the lock itself needs no network; the rest is only for a fixed order."""
    return blob.text is None, blob.source, blob.repository, blob.member, blob.media_type


def _check(draft: Lock) -> None:
    """Make sure that a bundle of this lock can be read, and named at the site."""
    manifest = bundle_manifest(draft, (), SIGNATURE_AREA)
    catalog(manifest)
    decode(encode(manifest))


def _lock_chart(upstream: Upstream, spec: Spec, wanted: ChartSource) -> Locked[Chart]:
    profiles = {name: spec.profiles[name] for name in wanted.profiles}
    signer = spec.identity(wanted.verify)
    return lock_chart(upstream, wanted, profiles, spec.document.referrers, signer)


def _lock_database(
    upstream: Upstream, spec: Spec, now: datetime, wanted: DatabaseSource
) -> Locked[Database]:
    return lock_database(upstream, wanted, now, spec.identity(wanted.verify))


def _exclude(spec: Spec, origins: dict[Reference, list[Origin]]) -> tuple[Excluded, ...]:
    """Take out of ``origins`` what the spec leaves out, and say what that was.

    Raises InvalidInput for an exclude that fits nothing, or an image that the spec itself lists.
    """
    excluded: dict[Reference, Excluded] = {}
    for index, exclude in enumerate(spec.document.exclude):
        where = f"{spec.path}: exclude[{index}]: {exclude.image}"
        found = [reference for reference in origins if matches(reference, exclude.image)]
        if not found and not any(matches(reference, exclude.image) for reference in excluded):
            near = nearest(exclude.image, [str(reference) for reference in origins])
            raise InvalidInput(
                f"{where}: no image is left out by this",
                hint=f"did you mean {near}?" if near else "remove it, or mend the pattern",
            )
        for reference in found:
            if reference in spec.images:
                raise InvalidInput(f"{where}: {reference} is listed under images as well")
            because = tuple(sorted(set(origins.pop(reference))))
            excluded[reference] = Excluded(str(reference), exclude.reason, because)
    return tuple(excluded[reference] for reference in sorted(excluded, key=str))


def _check_rules(spec: Spec, origins: Iterable[Reference]) -> None:
    """Refuse a rule that is about no image: a signature would be asked of nothing."""
    references = list(origins)
    written = spec.document
    rules = [(f"verify.images[{i}]", rule.match) for i, rule in enumerate(written.verify.images)]
    rules += [(f"imagePlatforms[{i}]", r.match) for i, r in enumerate(written.image_platforms)]
    for where, pattern in rules:
        if not any(matches(reference, pattern) for reference in references):
            raise InvalidInput(
                f"{spec.path}: {where}: {pattern} fits no image",
                hint="patterns are of whole references: docker.io/goharbor/*",
            )


class _Rendering(NamedTuple):
    """A profile of a chart, to be rendered."""

    chart: Chart
    profile: str
    values: dict[str, Any]


def _renderings(charts: Iterable[Locked[Chart]]) -> list[_Rendering]:
    return [
        _Rendering(chart.entry, profile, values)
        for chart in charts
        for profile, values in chart.entry.profiles.items()
    ]


@contextmanager
def _renderer(
    upstream: Upstream,
    spec: Spec,
    tools: Sequence[Locked[Tool]],
    charts: Sequence[Locked[Chart]],
) -> Iterator[
    tuple[
        Callable[[_Rendering], list[tuple[Reference, Origin]]],
        Callable[[tuple[ChartSource, Locked[Chart]]], Locked[Chart]],
    ]
]:
    """A function that renders, and one that checks a chart's provenance.

    Helm and charts lie in a private folder, gone afterwards.
    """
    wanted = spec.document
    tool = _own_helm(tools)
    with tempfile.TemporaryDirectory(prefix="bundler-") as name:
        folder = Path(name)
        binary = folder / HELM
        _copy(upstream, tool, tool.entry.sha256, binary)
        binary.chmod(0o700)
        paths = {}
        for chart in charts:
            entry = chart.entry
            paths[entry.sha256] = folder / f"{entry.name}-{entry.version}.tgz"
            _copy(upstream, chart, entry.sha256, paths[entry.sha256])
        helm = Helm(binary, folder / "home")
        helm.version()

        def vouch(pair: tuple[ChartSource, Locked[Chart]]) -> Locked[Chart]:
            source, locked = pair
            if source.verify is None or source.verify.keyring is None:
                return locked
            path = paths[locked.entry.sha256]
            path.with_name(f"{path.name}.prov").write_bytes(provenance(upstream, source, locked))
            keyring = source.verify.keyring
            held = Verification(
                "provenance",
                keyring,
                helm.verify(path, upstream.folder / keyring),
                digest=f"sha256:{locked.entry.sha256}",
            )
            verified = (*locked.entry.verified, held)
            return Locked(msgspec.structs.replace(locked.entry, verified=verified), locked.blobs)

        yield lambda item: _render(helm, paths[item.chart.sha256], wanted, item), vouch


def _render(
    helm: Helm, path: Path, spec: BundleSpec, wanted: _Rendering
) -> list[tuple[Reference, Origin]]:
    chart, profile, values = wanted
    where = f"chart {chart.name}, profile {profile}"
    archive = ChartArchive.read(path)
    unknown = unknown_keys(values, archive.values, commented=archive.commented)
    if unknown:
        hints = [f"did you mean {key.suggestion}?" for key in unknown if key.suggestion]
        raise InvalidInput(
            f"{where}: the chart has no value {', '.join(key.path for key in unknown)}",
            hint=" ".join(hints) or "Helm would ignore it without a word; see the chart's values",
        )
    found: set[tuple[Reference, Origin]] = set()
    for is_upgrade in (False, True):  # an upgrade may have hooks that an installation has not
        rendered = helm.template(
            path,
            chart.name,
            _NAMESPACE,
            values,
            kube_version=spec.kube_version or "",
            api_versions=spec.api_versions,
            is_upgrade=is_upgrade,
            profile=profile,
        )
        try:
            images = find_images(rendered)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message}", hint=error.hint) from error
        for image in images:
            at = f"{image.origin.kind}/{image.origin.name}"
            found.add((image.reference, Origin(chart.name, profile, at, image.origin.path)))
    return list(found)


def _own_helm(tools: Sequence[Locked[Tool]]) -> Locked[Tool]:
    """The spec's Helm that runs on this machine."""
    here = own_platform()
    helms = [tool for tool in tools if tool.entry.name == HELM]
    for tool in helms:
        if tool.entry.platform == here:
            return tool
    there = ", ".join(tool.entry.platform for tool in helms)
    raise InvalidInput(
        "the charts can't be rendered: "
        + (f"the tool helm is for {there}, this is {here}" if helms else "there is no tool helm"),
        hint=f"add Helm for {here} to `tools` in bundle.yaml",
    )


def _copy(upstream: Upstream, locked: Locked[Any], sha256: str, target: Path) -> None:
    """Copy the file that an artefact carries, hashed on the way: Helm is executed from the copy."""
    blob = next(blob for blob in locked.blobs if blob.descriptor.digest.hex == sha256)
    chunks = read_chunks(upstream.cached(blob).path)
    try:
        with target.open("xb") as out:
            out.writelines(verified(chunks, blob.descriptor.digest, blob.size, str(target)))
    except OSError as error:
        raise TransferFailed(f"{target}: {error.strerror}") from error


def _own(wanted: BundleSpec) -> Origin:
    return Origin("", "", f"{wanted.kind}/{wanted.name}", "images")


def _lock_image(
    upstream: Upstream, spec: Spec, wanted: tuple[Reference, list[Origin]]
) -> Locked[Image]:
    reference, origins = wanted
    written = spec.document
    entry = spec.images.get(reference)
    try:
        return lock_image(
            upstream,
            reference,
            spec.platforms(reference),
            origins,
            written.referrers,
            spec.signer(reference),
            entry.reason if entry else "",
            entry.source if entry else "",
        )
    except AirgapError as error:
        asked = [f"\n  for {_sentence(origin)}" for origin in origins[:_SHOWN]]
        if len(origins) > _SHOWN:
            asked.append(f"\n  and {len(origins) - _SHOWN} more places")
        text = "" if str(reference) in error.message else f"{reference}: "
        raise type(error)(f"{text}{error.message}{''.join(asked)}", hint=error.hint) from error


def _sentence(origin: Origin) -> str:
    if not origin.chart:
        return f"{origin.field} in the spec"
    return f"chart {origin.chart}, profile {origin.profile}: {origin.object} {origin.field}"


def _each(
    pool: ThreadPoolExecutor, work: Callable[[ItemT], ResultT], items: Iterable[ItemT]
) -> list[ResultT]:
    """Do it with all items at once; all failures are raised as one."""
    futures = [pool.submit(work, item) for item in items]
    results: list[ResultT] = []
    errors: list[AirgapError] = []
    try:
        for future in futures:
            try:
                results.append(future.result())
            except AirgapError as error:
                errors.append(error)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    if errors:
        raise _together(errors, len(futures))
    return results


def _together(errors: Sequence[AirgapError], tried: int) -> AirgapError:
    """One error out of many; what another try can't mend decides the kind."""
    if len(errors) == 1:
        return errors[0]
    kind: type[AirgapError] = TransferFailed
    if all(isinstance(error, NotFound) for error in errors):
        kind = NotFound
    for worse in (InvalidInput, Corrupt, NotTrusted):
        if any(isinstance(error, worse) for error in errors):
            kind = worse
    hints = {error.hint for error in errors}
    common = hints.pop() if len(hints) == 1 else ""
    lines = ""
    for error in errors:
        own = f"\n  ({error.hint})" if error.hint and not common else ""
        lines += f"\n- {error.message}{own}"
    return kind(f"{len(errors)} of {tried} failed:{lines}", hint=common)
