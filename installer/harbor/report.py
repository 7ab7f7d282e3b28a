"""The report that is handed over: what was installed, from which bundle, and how it was proven.

One document in two forms: JSON for records, and HTML that needs nothing else, reads on paper and
runs no script. All that comes from elsewhere is escaped. Pure.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Literal

import msgspec

from installer.harbor.acceptance import Finding  # noqa: TC001 (msgspec reads the annotation)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCHEMA: Literal["acceptance/v1"] = "acceptance/v1"
_MARKS = {"passed": "✓", "failed": "✗", "not checked": "○"}


class _Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Common to all parts: names as in the project's other files."""


class BundleIdentity(_Part, frozen=True):
    """Which bundle: ``digest`` is that of bundle.json, ``signers`` are ids of keys that signed."""

    name: str
    channel: str
    serial: int
    created: str
    digest: str
    signers: tuple[str, ...]
    key_file: str = ""
    expires: str = ""


class Installed(_Part, frozen=True):
    """A release of the site: chart, and where people reach it if it is a Harbor."""

    release: str
    chart: str
    version: str
    app_version: str = ""
    digest: str = ""
    url: str = ""


class Carried(_Part, frozen=True):
    """An image, a database or a tool of the bundle, by digest."""

    kind: str
    name: str
    digest: str
    note: str = ""


class Section(_Part, frozen=True):
    """Findings about one thing: a Harbor or the cluster."""

    title: str
    findings: tuple[Finding, ...]


class AcceptanceReport(_Part, frozen=True):
    """Everything; times are RFC 3339 in UTC, ``machine`` is where the installer ran."""

    schema: Literal["acceptance/v1"]
    site: str
    started: str
    finished: str
    machine: str
    installer: str
    bundle: BundleIdentity | None
    installed: tuple[Installed, ...]
    carried: tuple[Carried, ...]
    sections: tuple[Section, ...]
    failed: int = 0
    site_digest: str = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all sections."""
        return tuple(one for section in self.sections for one in section.findings)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        states = [one.state for one in self.findings]
        count = len(states)
        left = states.count("not checked")
        rest = f", {left} could not be checked here" if left else ""
        if self.failed:
            return f"Failed: {self.failed} of {count} checks{rest}."
        return f"Passed: {states.count('passed')} of {count} checks{rest}."


def as_json(report: AcceptanceReport) -> bytes:
    """For records and programs."""
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def as_html(report: AcceptanceReport) -> bytes:
    """For people, on a screen and on paper: one file, no script, nothing from elsewhere."""
    bundle = report.bundle
    facts = [("Site", report.site), ("Checked", f"{report.started} to {report.finished}")]
    facts += [("On machine", report.machine), ("Installer", report.installer)]
    if bundle is not None:
        facts += [
            ("Bundle", f"{bundle.name}, serial {bundle.serial} of channel {bundle.channel}"),
            ("Created", bundle.created + (f", expires {bundle.expires}" if bundle.expires else "")),
            ("Digest of bundle.json", bundle.digest),
            ("Signed by key", ", ".join(bundle.signers)),
        ]
        if bundle.key_file:
            facts.append(("Checked with", bundle.key_file))
    else:
        facts.append(("Bundle", "none was given to this check"))
    parts = [
        f"<p class='verdict {'bad' if report.failed else 'good'}'>{escape(report.verdict)}</p>",
        _facts(facts),
    ]
    if report.installed:
        rows = [
            (one.release, f"{one.chart} {one.version}", one.app_version, one.url)
            for one in report.installed
        ]
        parts += ["<h2>Installed</h2>", _table(("Release", "Chart", "Application", "URL"), rows)]
    for section in report.sections:
        parts += [f"<h2>{escape(section.title)}</h2>", _findings(section.findings)]
    if report.carried:
        found = [(one.kind, one.name, one.digest, one.note) for one in report.carried]
        head = ("Kind", "Name", "Digest", "Note")
        parts += ["<h2>Content of the bundle</h2>", _table(head, found, code=2)]
    parts.append(_SIGNATURES)
    body = "\n".join(parts)
    title = escape(f"Acceptance of {report.site}")
    return _PAGE.format(title=title, style=_STYLE, body=body).encode()


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f"<table class='facts'>{''.join(rows)}</table>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], code: int = -1) -> str:
    def cell(place: int, text: str) -> str:
        inner = escape(text)
        return f"<td><code>{inner}</code></td>" if place == code else f"<td>{inner}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = (
        "<tr>" + "".join(cell(place, text) for place, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _findings(findings: Iterable[Finding]) -> str:
    rows = []
    for one in findings:
        hint = f"<br><em>{escape(one.hint)}</em>" if one.hint else ""
        seconds = f"{one.seconds:.1f} s" if one.seconds else ""
        rows.append(
            f"<tr class='{one.state.replace(' ', '-')}'><td class='state'>{_MARKS[one.state]} "
            f"{one.state}</td><td>{escape(one.title)}</td><td>{escape(one.text)}{hint}</td>"
            f"<td class='seconds'>{seconds}</td></tr>"
        )
    head = "<tr><th>Result</th><th>What</th><th>Seen</th><th>Time</th></tr>"
    return f"<table class='findings'><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


_SIGNATURES = (
    "<section class='signatures'><div>Handed over by</div><div>Accepted by</div>"
    "<div>Place and date</div></section>"
)
_STYLE = """
:root { color-scheme: light; }
body { font: 10.5pt/1.45 system-ui, "Liberation Sans", Arial, sans-serif; color: #1b1f24;
  background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 17pt; margin: 0 0 .6rem; } h2 { font-size: 12.5pt; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .28rem .5rem; overflow-wrap: anywhere;
  border-bottom: 1px solid #d5d9de; }
thead th { border-bottom: 2px solid #1b1f24; } thead { display: table-header-group; }
.facts th { width: 11rem; font-weight: 600; } tr { break-inside: avoid; }
h2 { break-after: avoid; } code { font: 8.5pt "Liberation Mono", monospace; }
.verdict { font-size: 13pt; font-weight: 600; padding: .5rem .8rem; border-left: .4rem solid; }
.good { border-color: #1a7f37; background: #eaf6ec; }
.bad { border-color: #b3261e; background: #fbeaea; }
.state { white-space: nowrap; width: 6.5rem; font-weight: 600; } .passed .state { color: #1a7f37; }
.failed .state { color: #b3261e; } .not-checked .state { color: #5c6570; }
.seconds { white-space: nowrap; width: 3.5rem; text-align: right; }
.signatures { display: flex; gap: 2rem; margin-top: 4rem; break-inside: avoid; }
.signatures div { flex: 1; border-top: 1px solid #1b1f24; padding-top: .3rem; font-size: 9pt; }
@page { size: A4; margin: 16mm 14mm; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 9pt; }
  .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
