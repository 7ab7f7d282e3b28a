"""The measurements, each contender as often as was asked.

Before every single run everything dirty is written out, so that nobody pays for another's writes;
page caches are warm unless the measurement says otherwise. What a contender made is checked after
it, outside the measured time: a tool that leaves something out is not a fast one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tarfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from bundler.build import THREADS
from tests.bench import peers
from tests.bench.account import (
    HERE,
    PYTHON,
    BenchFailed,
    Cost,
    Server,
    forget,
    metered,
    run,
    server_cost,
    settle,
    started,
    wait_until_idle,
)
from tests.bench.peers import BIN, Inputs
from tests.bench.registry import registry, registry_of_small_buffers
from tests.bench.synthetic import synthetic
from tests.bench.workload import Workload, publish, publish_small, push_again, write_spec
from tests.integration.servers import debian
from tests.programs import ProgramMissing, go_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.bench.peers import Plan, Step
    from tests.bench.registry import Registry

CLIENTS = 4
REUSE, SINCE = "bundler build --reuse", "bundler build --since"
COPY, COPY_SYNCED = "cp of the bundle", "cp and sync of the bundle"
LOCK, CRANE_DIGEST = "bundler lock", "crane digest, one after the other"
_AREA = 64 * 1024
"""Bytes of the signatures, which differ each time."""
_KILL_SPAN = 0.06
"""Of the time of an undisturbed build: so that there are many kills before it is whole."""
_POLL = 0.002
OURS = "bundler build"
ORAS, ORAS_SIGNED, SKOPEO, CRANE = "oras, unsigned", "oras", "skopeo", "crane"
VERIFY, VERIFY_COLD = "installer verify", "installer verify, cold"
SHA256SUM, SHA256SUM_COLD = "sha256sum", "sha256sum, cold"
OPENSSL, OPENSSL_COLD = "openssl dgst -verify", "openssl dgst -verify, cold"
FIRST, FIRST_COLD = "installer serve", "installer serve, cold"
FIRST_SKOPEO = "installer serve, by skopeo"
FIRST_ORAS = "oras into docker-registry"
SERVE, SERVE_FRESH = "installer serve", "installer serve, just started"
REGISTRY = "docker-registry"
PUSH, PUSH_ORAS, PUSH_SKOPEO = "installer", "oras", "skopeo"


@dataclass
class Measurement:
    """Every contender's costs, one a run, in the order in which they are shown."""

    title: str
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Bench:
    """The upstream, the inputs, and the measurements; use it in a ``with`` statement.

    ``folder`` has to be on the disk that is meant, and is removed at the end. ``patience`` is how
    many seconds in all are spent on waiting for others to leave the machine alone. ``say`` is told
    what happens.
    """

    def __init__(
        self,
        folder: Path,
        scale: float,
        runs: int,
        *,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._scale = scale
        self._runs = runs
        self._patience = patience
        self._say = say
        self._stack = ExitStack()
        self.workload: Workload
        self._given: Inputs
        self._upstream: Registry

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self._folder.mkdir(parents=True)
            starting.callback(shutil.rmtree, self._folder)
            self._upstream = starting.enter_context(registry(self._folder / "upstream"))
            self._say(f"making and publishing {self._scale * 1584:,.0f} MB")
            inputs = self._folder / "inputs"
            inputs.mkdir()
            self.workload = publish(self._upstream.url, inputs, self._scale)
            self._given = self._prepare(inputs)
            self._stack = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self, inputs: Path, workload: Workload | None = None) -> Inputs:
        """Spec, lock and keys: none of them is measured."""
        workload = workload or self.workload
        spec, registries = write_spec(workload, inputs, self._upstream.url)
        passphrase, key, plain = inputs / "passphrase", inputs / "release.key", inputs / "plain.pem"
        passphrase.write_text("correct horse battery staple\n")
        passphrase.chmod(0o600)
        openssl = debian("openssl")
        public = inputs / "plain.pub"
        self._run(BIN / "bundler", "keygen", "--out", key, "--passphrase-file", passphrase)
        self._run(openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", plain)
        self._run(openssl, "ec", "-in", plain, "-pubout", "-out", public)
        self._run(BIN / "bundler", "lock", spec, "--registry-config", registries)
        return Inputs(workload.items, self._upstream.host, spec, registries, key, passphrase, plain)

    def _run(self, *command: str | Path) -> None:
        run(command, {"AIRGAP_CACHE_DIR": str(self._folder / "cache")})

    def _fresh(self) -> Path:
        """An empty folder for a contender."""
        folder = self._folder / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settle()
        self._patience -= wait_until_idle(self._patience)
        return folder

    def _rotate(self, measured: Measurement, contenders: dict[str, Callable[[], Cost]]) -> None:
        """Run every contender as often as asked, each time in another order."""
        measured.costs = {name: [] for name in contenders}
        names = list(contenders)
        for number in range(self._runs):
            at = number % len(names)
            for name in (*names[at:], *names[:at]):
                if name in measured.missing:
                    continue
                try:
                    cost = contenders[name]()
                except ProgramMissing as error:
                    measured.missing[name] = str(error)
                    continue
                measured.costs[name].append(cost)
                self._say(f"{measured.title}, run {number + 1}: {name}: {cost.wall:.2f} s")

    # Create

    def create(self) -> list[Measurement]:
        """From upstream to one file."""
        makers = {
            OURS: peers.bundler_create,
            ORAS: peers.oras_create,
            ORAS_SIGNED: peers.oras_signed_create,
            SKOPEO: peers.skopeo_create,
            CRANE: peers.crane_create,
        }
        measured = Measurement("Create")
        self._rotate(measured, {name: partial(self._create, make) for name, make in makers.items()})
        return [measured]

    def _create(
        self,
        make: Callable[[Inputs, Path], Plan],
        keep: Path | None = None,
        given: Inputs | None = None,
        workload: Workload | None = None,
    ) -> Cost:
        plan = make(given or self._given, folder := self._fresh())
        before = self._upstream.requests()
        cost = metered(plan.steps, folder, plan.environment)
        settling = settle()
        self._check_content(plan.result, workload or self.workload)
        size = plan.result.stat().st_size
        if keep is not None:
            plan.result.rename(keep)
        asked = self._upstream.requests() - before
        return replace(cost, settle=settling, requests=asked, result=size)

    def _check_content(self, path: Path, workload: Workload) -> None:
        with tarfile.open(path) as archive:
            found = {name.rpartition("/")[2] for name in archive.getnames()}
        # The chart is a file to us, so that it has another manifest there.
        carried = (*workload.images, *filter(None, [workload.database]))
        wanted = {digest for item in carried for digest in item.digests}
        if missing := [d for d in wanted if d.removeprefix("sha256:") not in found]:
            raise BenchFailed(f"{path.name}: {len(missing)} of {len(wanted)} blobs are missing")

    def _made(self, name: str, make: Callable[[Inputs, Path], Plan]) -> Path:
        """A bundle of a contender's own, made when it is first needed."""
        path = self._folder / name
        if not path.exists():
            self._create(make, path)
        return path

    def _bundle(self) -> Path:
        return self._made("bundle.tar", peers.bundler_create)

    @property
    def _public(self) -> Path:
        return self._given.key.with_suffix(".pub")

    def create_large(self) -> list[Measurement]:
        """The same with 4 GB."""
        inputs = self._inputs("large")
        workload = publish(self._upstream.url, inputs, self._scale * 4000 / 1584, "large")
        return [self._create_other("Create 4 GB", inputs, workload)]

    def create_small(self) -> list[Measurement]:
        """200 images of small layers: the cost of requests."""
        inputs = self._inputs("small")
        workload = publish_small(self._upstream.url, inputs, self._many)
        return [self._create_other(f"Create {self._many} small images", inputs, workload)]

    def _create_other(self, title: str, inputs: Path, workload: Workload) -> Measurement:
        given = self._prepare(inputs, workload)
        makers = {OURS: peers.bundler_create, ORAS: peers.oras_create, SKOPEO: peers.skopeo_create}
        measured = Measurement(title)
        creating = partial(self._create, given=given, workload=workload)
        self._rotate(measured, {name: partial(creating, make) for name, make in makers.items()})
        return measured

    def _inputs(self, name: str) -> Path:
        folder = self._folder / f"inputs-{name}"
        folder.mkdir()
        return folder

    @property
    def _many(self) -> int:
        return 200 if self._scale == 1 else 20

    # Build again

    def again(self) -> list[Measurement]:
        """One image of ten was pushed again: what a second build costs, against a plain copy."""
        bundle = self._bundle()
        given = self._given
        new = push_again(self._upstream.url, self.workload, self._scale)
        self._run(BIN / "bundler", "lock", given.spec, "--registry-config", given.registries)

        def build(*more: str | Path) -> Cost:
            plan = peers.bundler_create(given, folder := self._fresh())
            told = folder / "told.json"
            step = (*PYTHON, HERE / "told.py", told, *plan.steps[0], *more, "--output", "json")
            cost = metered([step], folder, plan.environment)
            found = json.loads(told.read_text())
            figures = {"fetched": found["fetched"], "new": new}
            return replace(cost, result=found["bytes"], figures=figures)

        def copy(*, synced: bool) -> Cost:
            file = self._fresh() / "copy"
            steps: list[Step] = [("cp", bundle, file)]
            return metered([*steps, ("sync", file)] if synced else steps, file.parent, {})

        measured = Measurement("Build again, one image of ten changed")
        self._rotate(
            measured,
            {
                COPY_SYNCED: lambda: copy(synced=True),
                COPY: lambda: copy(synced=False),
                REUSE: lambda: build("--reuse", bundle),
                SINCE: lambda: build("--since", bundle),
            },
        )
        return [measured]

    # Killed

    def kills(self) -> list[Measurement]:
        """Killed at random moments, then run to its end: what is fetched again."""
        inputs = self._inputs("kills")
        workload = publish(self._upstream.url, inputs, self._scale, "kills")
        given = self._prepare(inputs, workload)
        folders = self._folder / "kills", self._folder / "upstream" / "storage"
        with registry_of_small_buffers(*folders) as (upstream, within):
            _point_at(given, upstream.url)
            return [self._killed(given, upstream, within, workload)]

    def _killed(
        self, given: Inputs, upstream: Registry, within: Step, workload: Workload
    ) -> Measurement:
        whole = self._folder / "undisturbed.tar"
        plan = peers.bundler_create(given, self._fresh())
        command = [*within, *plan.steps[0], "--quiet"]
        began = time.monotonic()
        run(command, plan.environment)
        undisturbed = time.monotonic() - began
        plan.result.rename(whole)
        rounds = 50 if self._scale == 1 else 5
        moments = random.Random(1)
        plan = peers.bundler_create(given, self._fresh())
        environment = {**os.environ, **plan.environment}
        before = upstream.sent()
        journal = plan.result.with_name(plan.result.name + ".partial.journal")
        killed = noted = 0
        began = time.monotonic()
        for _ in range(rounds):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            # Once it fetches, which takes a little longer the more it finds and hashes again.
            while process.poll() is None and size_of(journal) == noted:
                time.sleep(_POLL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(moments.random() * undisturbed * _KILL_SPAN)
            if process.poll() is None:
                killed += 1
                process.kill()
            process.wait()
            noted = size_of(journal)
            if plan.result.exists():
                break
        run(command, plan.environment)
        wall = time.monotonic() - began
        sent = upstream.sent() - before
        if plan.result.read_bytes()[_AREA:] != whole.read_bytes()[_AREA:]:
            raise BenchFailed("what was built after kills differs from an undisturbed build")
        again = max(0, sent - workload.unique)
        figures = {"kills": killed, "again": again, "each": again / max(1, killed * THREADS)}
        measured = Measurement("Killed at random moments")
        measured.costs = {OURS: [Cost(wall, figures=figures)]}
        return measured

    # A bad line

    def line(self) -> list[Measurement]:
        """20 ms for each request, and one in a hundred fails."""
        inputs = self._inputs("line")
        workload = publish_small(self._upstream.url, inputs, self._many)
        given = self._prepare(inputs, workload)
        port = self._folder / "line.port"
        command = (*PYTHON, HERE / "line.py", self._upstream.host, port)

        def answers() -> str:
            return port.read_text().strip() if port.exists() else ""

        measured = Measurement(f"A bad line, {self._many} small images")
        with started(command, self._folder / "line.log", answers) as server:
            far = replace(given, upstream=server.host)
            _point_at(far, f"http://{server.host}")
            makers = {OURS: peers.bundler_create, SKOPEO: peers.skopeo_patient_create}
            creating = partial(self._create, given=far, workload=workload)
            self._rotate(measured, {n: partial(creating, make) for n, make in makers.items()})
        return [measured]

    # Lock

    def lock(self) -> list[Measurement]:
        """Names become digests: all images of a spec."""
        inputs = self._inputs("lock")
        workload = publish_small(self._upstream.url, inputs, self._many)
        given = self._prepare(inputs, workload)

        def ours() -> Cost:
            folder = self._fresh()
            lock = folder / "bundle.lock"
            config = ("--registry-config", given.registries)
            step = (BIN / "bundler", "lock", given.spec, "--lock", lock, *config)
            before = self._upstream.requests()
            cost = metered([step], folder, {"AIRGAP_CACHE_DIR": str(folder / "cache")})
            return replace(cost, requests=self._upstream.requests() - before)

        def crane() -> Cost:
            folder = self._fresh()
            names = [f"{given.upstream}/{item.reference}" for item in workload.images]
            before = self._upstream.requests()
            program = go_program("crane")
            cost = metered([(program, "digest", "--insecure", n) for n in names], folder, {})
            return replace(cost, requests=self._upstream.requests() - before)

        measured = Measurement(f"Lock {self._many} images")
        self._rotate(measured, {LOCK: ours, CRANE_DIGEST: crane})
        return [measured]

    # Many

    def many(self) -> list[Measurement]:
        """Thousands of blobs out of a layout on this disk: how time and memory grow."""
        measured = Measurement("Many images of ten blobs")
        passphrase = ("--passphrase-file", self._given.passphrase)
        for count in (500, 1000, 2000) if self._scale == 1 else (20, 40):
            inputs = self._inputs(f"many-{count}")
            spec = synthetic(inputs, count)
            folder = self._fresh()
            out = folder / "bundle.tar"
            build = (
                *(BIN / "bundler", "build", spec, "--out", out, "--key", self._given.key),
                *(*passphrase, "--no-installer", "--reuse", inputs / "layout"),
            )
            environment = {"AIRGAP_CACHE_DIR": str(folder / "cache")}
            measured.costs[f"bundler build, {count} images"] = [
                metered([build], folder, environment)
            ]
            verify = (BIN / "installer", "verify", out, "--key", self._public)
            measured.costs[f"installer verify, {count} images"] = [metered([verify], folder, {})]
            shutil.rmtree(inputs)
            self._say(f"{measured.title}: {count}")
        return [measured]

    # Verify

    def verify(self) -> list[Measurement]:
        """Every byte of a bundle, warm in the page cache and cold from the disk."""
        bundle, plain = self._bundle(), self._given.plain_key
        signature = bundle.with_name("bundle.sig")
        self._run(debian("openssl"), "dgst", "-sha256", "-sign", plain, "-out", signature, bundle)
        checks: dict[str, Step] = {
            VERIFY: (BIN / "installer", "verify", bundle, "--key", self._public),
            OPENSSL: (
                *(debian("openssl"), "dgst", "-sha256", "-verify", plain.with_suffix(".pub")),
                *("-signature", signature, bundle),
            ),
            SHA256SUM: ("sha256sum", bundle),
        }

        def check(step: Step, *, cold: bool) -> Cost:
            folder = self._fresh()
            if cold:
                forget(bundle)
            return metered([step], folder, {})

        measured = Measurement("Verify")
        contenders: dict[str, Callable[[], Cost]] = {}
        for cold in (False, True):
            for name, step in checks.items():
                shown = f"{name}, cold" if cold else name
                contenders[shown] = partial(check, step, cold=cold)
        # The first run of each warm one finds the file in the page cache as well.
        shutil.copyfile(bundle, "/dev/null")
        self._rotate(measured, contenders)
        return [measured]

    # Serve

    def serve(self) -> list[Measurement]:
        """How soon the first image is there, and how fast four clients get everything."""
        bundle = self._bundle()
        oras_tar = self._made("oras.tar", peers.oras_create)
        first = Measurement("First image")
        self._rotate(
            first,
            {
                FIRST: lambda: self._first(bundle),
                FIRST_COLD: lambda: self._first(bundle, cold=True),
                FIRST_SKOPEO: lambda: self._first(bundle, skopeo=True),
                FIRST_ORAS: lambda: self._first_by_oras(oras_tar),
            },
        )
        many = Measurement(f"Serve {CLIENTS} clients")
        self._rotate(
            many,
            {
                SERVE: lambda: self._four(bundle, checked=True),
                SERVE_FRESH: lambda: self._four(bundle, checked=False),
                REGISTRY: self._four_from_registry,
            },
        )
        return [first, many]

    @contextmanager
    def _serving(self, bundle: Path, folder: Path) -> Iterator[Server]:
        ready = folder / "ready"
        command = (
            *(BIN / "installer", "serve", bundle, "--key", self._public),
            *("--listen", "127.0.0.1:0", "--ready-file", ready),
        )

        def answers() -> str:
            return ready.read_text().strip().rpartition("/")[2] if ready.exists() else ""

        with started(command, folder / "serve.log", answers) as server:
            yield server

    def _first(self, bundle: Path, *, cold: bool = False, skopeo: bool = False) -> Cost:
        folder = self._fresh()
        if cold:
            forget(bundle)
        item = self.workload.images[0]
        with self._serving(bundle, folder) as server:
            if skopeo:
                run(peers.skopeo_pull(folder, server.host, item))
            else:
                run(_pull(server.host, [item.reference]))
            return _since_start(server)

    def _first_by_oras(self, oras_tar: Path) -> Cost:
        folder = self._fresh()
        item = self.workload.images[0]
        one = replace(self._given, items=[item])
        with registry(folder / "registry") as target:
            for step in peers.oras_push(one, folder, oras_tar, target.host):
                run(step)
            run(_pull(target.host, [item.reference]))
            return _since_start(target.server)

    def _four(self, bundle: Path, *, checked: bool) -> Cost:
        with self._serving(bundle, self._fresh()) as server:
            while checked and not _all_checked(server.host):
                time.sleep(0.05)
            return self._pull_all(server)

    def _four_from_registry(self) -> Cost:
        self._fresh()
        return self._pull_all(self._upstream.server)

    def _pull_all(self, server: Server) -> Cost:
        """Each client pulls all images, beginning with another one than the others."""
        images = [item.reference for item in self.workload.images]
        before = server_cost(server.pid)
        start = time.monotonic()
        clients = []
        for number in range(CLIENTS):
            at = number * len(images) // CLIENTS
            command: Step = (*PYTHON, HERE / "client.py", server.host, *images[at:], *images[:at])
            clients.append(subprocess.Popen([*command], stdout=subprocess.PIPE))
        outputs = [client.communicate()[0] for client in clients]
        wall = time.monotonic() - start
        if any(client.returncode for client in clients):
            raise BenchFailed(f"a client of {server.host} failed")
        moved = sum(json.loads(output)["bytes"] for output in outputs)
        cpu, rss, written = server_cost(server.pid)
        return Cost(
            wall,
            cpu - before[0],
            rss,
            written - before[2],
            figures={"rate": moved / wall},
        )

    # Push

    def push(self) -> list[Measurement]:
        """All content into an empty registry."""
        ours, theirs = self._bundle(), self._made("oras.tar", peers.oras_create)
        measured = Measurement("Push")
        self._rotate(
            measured,
            {
                PUSH: lambda: self._push(peers.installer_push, ours),
                PUSH_ORAS: lambda: self._push(peers.oras_push, theirs),
                PUSH_SKOPEO: lambda: self._push(peers.skopeo_push, theirs),
            },
        )
        return [measured]

    def _push(self, steps: Callable[[Inputs, Path, Path, str], list[Step]], bundle: Path) -> Cost:
        storage = self._folder / "target"
        shutil.rmtree(storage, ignore_errors=True)
        folder = self._fresh()
        with registry(storage) as target:
            cost = metered(steps(self._given, folder, bundle, target.host), folder, {})
            cpu, _, _ = server_cost(target.server.pid)
            asked = target.requests()
            run(_pull(target.host, [item.reference for item in self.workload.images]))
        shutil.rmtree(storage)
        return replace(cost, requests=asked, figures={"registry": cpu})


def _point_at(given: Inputs, url: str) -> None:
    """Let docker.io be found there."""
    document = {"registries": {"docker.io": {"endpoints": [url]}}}
    given.registries.write_text(json.dumps(document))


def size_of(path: Path) -> int:
    """Bytes of a file, none if there is none."""
    return path.stat().st_size if path.exists() else 0


def _pull(host: str, images: list[str]) -> Step:
    """A client that checks what it gets."""
    return (*PYTHON, HERE / "client.py", "--check", host, *images)


def _since_start(server: Server) -> Cost:
    wall = time.monotonic() - server.started
    cpu, rss, written = server_cost(server.pid)
    return Cost(wall, cpu, rss, written, figures={"ready": server.ready})


def _all_checked(host: str) -> bool:
    with urllib.request.urlopen(f"http://{host}/healthz") as answer:
        health = json.load(answer)
    return bool(health["check"]["state"] == "done")
