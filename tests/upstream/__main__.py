"""Serve the upstream from a folder until interrupted: ``python -m tests.upstream FOLDER``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tests.programs import ProgramMissing
from tests.upstream.demo import Upstream


def main(arguments: list[str]) -> int:
    """Serve the upstream from a folder until interrupted."""
    if len(arguments) != 1:
        print("usage: python -m tests.upstream.demo FOLDER", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Upstream(Path(arguments[0])) as upstream:
            print(f"{upstream.spec}\n{upstream.registries}", flush=True)
            stop.wait()
    except ProgramMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
