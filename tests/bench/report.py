"""What came out: tables with medians and extremes, and each target as met or missed."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import measure
from tests.bench.account import values
from tests.integration.servers import debian
from tests.programs import ProgramMissing, go_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.bench.measure import Measurement

_MIB = 1 << 20
_COLUMNS = {  # figure: heading, unit, digits
    "cpu": ("CPU s", 1, 2),
    "rss": ("RSS MiB", _MIB, 0),
    "written": ("written MB", 1e6, 0),
    "peak": ("peak disk MB", 1e6, 0),
    "settle": ("disk goes on s", 1, 2),
    "requests": ("requests", 1, 0),
    "result": ("result MB", 1e6, 0),
    "ready": ("ready s", 1, 2),
    "rate": ("MB/s", 1e6, 0),
    "registry": ("registry's CPU s", 1, 2),
    "fetched": ("fetched MB", 1e6, 1),
    "new": ("new upstream MB", 1e6, 1),
    "kills": ("kills", 1, 0),
    "again": ("sent again MB", 1e6, 1),
    "each": ("a connection MiB", _MIB, 2),
}


@dataclass(frozen=True)
class Target:
    """A figure of a contender, against a limit or a multiple of another figure; less is better."""

    text: str
    title: str
    contender: str
    figure: str
    limit: float
    peer: str = ""
    peer_figure: str = ""
    unit: float = 1


@dataclass(frozen=True)
class Verdict:
    """A target, what was found in the same unit as its limit, and whether that is enough."""

    text: str
    found: float
    limit: float
    met: bool


_FOUR = f"Serve {measure.CLIENTS} clients"
TARGETS = (
    Target("create: wall / oras, unsigned", "Create", measure.OURS, "wall", 0.9, measure.ORAS),
    Target("create: wall / skopeo, signed", "Create", measure.OURS, "wall", 0.3, measure.SKOPEO),
    Target(
        "create: bytes written / bundle",
        "Create",
        measure.OURS,
        "written",
        1.02,
        measure.OURS,
        "result",
    ),
    Target("create: RSS, MiB", "Create", measure.OURS, "rss", 100, unit=_MIB),
    *(
        Target(f"{title.lower()}: wall / {peer}", title, measure.OURS, "wall", limit, peer)
        for title, peer, limit in (
            ("Create 4 GB", measure.ORAS, 0.9),
            ("Create 200 small images", measure.ORAS, 0.4),
        )
    ),
    Target(
        "build again: fetched / new upstream",
        "Build again, one image of ten changed",
        measure.REUSE,
        "fetched",
        1.001,
        measure.REUSE,
        "new",
    ),
    Target(
        "build again: wall / cp and sync",
        "Build again, one image of ten changed",
        measure.REUSE,
        "wall",
        1.2,
        measure.COPY_SYNCED,
    ),
    Target(
        "killed: sent again a connection, MiB",
        "Killed at random moments",
        measure.OURS,
        "each",
        1,
        unit=_MIB,
    ),
    Target("verify: wall / sha256sum", "Verify", measure.VERIFY, "wall", 0.2, measure.SHA256SUM),
    Target("first image: s after start", "First image", measure.FIRST, "wall", 0.5),
    Target("serve: wall / docker-registry", _FOUR, measure.SERVE, "wall", 1, measure.REGISTRY),
    Target("serve: bytes written", _FOUR, measure.SERVE, "written", 0),
    Target("push: wall / oras", "Push", measure.PUSH, "wall", 0.8, measure.PUSH_ORAS),
)


def verdicts(measured: Sequence[Measurement]) -> list[Verdict]:
    """Judge every target whose figures were measured."""
    by_title = {m.title: m for m in measured}
    found = []
    for target in TARGETS:
        if target.title not in by_title:
            continue
        measurement = by_title[target.title]
        own = _median(measurement, target.contender, target.figure)
        other: float | None = target.unit
        if target.peer:
            figure = target.peer_figure or target.figure
            other = _median(measurement, target.peer, figure)
        if own is None or not other:
            continue
        value = own / other
        found.append(Verdict(target.text, value, target.limit, value <= target.limit))
    return found


def markdown(measured: Sequence[Measurement], machine: dict[str, str]) -> str:
    """All of it for people."""
    lines = [f"- {name}: {text}" for name, text in machine.items()]
    for measurement in measured:
        lines += ["", f"### {measurement.title}", "", *_table(measurement)]
        lines += [f"\n{name}: not measured: {why}" for name, why in measurement.missing.items()]
    judged = verdicts(measured)
    if judged:
        lines += ["", "### Targets", "", "| target | at most | found | |", "|---|---|---|---|"]
    for verdict in judged:
        state = "met" if verdict.met else "**missed**"
        lines.append(f"| {verdict.text} | {verdict.limit:g} | {verdict.found:.3g} | {state} |")
    return "\n".join(lines) + "\n"


def document(measured: Sequence[Measurement], machine: dict[str, str]) -> dict[str, Any]:
    """All of it for programs: each run's figures, in seconds and bytes."""
    return {
        "machine": machine,
        "measurements": {
            m.title: {
                name: [asdict(cost) for cost in costs] for name, costs in m.costs.items() if costs
            }
            for m in measured
        },
        "missing": {name: why for m in measured for name, why in m.missing.items()},
        "targets": [asdict(verdict) for verdict in verdicts(measured)],
    }


