"""kubectl as far as the installer needs it: what is there, what is wrong, one kind of repair."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Self

import msgspec

from installer.environment import closed_environment
from installer.errors import DeploymentFailed, PreflightFailed
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from installer.site.model import Cluster

_TIMEOUT = 60
_WORDS = 600
_PIECE = 64 * 1024


class Kubectl:
    """The bundle's kubectl on the site's cluster."""

    def __init__(self, binary: Path, cluster: Cluster, cache: Path) -> None:
        """``cache`` is a folder for what it learns of the API: none appears in a home folder."""
        self._environment = closed_environment(cache)
        self._command = [str(binary), f"--kubeconfig={cluster.kubeconfig}"]
        self._command.append(f"--cache-dir={cache}")
        if cluster.context:
            self._command.append(f"--context={cluster.context}")

    def run(self, *arguments: str, timeout: float = _TIMEOUT) -> str:
        """Give what it prints; raises DeploymentFailed with its words. ``timeout`` in seconds.

        Raises PreflightFailed when the binary can't be executed here.
        """
        try:
            result = subprocess.run(
                [*self._command, f"--request-timeout={int(timeout)}s", *arguments],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                timeout=timeout + 10,
            )
        except subprocess.TimeoutExpired:
            raise DeploymentFailed(
                f"kubectl {arguments[0]}: no answer from the cluster in {int(timeout)} s"
            ) from None
        except OSError as error:
            raise PreflightFailed(
                f"{self._command[0]}: can't be executed: {error.strerror}",
                hint="is its file system mounted with noexec, or for another kind of machine?",
            ) from error
        if result.returncode:
            words = " ".join(result.stderr.split())[-_WORDS:]
            raise DeploymentFailed(f"kubectl {arguments[0]}: {words}")
        return result.stdout

    def stream(
        self, *arguments: str, feed: Iterable[bytes] = (), timeout: float
    ) -> Iterator[bytes]:
        """Give what it prints piece by piece while ``feed`` goes in; ``timeout`` in seconds.

        Nothing is kept in memory. Raises DeploymentFailed after the last piece when it failed, and
        what ``feed`` raises: kubectl is killed then before its input ends, so that nobody there
        takes half of it for the whole. A generator that is closed early ends kubectl as well.
        """
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
            )
        except OSError as error:
            raise PreflightFailed(
                f"{self._command[0]}: can't be executed: {error.strerror}"
            ) from error
        with process, _Conversation(process, feed, timeout) as conversation:
            yield from conversation.output()
        conversation.check(f"kubectl {arguments[0]}")

    def get(self, *arguments: str, timeout: float = _TIMEOUT) -> dict[str, Any]:
        """Read objects as JSON."""
        return self._object(*arguments, "--output=json", timeout=timeout)

    def raw(
        self, path: str, *arguments: str, verb: str = "get", timeout: float = _TIMEOUT
    ) -> dict[str, Any]:
        """Read (``create``: post) at a path of the API, past discovery and its cache."""
        return self._object(verb, "--raw", path, *arguments, timeout=timeout)

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """Pods of a namespace that are not being deleted, also those that have ended."""
        return [
            pod
            for pod in self.get("get", "pods", f"--namespace={namespace}").get("items", [])
            if not pod["metadata"].get("deletionTimestamp")
        ]

    def _object(self, *arguments: str, timeout: float) -> dict[str, Any]:
        text = self.run(*arguments, timeout=timeout)
        try:
            return decode_json(text, dict[str, Any])
        except msgspec.DecodeError as error:
            raise DeploymentFailed(f"kubectl {arguments[0]}: not JSON: {error}") from error


class _Conversation:
    """Writes to a program and keeps its complaints while somebody else reads its output."""

    def __init__(
        self, process: subprocess.Popen[bytes], feed: Iterable[bytes], timeout: float
    ) -> None:
        self._process = process
        self._feed = feed
        self._timeout = timeout
        self._late = False
        self._complaints = b""
        self._trouble: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._write, daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        self._watch = threading.Timer(timeout, self._end)

    def __enter__(self) -> Self:
        for thread in (*self._threads, self._watch):
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.cancel()
        # With its output it has ended or will; else somebody stopped reading.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TIMEOUT if kind is None else 0)
        self._process.kill()
        for thread in self._threads:
            thread.join()

    def output(self) -> Iterator[bytes]:
        stdout: IO[bytes] | None = self._process.stdout
        while stdout is not None and (piece := stdout.read1(_PIECE)):  # type: ignore[attr-defined]
            yield piece

    def check(self, what: str) -> None:
        """Raise for whatever went wrong; when it has ended."""
        if self._trouble is not None:
            raise self._trouble
        words = " ".join(self._complaints.decode(errors="replace").split())[-_WORDS:]
        if self._late:
            raise DeploymentFailed(f"{what}: not done after {self._timeout:.0f} s {words}".rstrip())
        if self._process.returncode:
            raise DeploymentFailed(f"{what}: {words}")

    def _write(self) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        try:
            for piece in self._feed:
                stdin.write(piece)
            stdin.flush()
        except BrokenPipeError:
            pass  # it ended early: its exit code and complaint say why
        except BaseException as error:  # noqa: BLE001 - handed over to whoever reads the output
            self._trouble = error
            self._process.kill()
        with suppress(OSError):
            stdin.close()

    def _listen(self) -> None:
        stderr: IO[bytes] | None = self._process.stderr
        while stderr is not None and (piece := stderr.read1(_PIECE)):  # type: ignore[attr-defined]
            self._complaints = (self._complaints + piece)[-_PIECE:]

    def _end(self) -> None:
        self._late = True
        self._process.kill()


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether none of the pod's containers will run any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def troubles(kubectl: Kubectl, namespace: str) -> list[str]:
    """What keeps pods of a namespace from running, one line each, with the latest warnings.

    Never raises for the cluster: it is asked when something else has failed already.
    """
    found: list[str] = []
    try:
        for pod in kubectl.pods(namespace):
            found += [] if has_ended(pod) else _pod_troubles(pod)
        events = kubectl.get(
            "get", "events", f"--namespace={namespace}", "--field-selector=type=Warning"
        ).get("items", [])
    except DeploymentFailed as error:
        return [*found, error.message]
    events.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    messages = {
        " ".join(str(event.get("message", "")).split())[:_WORDS]: event["involvedObject"]["name"]
        for event in events
    }
    return found + [f"{name}: {message}" for message, name in list(messages.items())[-3:]]


def _pod_troubles(pod: dict[str, Any]) -> list[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    found = []
    for part in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = part.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
            found.append(f"{name}: {waiting.get('reason')} {part.get('image', '')}".strip())
    return found + [
        f"{name}: {condition.get('reason')}: {condition.get('message', '')}"
        for condition in status.get("conditions", ())
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
    ]
