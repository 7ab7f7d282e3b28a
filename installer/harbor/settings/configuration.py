"""What ``/configurations`` has: what holds for all of Harbor, and where its users come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from installer.errors import InvalidInput, PreflightFailed
from installer.harbor.settings.change import Change, Line, Remark, size_words, words
from installer.site.harbor_settings_check import quota_bytes
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from installer.harbor.settings.change import Apply
    from installer.harbor.settings.target import Target
    from installer.site.harbor_settings import Ldap, Login, Oidc, System

_SCOPES = {"base": 0, "oneLevel": 1, "subtree": 2}


class Option(NamedTuple):
    """A key of site.yaml, the one of ``/configurations``, and what it should be."""

    label: str
    key: str
    value: Any


def system_options(system: System) -> Iterator[Option]:
    """What the section asks for; what is left out is not there."""
    plain = (
        Option("projectCreation", "project_creation_restriction", system.project_creation or None),
        Option("selfRegistration", "self_registration", system.self_registration),
        Option("robotPrefix", "robot_name_prefix", system.robot_prefix or None),
        Option("robotDays", "robot_token_duration", system.robot_days),
        Option("tokenMinutes", "token_expiration", system.token_minutes),
        Option("sessionMinutes", "session_timeout", system.session_minutes),
        Option("webhooksEnabled", "notification_enable", system.webhooks_enabled),
        Option(
            "scannerKeepsPullTime", "scanner_skip_update_pulltime", system.scanner_keeps_pull_time
        ),
    )
    yield from (option for option in plain if option.value is not None)
    if system.project_quota:
        yield Option("projectQuota", "storage_per_project", quota_bytes(system.project_quota))
    if (banner := system.banner) is not None:
        shown = {"message": banner.message, "type": banner.type, "closable": banner.closable}
        text = json.dumps(shown, separators=(",", ":")) if banner.message else ""
        yield Option("banner", "banner_message", text)


def login_options(login: Login) -> Iterator[Option]:
    """The same of the section ``login``, without its secrets."""
    mode = "oidc_auth" if login.oidc else "ldap_auth" if login.ldap else "db_auth"
    yield Option("login", "auth_mode", mode)
    if login.primary is not None:
        yield Option("login.primary", "primary_auth_mode", login.primary)
    if login.oidc is not None:
        yield from _oidc(login.oidc)
    if login.ldap is not None:
        yield from _ldap(login.ldap)


def _oidc(oidc: Oidc) -> Iterator[Option]:
    for name, key in (
        ("name", "oidc_name"),
        ("endpoint", "oidc_endpoint"),
        ("client_id", "oidc_client_id"),
        ("scope", "oidc_scope"),
        ("groups_claim", "oidc_groups_claim"),
        ("admin_group", "oidc_admin_group"),
        ("group_filter", "oidc_group_filter"),
        ("user_claim", "oidc_user_claim"),
        ("auto_onboard", "oidc_auto_onboard"),
        ("verify_certificate", "oidc_verify_cert"),
        ("logout", "oidc_logout"),
    ):
        if (value := getattr(oidc, name)) is not None:
            yield Option(f"login.oidc.{_camel(name)}", key, value)


def _ldap(ldap: Ldap) -> Iterator[Option]:
    for label, key, value in (
        ("url", "ldap_url", ldap.url),
        ("baseDN", "ldap_base_dn", ldap.base_dn),
        ("searchDN", "ldap_search_dn", ldap.search_dn),
        ("filter", "ldap_filter", ldap.filter),
        ("uid", "ldap_uid", ldap.uid),
        ("scope", "ldap_scope", _SCOPES[ldap.scope]),
        ("verifyCertificate", "ldap_verify_cert", ldap.verify_certificate),
        ("timeout", "ldap_timeout", ldap.timeout),
    ):
        yield Option(f"login.ldap.{label}", key, value)
    if (groups := ldap.groups) is None:
        return
    for label, key, value in (
        ("baseDN", "ldap_group_base_dn", groups.base_dn),
        ("filter", "ldap_group_search_filter", groups.filter),
        ("nameAttribute", "ldap_group_attribute_name", groups.name_attribute),
        ("adminDN", "ldap_group_admin_dn", groups.admin_dn),
        ("membershipAttribute", "ldap_group_membership_attribute", groups.membership_attribute),
        ("scope", "ldap_group_search_scope", _SCOPES[groups.scope]),
    ):
        yield Option(f"login.ldap.groups.{label}", key, value)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def configuration_changes(
    found: Mapping[str, Any], options: Iterable[Option], version: object
) -> tuple[tuple[Line, ...], dict[str, Any]]:
    """Lines and the body of the PUT for what differs from ``GET /configurations``.

    That answer says which keys this Harbor has and which may be set: raises PreflightFailed.
    """
    told: list[Line] = []
    body: dict[str, Any] = {}
    for option in options:
        if option.key not in found:
            raise PreflightFailed(
                f"{option.label}: Harbor {version} has no such option ({option.key})",
                hint="leave it out of site.yaml, or upgrade Harbor first",
            )
        before = found[option.key].get("value")
        if _same(option.key, before, option.value):
            continue
        if not found[option.key].get("editable", True):
            raise PreflightFailed(
                f"{option.label}: Harbor does not let {option.key} be changed",
                hint="it is set by CONFIG_OVERWRITE_JSON among the chart's values for core",
            )
        show = size_words if option.key == "storage_per_project" else words
        told.append(Line(option.label, show(before), show(option.value)))
        body[option.key] = option.value
    return tuple(told), body


def _same(key: str, before: Any, after: Any) -> bool:
    if key == "banner_message" and before and after:
        try:
            return bool(decode_json(before, dict[str, Any]) == decode_json(after, dict[str, Any]))
        except (msgspec.DecodeError, TypeError):
            return False
    if key.endswith("_endpoint") or key == "ldap_url":
        return str(before or "").rstrip("/") == str(after).rstrip("/")
    if key == "disabled_audit_log_event_types":
        return set(listed(before)) == set(listed(after))
    return bool(before == after)


def listed(text: Any) -> list[str]:
    """The parts of a text with commas."""
    return [part.strip() for part in str(text or "").split(",") if part.strip()]


def configuration(target: Target) -> Iterator[Change | Remark]:
    """Sections ``system`` and ``login``."""
    settings, found = target.settings, target.configuration()
    if settings.system is not None:
        told, body = configuration_changes(found, system_options(settings.system), target.version)
        if told:
            yield Change("system settings", told, _put_configuration(target, body))
    login = settings.login
    if login is None:
        return
    told, body = configuration_changes(found, login_options(login), target.version)
    name, file, key = "", "", ""
    if login.oidc is not None:
        name, file, key = "oidc", login.oidc.client_secret_file, "oidc_client_secret"
    elif login.ldap is not None:
        name, file, key = "ldap", login.ldap.search_password_file, "ldap_search_password"
    secret, more = target.secret(f"login/{name}", file, f"login.{name} secret")
    if file and not secret and any(line.key == "login" for line in told):
        raise InvalidInput(
            f"login.{name}: {file}: there is no such file",
            hint="its secret has to be sent to Harbor once; then the file may be gone",
        )
    if told or more:
        remembered = {f"login/{name}": secret} if secret else {}
        body = body | ({key: secret} if secret else {})
        yield Change("login", told + more, _put_configuration(target, body, remembered))


def _put_configuration(
    target: Target, body: dict[str, Any], secrets: Mapping[str, str] | None = None
) -> Apply:
    def apply() -> str:
        target.client.put("/configurations", body)
        for name, secret in (secrets or {}).items():
            target.memory.remember(name, secret)
        return ""

    return apply
