"""Scanner plug-ins, and vulnerabilities that stop nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from installer.errors import InvalidInput, PreflightFailed
from installer.harbor.api import HarborRefused
from installer.harbor.settings.change import (
    NOTHING,
    Change,
    Line,
    Remark,
    day_words,
    lines,
    unmanaged,
)
from installer.site.harbor_settings_check import day_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import CveAllowlist, Scanner


def allowlist_lines(
    found: Mapping[str, Any] | None, wanted: CveAllowlist | None, key: str = "cveAllowlist"
) -> tuple[Line, ...]:
    """What differs between two lists of vulnerabilities; the order of their ids does not."""
    if wanted is None:
        return ()
    before = sorted(item["cve_id"] for item in (found or {}).get("items") or ())
    told = lines([(f"{key}.ids", before, sorted(wanted.ids))])
    was, will = (found or {}).get("expires_at") or None, day_seconds(wanted.expires)
    if was != will:
        told += (Line(f"{key}.expires", day_words(was), day_words(will)),)
    return told


def allowlist_body(wanted: CveAllowlist) -> dict[str, Any]:
    """The same for Harbor."""
    expires = day_seconds(wanted.expires)
    body: dict[str, Any] = {"items": [{"cve_id": name} for name in wanted.ids]}
    return body if expires is None else body | {"expires_at": expires}


def cve_allowlist(target: Target) -> Iterator[Change | Remark]:
    """Vulnerabilities that stop nobody in any project."""
    wanted, path = target.settings.cve_allowlist, "/system/CVEAllowlist"
    found = target.client.get(path)
    if wanted is None:
        if count := len((found or {}).get("items") or ()):
            yield unmanaged(f"CVE allowlist of the system with {count} ids")
        return

    def apply() -> str:
        target.client.put(path, allowlist_body(wanted))
        return ""

    if told := allowlist_lines(found, wanted):
        yield Change("CVE allowlist of the system", told, apply)


def scanner_lines(found: Mapping[str, Any] | None, wanted: Scanner) -> tuple[Line, ...]:
    """What differs from a registration of Harbor's, which has no slash at its URL's end."""
    had = found or {}
    return lines(
        [
            ("url", had.get("url", "").rstrip("/"), wanted.url.rstrip("/")),
            ("description", had.get("description", ""), wanted.description),
            ("authorization", had.get("auth", ""), wanted.authorization),
            ("verifyCertificate", not had.get("skip_certVerify", False), wanted.verify_certificate),
            ("internalAddress", had.get("use_internal_addr", False), wanted.internal_address),
            ("enabled", not had.get("disabled", False), wanted.enabled),
        ]
    )


def scanners(target: Target) -> Iterator[Change | Remark]:
    """Scanner plug-ins, and which one is the default."""
    found = {one["name"]: one for one in target.client.pages("/scanners")}
    wanted = target.settings.scanners
    for scanner in wanted:
        had = found.get(scanner.name)
        name = f"scanner/{scanner.name}"
        secret, more = target.secret(name, scanner.credential_file, "credential")
        if told := scanner_lines(had, scanner) + more:
            apply = _put_scanner(target, scanner, (had or {}).get("uuid", ""), secret)
            yield Change(f"scanner {scanner.name}", told, apply, new=had is None)
    known = {scanner.name for scanner in wanted}
    for name, one in found.items():
        # The chart's own says of itself that it is the adapter in the cluster.
        if name not in (*known, target.settings.default_scanner, "Trivy"):
            yield unmanaged(f"scanner {name} at {one.get('url')}")
    default = target.settings.default_scanner
    if default:
        now = next((name for name, one in found.items() if one.get("is_default")), NOTHING)
        if default not in found and default not in known:
            raise PreflightFailed(
                f"defaultScanner: there is no scanner {default!r}",
                hint=f"Harbor has {', '.join(found) or 'none'}",
            )
        if now != default:
            told = (Line("defaultScanner", now, default),)
            yield Change("default scanner", told, _set_default(target, default))


def _put_scanner(target: Target, scanner: Scanner, uuid: str, secret: str) -> Apply:
    body = {
        "name": scanner.name,
        "url": scanner.url,
        "description": scanner.description,
        "auth": scanner.authorization,
        "skip_certVerify": not scanner.verify_certificate,
        "use_internal_addr": scanner.internal_address,
        "disabled": not scanner.enabled,
    }
    if secret:
        body["access_credential"] = secret

    def apply() -> str:
        try:
            if uuid:
                target.client.put(f"/scanners/{uuid}", body)
            else:
                target.client.post("/scanners", body)
        except HarborRefused as error:
            raise error.with_hint(
                f"Harbor's core has to reach {scanner.url}, and it has to be a scanner"
            ) from error
        if secret:
            target.memory.remember(f"scanner/{scanner.name}", secret)
        return ""

    return apply


def _set_default(target: Target, name: str) -> Apply:
    def apply() -> str:
        for one in target.client.pages("/scanners"):
            if one["name"] == name:
                target.client.patch(f"/scanners/{one['uuid']}", {"is_default": True})
                return ""
        raise InvalidInput(f"defaultScanner: there is no scanner {name!r}")

    return apply
