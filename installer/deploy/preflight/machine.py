"""What is asked of this machine: files, room, names and addresses that Harbor needs."""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from installer.bundle.manifest import parse_time
from installer.deploy import redis
from installer.deploy.context import check_state_folder
from installer.deploy.nfs import check_export, minor_version
from installer.deploy.preflight.gather import gather
from installer.deploy.preflight.verdict import Check
from installer.errors import AirgapError
from installer.harbor.values import host_of
from installer.site.authority import utc_now
from installer.site.section import check_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from installer.deploy.context import Context
    from installer.deploy.harbor import HarborParts
    from installer.deploy.push import PushBundle
    from installer.deploy.seed import ServeBundle
    from installer.site.harbor import Harbor, Nfs, Redis
    from installer.site.model import Site

_CONNECTING = 5.0
_SOON = timedelta(days=30)
_SPARE = 64 << 20
"""Bytes that a state folder needs besides the tools: charts, kubectl's cache, the journal."""
_NFS = 2049


def told(name: str, ask: Callable[[], Iterable[Check]]) -> list[Check]:
    """Ask, and take what refuses as a failed check."""
    found: list[Check] = []
    try:
        found.extend(ask())
    except AirgapError as error:
        found.append(Check.refused(name, error))
    return found


def bundle(context: Context) -> Iterator[Check]:
    """Which bundle it is, and how long it may still be used."""
    manifest = context.bundle.manifest
    text = (
        f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}, signed by key "
        f"{context.bundle.signers[0][:16]}; a run checks every byte first"
    )
    if manifest.expires and parse_time(manifest.expires) - utc_now() < _SOON:
        hint = f"it is refused after {manifest.expires}: get a newer one before"
        yield Check("bundle", "warning", text, hint)
    else:
        yield Check("bundle", "ok", text)


def paths(site: Site) -> Iterator[Check]:
    """The files and folders that site.yaml names are there."""
    check_paths(site)
    yield Check("site.yaml", "ok", "the files and folders that it names are there")


def state_folder(context: Context) -> Iterator[Check]:
    """The state folder is private and has room for tools and charts."""
    state = context.state
    check_state_folder(state)
    needed = _SPARE
    if not state.path("tools").is_dir():
        needed += sum(tool.size for tool in context.bundle.manifest.tools)
    there = next(path for path in (state.folder, *state.folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    text = f"{state.folder}: {free >> 20} MiB free"
    if free < needed:
        hint = "make room, or name another folder with --state"
        yield Check("state folder", "failed", f"{text}, {needed >> 20} MiB are needed", hint)
    else:
        yield Check("state folder", "ok", text)


def of_parts(key: str, harbor: HarborParts, *, there: bool) -> dict[str, Callable[[], list[Check]]]:
    """What the parts of a Harbor say themselves, and what its certificate warns of.

    ``there`` says whether the cluster can be asked.
    """
    found: dict[str, Callable[[], list[Check]]] = {}
    for part, look in harbor.preflights().items():
        if part == "cert-manager" and not there:
            continue
        name = f"{part} {key}"
        warned = harbor.certificate.warnings if part == "certificate" else tuple
        found[name] = partial(_part, name, look, warned)
    return found


def _part(name: str, look: Callable[[], None], warned: Callable[[], Sequence[str]]) -> list[Check]:
    look()
    if sentences := warned():
        return [Check(name, "warning", "; ".join(sentences))]
    return [Check(name, "ok", "nothing stands against it")]


def seed_registry(site: Site, seed: ServeBundle | PushBundle) -> list[Check]:
    """The seed registry can be started here, or is logged in to."""
    seed.preflight()
    if site.seed.serve is not None:
        return [Check("seed registry", "ok", f"{site.seed.serve.listen} is free, or ours already")]
    # The first step asks it for what it has, which can take long: not here.
    return [Check("seed registry", "ok", "how to log in is known; a run asks it first of all")]


def addresses(site: Site, key: str, harbor: Harbor) -> dict[str, Callable[[], list[Check]]]:
    """Questions about hosts that a Harbor needs, asked from this machine."""
    name = f"DNS {key}"
    found: dict[str, Callable[[], list[Check]]] = {}
    found[name] = partial(_resolved, name, host_of(harbor.external_url))
    if harbor.storage is not None and harbor.storage.nfs is not None:
        nfs = harbor.storage.nfs
        port = next((o[5:] for o in nfs.mount_options if re.match(r"port=[0-9]+\Z", o)), _NFS)
        # Nodes mount it: elsewhere that it does not answer says little.
        here = bool(site.nodes.containerd_certs_dir)
        found[f"NFS {key}"] = partial(_nfs, f"NFS {key}", nfs, int(port), here=here)
    for address in harbor.redis.addresses if harbor.redis else ():
        name = f"Redis {address} {key}"
        found[name] = partial(_redis, name, harbor.redis, address)
    return found


def _redis(name: str, section: Redis | None, address: str) -> list[Check]:
    if section is None:
        return []
    try:
        return [Check(name, "ok", redis.ask(section, address))]
    except redis.Unreachable as error:
        hint = "pods may reach it all the same: is it running, and does a firewall let them in?"
        return [Check(name, "warning", error.message, hint)]


def _resolved(name: str, host: str) -> list[Check]:
    if is_address(host):
        return [Check(name, "ok", f"externalURL has an address: {host}")]
    # The resolver has no deadline of its own that would be short enough.
    answer = gather({host: partial(socket.getaddrinfo, host, None)}, _CONNECTING * 2)[host]
    if isinstance(answer, AirgapError):
        text = f"{host}, the host of externalURL, is not known here: {answer.message}"
        hint = "enter it in the site's DNS, or in /etc/hosts here and on clients: Harbor is asked "
        return [Check(name, "failed", text, f"{hint}there at the end of a run")]
    addresses = ", ".join(dict.fromkeys(str(one[4][0]) for one in answer))
    return [Check(name, "ok", f"{host} is {addresses}")]


def is_address(host: str) -> bool:
    """Whether a host is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reached(name: str, host: str, port: int, *, here: bool) -> list[Check]:
    reason = _unreachable(host, port)
    if not reason:
        return [Check(name, "ok", f"{host}:{port} takes connections")]
    hint = "is the service running, and does a firewall let this machine and the nodes in?"
    return [Check(name, "failed" if here else "warning", f"{host}:{port}: {reason}", hint)]


def _nfs(name: str, nfs: Nfs, port: int, *, here: bool) -> list[Check]:
    minor = minor_version(nfs.mount_options)
    if minor is None:
        return _reached(name, nfs.server, port, here=here)
    return [check_export(name, nfs, port, minor, here=here)]


def _unreachable(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=_CONNECTING).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def insecure_settings(site: Site) -> Iterator[Check]:
    """Chart defaults that are published are refused with the values; these are choices."""
    chosen = []
    push = site.seed.push
    if push is not None and push.plain_http and push.username:
        chosen.append("seed.push.plainHTTP: the password for the registry is sent in the clear")
    for release in site.releases:
        harbor = release.harbor
        if harbor is not None and harbor.external_url.startswith("http:"):
            chosen.append(f"{release.key}: externalURL is http: passwords are sent in the clear")
        database = harbor.database if harbor else None
        if database is not None and database.ssl_mode == "disable":
            chosen.append(f"{release.key}: database.sslMode is disable: nothing is encrypted")
    if chosen:
        hint = "fine for a trial; a certificate of its own takes `certificate: {selfSigned: {}}`"
        yield Check("insecure settings", "warning", "; ".join(chosen), hint)
    else:
        yield Check("insecure settings", "ok", "none; no default secret of a chart is used")