def machine(scale: float, runs: int, *, unique: int, folder: Path) -> dict[str, str]:
    """Where and with what it was measured."""
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    mount = _told("findmnt", "-no", "FSTYPE", "--target", str(folder))
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores ({cpu[1] if cpu else '?'}), "
        f"{int(memory) / (1 << 20):.0f} GiB, {mount or '?'}, Linux {platform.release()}",
        "load before the first run": f"{os.getloadavg()[0]:.1f}",
        "work load": f"{unique / 1e6:,.0f} MB unique, {runs} {'runs' if runs > 1 else 'run'}"
        + ("" if scale == 1 else ": too little to judge by, start-up counts for too much"),
        "versions": ", ".join(_versions()),
    }


def _versions() -> Iterable[str]:
    yield f"Python {platform.python_version()}"
    for name in ("docker-registry", "skopeo"):
        yield f"{name} {_number(_told(str(debian(name)), '--version'))}"
    yield f"openssl {_number(_told(str(debian('openssl')), 'version'))}"
    for name in ("oras", "crane"):
        try:
            # Its folder says the version; crane that Go's module proxy gave does not know it.
            yield go_program(name).parent.name.replace("-v", " ")
        except ProgramMissing:
            continue


def _number(text: str) -> str:
    found = re.search(r"\d+\.\d+\.\d+", text)
    return found[0] if found else "?"


def _told(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().replace("\n", " ")


def _table(measurement: Measurement) -> list[str]:
    there = {name: costs for name, costs in measurement.costs.items() if costs}
    figures = [f for f in _COLUMNS if any(values(costs, f) for costs in there.values())]
    heads = ["contender", "wall s (min-max)", "ratio", *(_COLUMNS[f][0] for f in figures)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    first = _median(measurement, next(iter(there)), "wall") if there else None
    for name, costs in there.items():
        walls = values(costs, "wall")
        middle = statistics.median(walls)
        cells = [name, f"{middle:.2f} ({min(walls):.2f}-{max(walls):.2f})"]
        cells.append(f"{middle / first:.2f}" if first else "")
        for figure in figures:
            value = _median(measurement, name, figure)
            _, unit, digits = _COLUMNS[figure]
            cells.append("" if value is None else f"{value / unit:,.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _median(measurement: Measurement, contender: str, figure: str) -> float | None:
    found = values(measurement.costs.get(contender, []), figure)
    return statistics.median(found) if found else None
