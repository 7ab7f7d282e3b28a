"""``python -m tests.bench``: measure, print tables, write them to files if wanted."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.account import BenchFailed
from tests.bench.measure import Bench
from tests.bench.report import document, machine, markdown
from tests.bench.workload import SIZE
from tests.programs import ProgramMissing

_PARTS = (
    *("create", "create_large", "create_small", "verify", "serve", "push"),
    *("kills", "line", "lock", "many", "again"),  # the last changes the work load
)
_QUICK_BYTES = 100_000_000


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [part for part in chosen if part not in _PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_PARTS)}")
    return [part for part in _PARTS if part in chosen]


def _runs(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=_runs, default=3, help="repetitions of each contender")
    parser.add_argument("--quick", action="store_true", help="100 MB once: a smoke test")
    parser.add_argument(
        "--only", type=_parts, default=list(_PARTS), metavar="PART,…", help=", ".join(_PARTS)
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build"),
        help="on the disk that is meant; needs 30 GB, 1 GB with --quick (default: build)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=120,
        metavar="SECONDS",
        help="to wait in all for an idle machine before single runs (default: 120)",
    )
    parser.add_argument(
        "--output",
        nargs=2,
        action="append",
        default=[],
        metavar=("FORMAT", "FILE"),
        help="json FILE or markdown FILE; may be given twice",
    )
    given = parser.parse_args()
    for form, _ in given.output:
        if form not in ("json", "markdown"):
            parser.error(f"--output takes json or markdown, not {form!r}")
    return given


def main() -> int:
    """Run what was asked for; 1 when a contender or a program failed."""
    given = _arguments()
    scale = _QUICK_BYTES / SIZE if given.quick else 1.0
    if given.quick and given.only == list(_PARTS):
        given.only.remove("create_large")  # the same with more bytes
    runs = 1 if given.quick else given.runs
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)

    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-") as name,
            Bench(
                Path(name).absolute() / "bench", scale, runs, patience=given.patience, say=say
            ) as bench,
        ):
            facts = machine(scale, runs, unique=bench.workload.unique, folder=given.folder)
            measured = [m for part in given.only for m in getattr(bench, part)()]
    except (BenchFailed, ProgramMissing) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = markdown(measured, facts)
    print(text)
    for form, file in given.output:
        written = json.dumps(document(measured, facts), indent=1) + "\n" if form == "json" else text
        Path(file).write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
