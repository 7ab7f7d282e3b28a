"""Names and ports that somebody else may have, and what the cluster has to know before."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from installer.deploy.preflight.objects import (
    HOOK,
    Rendered,
    annotation_of,
    list_at,
    name_of,
    namespace_of,
    value_at,
)
from installer.deploy.preflight.storage import has_default
from installer.deploy.preflight.verdict import Check, few

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from installer.deploy.preflight.objects import Object

DEFINITION = "CustomResourceDefinition"
_NODE_PORTS = range(30000, 32768)
"""Unless the API server was told otherwise (--service-node-port-range)."""


def check_ports(services: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """Node ports are free or have been ours, and no two releases want the same."""
    holders: dict[int, str] = {}
    for service in services:
        ports = [port.get("nodePort") for port in list_at(service, "spec", "ports")]
        for number in filter(None, [*ports, value_at(service, "spec", "healthCheckNodePort")]):
            holders[number] = f"{namespace_of(service)}/{name_of(service)}"
    taken, odd, fine = [], [], []
    for release in rendered:
        for number, own in release.node_ports():
            if holders.setdefault(number, own) != own:
                taken.append(f"{number} belongs to Service {holders[number]}")
            elif number not in _NODE_PORTS:
                odd.append(str(number))
            fine.append(str(number))
    if taken:
        hint = "choose others in harbor.expose (httpPort, httpsPort), or values of the chart"
        return Check("node ports", "failed", f"taken: {few(taken, '; ')}", hint)
    if odd:
        text = f"{', '.join(odd)}: not in {_NODE_PORTS[0]}-{_NODE_PORTS[-1]}"
        hint = "the API server refuses it unless its --service-node-port-range has it"
        return Check("node ports", "warning", text, hint)
    return Check("node ports", "ok", f"{', '.join(fine)} free or ours" if fine else "none needed")


def check_ingress(
    ingresses: Iterable[Object], classes: Iterable[Object], rendered: Sequence[Rendered]
) -> Check:
    """Hosts of Ingresses are nobody else's, and the IngressClass is there."""
    name = "ingress"
    hosts = {
        rule.get("host"): f"{namespace_of(one)}/{name_of(one)}"
        for one in ingresses
        for rule in list_at(one, "spec", "rules")
    }
    known = {name_of(one): one for one in classes}
    bad, unclear, fine = [], [], []
    for release in rendered:
        known |= {name_of(one): one for one in release.of_kind("IngressClass")}
        default = has_default(known.values())
        for one in release.of_kind("Ingress"):
            own = f"{release.namespace}/{name_of(one)}"
            for rule in list_at(one, "spec", "rules"):
                host = rule.get("host")
                if hosts.setdefault(host, own) != own:
                    bad.append(f"host {host} belongs to Ingress {hosts[host]}")
                fine.append(str(host))
            wanted = value_at(one, "spec", "ingressClassName")
            if wanted and wanted not in known:
                bad.append(f"there is no IngressClass {wanted!r}")
            elif not (wanted or default or annotation_of(one, "kubernetes.io/ingress.class")):
                unclear.append(f"{own} names no IngressClass, and none is the default")
    if bad:
        has = f"there is: {', '.join(sorted(known)) or 'no class'}"
        return Check(name, "failed", few(list(dict.fromkeys(bad)), "; "), f"{has}; see expose")
    if unclear:
        hint = "no controller may take it: set harbor.expose.ingressClass"
        return Check(name, "warning", few(unclear, "; "), hint)
    return Check(name, "ok", ", ".join(dict.fromkeys(fine)) or "none")


def check_objects(existing: Iterable[Sequence[str]], rendered: Sequence[Rendered]) -> Check:
    """No object has the place of a rendered one that is not the release's: Helm would refuse it.

    ``existing`` are kind, namespace ("" for none), name, and Helm's release and its namespace.
    """
    owners = {
        (kind, namespace, name): (release, of) for kind, namespace, name, release, of in existing
    }
    strange = []
    for release in rendered:
        for document in release.objects:
            kind, name = str(document.get("kind")), name_of(document)
            if kind == DEFINITION:
                continue  # what lies in a chart's crds/ belongs to no release
            places = [(kind, namespace_of(document) or release.namespace, name), (kind, "", name)]
            for place in places:
                if place not in owners or annotation_of(document, HOOK):
                    continue
                if owners[place] != (release.name, release.namespace):
                    of = "/".join(reversed(owners[place])) if owners[place][0] else "nobody"
                    where = f" in {place[1]}" if place[1] else ""
                    strange.append(f"{kind} {name}{where} (release: {of})")
    if strange:
        hint = "Helm takes no object that another one made: rename the release, or delete them"
        return Check("objects in the way", "failed", few(strange), hint)
    return Check("objects in the way", "ok", "none")


def check_releases(listed: Iterable[Object], rendered: Sequence[Rendered]) -> Check:
    """What Helm has under our names is of our charts; other releases of them are only named."""
    ours = {(one.namespace, one.name): one for one in rendered}
    wrong, others = [], []
    charts = {one.chart for one in rendered if one.chart}
    for found in listed:
        key = (str(found.get("namespace")), str(found.get("name")))
        text = str(found.get("chart"))
        chart = re.sub(r"-v?[0-9]+\.[0-9]+\.[0-9]+.*\Z", "", text)
        mine = ours.get(key)
        if mine is not None and mine.chart and chart != mine.chart:
            wrong.append(f"{mine.key} is of chart {text}, not of {mine.chart}")
        elif mine is None and chart in charts:
            others.append(f"{'/'.join(key)} ({text})")
    if wrong:
        hint = "give the release in site.yaml another name or namespace"
        return Check("other releases", "failed", few(wrong, "; "), hint)
    there = [f"{one.key} ({one.found.get('chart')})" for one in rendered if one.found]
    text = f"ours: {', '.join(there)}" if there else "none of ours yet"
    return Check(
        "other releases", "ok", text + (f"; of the same chart: {few(others)}" if others else "")
    )


def check_kinds(api_versions: Collection[str], rendered: Sequence[Rendered]) -> Check:
    """The cluster serves each apiVersion, or a release brings its definition along.

    What a release brings is there for itself and for those after it.
    """
    brought: set[str] = set()
    missing: dict[str, None] = {}
    for release in rendered:
        brought |= {
            str(value_at(document, "spec", "group"))
            for document in release.objects
            if document.get("kind") == DEFINITION
        }
        missing |= {
            f"{document.get('kind')} ({document.get('apiVersion')})": None
            for document in release.objects
            if document.get("apiVersion") not in api_versions
            and str(document.get("apiVersion")).rpartition("/")[0] not in brought
        }
    if missing:
        hint = "install what defines them before (a release that does has to come earlier in "
        hint += "site.yaml), or leave out the values that ask for them"
        return Check("kinds", "failed", f"the cluster has no {few(list(missing))}", hint)
    return Check("kinds", "ok", "the cluster serves all that is rendered")
