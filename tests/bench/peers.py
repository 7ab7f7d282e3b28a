"""How each contender is asked to do its work: the commands, nothing else.

Peers get their best case: one shared layout where they can have it, their own defaults for
parallel transfers, no verification that they don't do themselves, the stronger of two commands.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.servers import debian
from tests.programs import go_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.workload import Item

Step = tuple[str | Path, ...]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Inputs:
    """What commands are made of; ``folder`` is a contender's own, empty at its start."""

    items: Sequence[Item]
    upstream: str
    spec: Path
    registries: Path
    key: Path
    passphrase: Path
    plain_key: Path


@dataclass(frozen=True)
class Plan:
    """Commands, the file that they make, and variables of their environment."""

    steps: list[Step]
    result: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def bundler_create(given: Inputs, folder: Path) -> Plan:
    """Our build from a lock, with an empty cache: all content comes from upstream."""
    out = folder / "bundle.tar"
    build: Step = (
        *(BIN / "bundler", "build", given.spec, "--out", out),
        *("--registry-config", given.registries),
        *("--key", given.key, "--passphrase-file", given.passphrase, "--no-installer"),
    )
    return Plan([build], out, {"AIRGAP_CACHE_DIR": str(folder / "cache")})


def oras_create(given: Inputs, folder: Path) -> Plan:
    """One layout for all, and tar; nothing is signed."""
    layout, oras = folder / "layout", go_program("oras")
    steps: list[Step] = [
        (
            *(oras, "cp", "--no-tty", "--from-plain-http", f"{given.upstream}/{item.reference}"),
            *("--to-oci-layout", f"{layout}:{item.name}"),
        )
        for item in given.items
    ]
    return Plan([*steps, _tar(layout, folder)], folder / "bundle.tar")


def oras_signed_create(given: Inputs, folder: Path) -> Plan:
    """The same, signed by openssl."""
    plan = oras_create(given, folder)
    return Plan([*plan.steps, _sign(given, plan.result)], plan.result)


def skopeo_create(given: Inputs, folder: Path) -> Plan:
    """One layout for all, tar, and a signature by openssl."""
    layout = folder / "layout"
    steps: list[Step] = [
        (
            *_skopeo(folder, "copy", "--preserve-digests", "--src-tls-verify=false"),
            f"docker://{given.upstream}/{item.reference}",
            f"oci:{layout}:{item.name}",
        )
        for item in given.items
    ]
    out = folder / "bundle.tar"
    return Plan([*steps, _tar(layout, folder), _sign(given, out)], out)


def skopeo_patient_create(given: Inputs, folder: Path) -> Plan:
    """The same, each image again until it is there: its own --retry-times passes over 503."""
    plan = skopeo_create(given, folder)
    copies = len(given.items)
    again = 'for n in 1 2 3 4 5 6 7 8 9; do "$@" && exit 0; done; exit 1'
    patient = [("sh", "-c", again, "sh", *step) for step in plan.steps[:copies]]
    return Plan([*patient, *plan.steps[copies:]], plan.result)


def crane_create(given: Inputs, folder: Path) -> Plan:
    """One layout for all in one command, tar, and a signature by openssl."""
    layout = folder / "layout"
    pull: Step = (
        *(go_program("crane"), "pull", "--insecure", "--format=oci", "--annotate-ref"),
        *(f"{given.upstream}/{item.reference}" for item in given.items),
        layout,
    )
    out = folder / "bundle.tar"
    return Plan([pull, _tar(layout, folder), _sign(given, out)], out)


def installer_push(given: Inputs, folder: Path, bundle: Path, target: str) -> list[Step]:
    """Ours: the signature is verified first, and every blob on its way."""
    del folder
    public = given.key.with_suffix(".pub")
    return [(sys.executable, "-m", "tests.bench.push", bundle, public, target)]


def oras_push(given: Inputs, folder: Path, bundle: Path, target: str) -> list[Step]:
    """From the tar in place."""
    del folder
    return [
        (
            *(go_program("oras"), "cp", "--no-tty", "--from-oci-layout", f"{bundle}:{item.name}"),
            *("--to-plain-http", f"{target}/{item.reference}"),
        )
        for item in given.items
    ]


def skopeo_push(given: Inputs, folder: Path, bundle: Path, target: str) -> list[Step]:
    """Unpacked once: given the tar, it would unpack it for each image."""
    layout = folder / "layout"
    return [
        ("mkdir", layout),
        ("tar", "-xf", bundle, "-C", layout),
        *(
            (
                *_skopeo(folder, "copy", "--preserve-digests", "--dest-tls-verify=false"),
                f"oci:{layout}:{item.name}",
                f"docker://{target}/{item.reference}",
            )
            for item in given.items
        ),
    ]


def skopeo_pull(folder: Path, host: str, item: Item) -> Step:
    """One image into a folder, as a container runtime would."""
    return (
        *_skopeo(folder, "copy", "--src-tls-verify=false"),
        f"docker://{host}/{item.reference}",
        f"dir:{folder / 'image'}",
    )


def _skopeo(folder: Path, *arguments: str) -> Step:
    return (debian("skopeo"), "--insecure-policy", "--tmpdir", folder, *arguments)


def _tar(layout: Path, folder: Path) -> Step:
    return "tar", "-cf", folder / "bundle.tar", "-C", layout, "oci-layout", "index.json", "blobs"


def _sign(given: Inputs, out: Path) -> Step:
    signature = out.with_name(out.name + ".sig")
    return debian("openssl"), "dgst", "-sha256", "-sign", given.plain_key, "-out", signature, out
