"""``python -m tests.fuzz [--seconds N] [TARGET ...]``: fuzz, two targets at a time.

The corpus grows in the cache folder from one run to the next. An input that brings a reader down is
put into ``findings/TARGET``, where it stays as a test when the reader is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FINDINGS = Path(__file__).parent / "findings"
NAMES = (
    "bundle", "manifest", "signature", "public-key", "trust-root", "receipt", "parts", "sigstore",
    "reference", "image-manifest", "site", "spec", "lock", "chart", "chart-archive", "tool-archive",
    "index", "challenge", "server",
)  # fmt: skip
SLOW_SECONDS = 10
MEMORY_MIB = 1024


def child(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, with every module of ours instrumented."""
    import atheris  # noqa: PLC0415 - only a fuzzing process needs it

    with atheris.instrument_imports(include=["installer", "bundler", "tarfile", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS, run  # noqa: PLC0415 - must be imported here
    target = TARGETS[name]
    corpus = Path(arguments[0])
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    longest = max(target.longest, *map(len, target.seeds()))
    atheris.Setup([name, f"-max_len={longest}", *arguments], lambda data: run(target, data))
    atheris.Fuzz()


def fuzz(name: str, seconds: int, corpora: Path) -> tuple[str, str, bool]:
    """Fuzz a target in a process of its own; give its name, its last words, and whether it held."""
    corpus, findings = corpora / name, FINDINGS / name
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tests.fuzz", "--child", name, str(corpus),
        f"-max_total_time={seconds}", f"-timeout={SLOW_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={findings}/", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        held = subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0
        log.seek(0)
        lines = log.read().splitlines()
    if not any(findings.iterdir()):
        findings.rmdir()
    runs = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
    said = f"{runs} runs" if held else "\n".join(lines[-40:])
    return name, said, held


def main() -> int:
    """Fuzz and tell; 1 when something was found."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="all, when none is named")
    options = parser.parse_args()
    cache = os.environ.get("AIRGAP_CACHE") or Path.home() / ".cache/harbor-airgap"
    found = 0
    with ThreadPoolExecutor(2) as pool:
        started = [
            pool.submit(fuzz, name, options.seconds, Path(cache) / "fuzz")
            for name in options.targets or NAMES
        ]
        for future in started:
            name, said, held = future.result()
            found += not held
            print(f"{name:16} {'held' if held else 'FOUND'}: {said}", flush=True)
    if found:
        print(
            f"see {FINDINGS}: keep the file, mend the reader, and `make test` reads it ever after"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
