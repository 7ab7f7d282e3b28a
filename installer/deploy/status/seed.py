"""The registry that nodes pull from: ours, or the site's own that content was pushed into."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from installer.deploy.push import PushBundle
from installer.deploy.seed import DATABASES, ServedBundle
from installer.deploy.status.certificate import certificate_line
from installer.deploy.status.line import PATIENCE, RUN_AGAIN, SHORT, WORDS, Line
from installer.site.http import NotAnswering, request
from installer.site.section import split_address
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from installer.deploy.context import Context
    from installer.site.model import Push, Serve


class _Check(msgspec.Struct, frozen=True):
    failed: tuple[str, ...] = ()


class _Bundle(msgspec.Struct, frozen=True):
    digest: str
    name: str = ""
    serial: int = 0


class _Health(msgspec.Struct, frozen=True):
    """As much of the registry's ``/healthz`` as is shown."""

    bundles: tuple[_Bundle, ...]
    check: _Check = _Check()


def seed_lines(context: Context, now: datetime) -> Iterator[Line]:
    """Whether it answers and has this bundle."""
    seed = context.site.seed
    if seed.serve is not None:
        yield from _serve(context, seed.serve, now)
    elif seed.push is not None:
        yield from _push(context, seed.push, now)


def _serve(context: Context, serve: Serve, now: datetime) -> Iterator[Line]:
    ca = context.state.path("seed/ca.crt")
    url = f"{'https' if serve.tls else 'http'}://{serve.address}"
    try:
        health = decode_json(request(f"{url}/healthz", str(ca)).body, _Health)
    except NotAnswering as error:
        hint = f"nodes can't pull a pod's image again without it: {RUN_AGAIN}"
        yield Line("seed registry", "answer", "failed", error.message, hint)
        return
    except (msgspec.DecodeError, UnicodeDecodeError):
        hint = "does another program listen at this address?"
        yield Line("seed registry", "answer", "failed", f"{url}: not our registry", hint)
        return
    served = ", ".join(f"{b.name} serial {b.serial} ({b.digest[:SHORT]})" for b in health.bundles)
    beside = context.state.read(f"seed/{DATABASES}.json", ServedBundle)
    digests = {bundle.digest for bundle in health.bundles} - {beside.digest if beside else ""}
    bundles = (context.bundle, *context.bundle.bases)
    mine = digests == {str(bundle.digest) for bundle in bundles}
    text = f"{url} serves {served or 'nothing'}" + ("" if mine else ", not this bundle")
    yield Line(
        "seed registry", "answer", "ok" if mine else "warning", text, "" if mine else RUN_AGAIN
    )
    if bad := health.check.failed:
        hint = "the medium or the file is damaged: copy the bundle again"
        text = f"{len(bad)} members are damaged: {bad[0][:WORDS]}"
        yield Line("seed registry", "content", "failed", text, hint)
    if serve.tls:
        host, port = split_address(serve.address)
        yield certificate_line("seed registry", host, port, str(ca), now, renewed=True)


def _push(context: Context, push: Push, now: datetime) -> Iterator[Line]:
    host = push.registry.partition("/")[0]
    url = f"{'http' if push.plain_http else 'https'}://{host}/v2/"
    try:
        answer = request(url, push.ca, timeout=PATIENCE)
    except NotAnswering as error:
        hint = "nodes can't pull a pod's image again without it"
        yield Line("seed registry", "answer", "failed", error.message, hint)
        return
    if answer.status not in (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED):
        text = f"{url}: HTTP {answer.status}"
        yield Line("seed registry", "answer", "failed", text, "is it one?")
        return
    yield Line("seed registry", "answer", "ok", f"{push.registry} answers")
    if not push.plain_http:
        name, port = split_address(host if host.rpartition(":")[2].isdigit() else f"{host}:443")
        yield certificate_line("seed registry", name, port, push.ca, now)
    if PushBundle(push, context.bundle).check():
        yield Line("seed registry", "content", "ok", "it has all of this bundle")
    else:
        text = "it lacks something of this bundle, or does not show it"
        yield Line("seed registry", "content", "warning", text, RUN_AGAIN)
