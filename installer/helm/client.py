"""Runs the Helm binary that came with the bundle, closed off from whatever else is on the machine.

Helm reads settings, repositories, plugins and credentials from the environment and the home folder;
here it sees an environment made for it and nothing else, so that a run depends only on its
arguments. Values hold passwords: they go in through standard input, never into a file or the
process list, and known secrets are cut out of whatever Helm prints when it fails.

Helm 3 (3.18 and later) and Helm 4 differ in a few flags, which is handled here and nowhere else.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from installer.environment import closed_environment
from installer.errors import AirgapError, DeploymentFailed, InvalidInput, NotTrusted
from installer.helm.values import merge
from installer.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    Values = Mapping[str, Any] | Sequence[Mapping[str, Any]]
    """Chart values, or several layers of them, the last one on top."""

_OLDEST = (3, 18)
_QUICK = 120.0
"""Seconds for what doesn't wait for the cluster's work."""
_GRACE = 20.0
"""Seconds in which an interrupted Helm may record the release as failed."""
_ERROR_LIMIT = 4000
# A JSON text is YAML only without these: line breaks and controls that YAML treats otherwise.
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Helm:
    """One Helm binary with a private home folder; cluster actions need ``kubeconfig``."""

    def __init__(
        self,
        binary: Path,
        home: Path,
        *,
        kubeconfig: Path | None = None,
        context: str = "",
    ) -> None:
        self.binary = binary.absolute()
        self.home = home.absolute()
        self.kubeconfig = kubeconfig.absolute() if kubeconfig else None
        self.context = context

    @cached_property
    def _version(self) -> tuple[int, int, int]:
        text = self._run(["version", "--template", "{{.Version}}"], InvalidInput, "helm version")
        match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
        if not match:
            raise InvalidInput(f"{self.binary}: does not say its version like Helm: {text[:100]!r}")
        major, minor, patch = (int(part) for part in match.groups())
        if (major, minor) < _OLDEST:
            raise InvalidInput(
                f"{self.binary}: Helm {major}.{minor}.{patch} is too old",
                hint=f"Helm {_OLDEST[0]}.{_OLDEST[1]} or newer, or Helm 4, is needed",
            )
        return major, minor, patch

    def version(self) -> tuple[int, int, int]:
        """Major, minor and patch; raises InvalidInput for what is not Helm, or too old."""
        return self._version

    def template(
        self,
        chart: Path,
        release: str,
        namespace: str,
        values: Values,
        *,
        kube_version: str = "",
        api_versions: Sequence[str] = (),
        include_crds: bool = True,
        is_upgrade: bool = False,
        profile: str = "",
        secrets: Collection[str] = (),
    ) -> str:
        """Render a local chart, hooks and tests included, without touching a cluster.

        ``kube_version`` is the target's (the default is the binary's own, which may be newer);
        ``is_upgrade`` renders what an upgrade would, which may have other hooks than an
        installation; ``profile`` names the values in the error. Raises InvalidInput with Helm's
        words.
        """
        self.version()
        command = ["template", release, str(chart.absolute()), "--namespace", namespace]
        command += ["--include-crds"] if include_crds else []
        command += ["--is-upgrade"] if is_upgrade else []
        command += ["--kube-version", kube_version] if kube_version else []
        for api_version in api_versions:
            command += ["--api-versions", api_version]
        what = f"chart {chart.name}" + (f" with profile {profile!r}" if profile else "")
        return self._run(
            [*command, "--values", "-"],
            InvalidInput,
            f"{what}: rendering failed",
            values=values,
            secrets=secrets,
            hint="check the values against the chart, and kubeVersion against what it supports",
        )

    def verify(self, chart: Path, keyring: Path) -> str:
        """Check a chart against the provenance file beside it; give the key's fingerprint.

        ``keyring`` has the OpenPGP keys that may have signed, in GnuPG's binary form. Raises
        NotTrusted with Helm's words.
        """
        command = ["verify", str(chart.absolute()), "--keyring", str(keyring.absolute())]
        said = self._run(
            command,
            NotTrusted,
            f"chart {chart.name}: its provenance does not hold",
            hint="compare the keyring with the key that the chart's maker publishes",
        )
        found = re.search(r"Fingerprint:\s*([0-9A-Fa-f]{40,64})", said)
        return found[1].lower() if found else ""

    def upgrade_install(
        self,
        chart: Path,
        release: str,
        namespace: str,
        values: Values,
        *,
        timeout: float,
        history_max: int = 5,
        create_namespace: bool = True,
        wait: bool = True,
        force: bool = False,
        secrets: Collection[str] = (),
    ) -> dict[str, Any]:
        """Install the release, or upgrade it to exactly these values; wait until it is ready.

        ``timeout`` is in seconds. With ``force`` its word counts over fields that somebody else
        has set, as it always does where Helm itself merges (Helm 3). Gives the release as Helm
        reports it (``info.status``, ``version``). Raises DeploymentFailed.
        """
        command = ["upgrade", release, str(chart.absolute()), "--install"]
        command += ["--namespace", namespace, "--timeout", f"{int(timeout)}s"]
        # Without --reset-values an upgrade with empty values would silently keep the old ones.
        command += ["--history-max", str(history_max), "--reset-values", "--output", "json"]
        command += ["--create-namespace"] if create_namespace else []
        command += self._wait_flag() if wait else []
        if force and self._is_server_side(release, namespace):
            command.append("--force-conflicts")
        output = self._run(
            [*command, "--values", "-"],
            DeploymentFailed,
            f"release {release} in namespace {namespace}: install or upgrade failed",
            values=values,
            secrets=secrets,
            # Helm's own time-out speaks better: it says which object was not ready.
            timeout=timeout + _QUICK,
            hint=f"see `kubectl -n {namespace} get pods,events`; running again goes on from here",
        )
        return _map(_json(output))

    def status(self, release: str, namespace: str) -> dict[str, Any] | None:
        """The latest revision of a release (``info.status``, ``version``), None if there is none.

        It holds values and manifests, and so secrets: not for a log. Raises DeploymentFailed if
        the cluster can't be asked.
        """
        command = ["status", release, "--namespace", namespace, "--output", "json"]
        what = f"release {release} in namespace {namespace}: its status can't be read"
        try:
            return _map(_json(self._run(command, DeploymentFailed, what)))
        except DeploymentFailed as error:
            if "release: not found" in error.message:
                return None
            raise

    def history(self, release: str, namespace: str) -> list[dict[str, Any]]:
        """Revisions that Helm still knows, oldest first; none if there is no such release.

        Of each ``revision``, ``status``, ``chart`` and ``app_version``.
        """
        command = ["history", release, "--namespace", namespace, "--max", "256", "--output", "json"]
        what = f"release {release} in namespace {namespace}: its history can't be read"
        try:
            found = _json(self._run(command, DeploymentFailed, what))
        except DeploymentFailed as error:
            if "release: not found" in error.message:
                return []
            raise
        return sorted(
            (entry for entry in found or () if isinstance(entry, dict)),
            key=lambda entry: int(entry.get("revision", 0)),
        )

    def get_manifest(self, release: str, namespace: str, *, revision: int = 0) -> str:
        """Objects (YAML) of a revision or the latest, without hooks; may hold secrets."""
        command = ["get", "manifest", release, "--namespace", namespace]
        command += ["--revision", str(revision)] if revision else []
        what = f"release {release} in namespace {namespace}: its objects can't be read"
        return self._run(command, DeploymentFailed, what)

    def get_values(self, release: str, namespace: str, *, revision: int = 0) -> dict[str, Any]:
        """The values of a revision, or of the latest, without the chart's defaults."""
        command = ["get", "values", release, "--namespace", namespace, "--output", "json"]
        command += ["--revision", str(revision)] if revision else []
        what = f"release {release} in namespace {namespace}: its values can't be read"
        return _map(_json(self._run(command, DeploymentFailed, what)))

    def releases(self, namespace: str = "") -> list[dict[str, Any]]:
        """Releases of a namespace, or of all: ``name``, ``namespace``, ``status``, ``chart``."""
        where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
        # Helm 3 shows what is pending or failed only when asked; Helm 4 always does.
        everything = ["--all"] if self.version()[0] < 4 else []  # noqa: PLR2004 - Helm 4
        command = ["list", *where, *everything, "--max", "0", "--output", "json"]
        found = _json(self._run(command, DeploymentFailed, "releases can't be listed"))
        return [entry for entry in found or () if isinstance(entry, dict)]

    def uninstall(self, release: str, namespace: str, *, timeout: float = 300) -> None:
        """Remove a release and wait until its objects are gone; one that isn't there is no error.

        ``timeout`` is in seconds. Volumes that the chart marks as kept stay.
        """
        command = ["uninstall", release, "--namespace", namespace, "--ignore-not-found"]
        self._run(
            [*command, *self._wait_flag(), "--timeout", f"{int(timeout)}s"],
            DeploymentFailed,
            f"release {release} in namespace {namespace}: uninstall failed",
            timeout=timeout + _QUICK,
        )

    def _is_server_side(self, release: str, namespace: str) -> bool:
        found = self.status(release, namespace)
        return found is not None and found.get("apply_method") == "ssa"

    def _wait_flag(self) -> list[str]:
        # In 4.0 a bare --wait meant hooks only; the strategy is named to be sure.
        return ["--wait=watcher"] if self.version()[0] >= 4 else ["--wait"]  # noqa: PLR2004 - Helm 4

    def _environment(self) -> dict[str, str]:
        home = str(self.home)
        return closed_environment(self.home) | {
            "HELM_CACHE_HOME": f"{home}/cache",
            "HELM_CONFIG_HOME": f"{home}/config",
            "HELM_DATA_HOME": f"{home}/data",
            "HELM_PLUGINS": f"{home}/no-plugins",
            "HELM_NO_PLUGINS": "1",
            # Never the caller's ~/.kube/config by accident: a path that isn't there.
            "KUBECONFIG": str(self.kubeconfig or f"{home}/no-kubeconfig"),
        }

    def _run(
        self,
        arguments: list[str],
        failure: type[AirgapError],
        what: str,
        *,
        values: Values | None = None,
        secrets: Collection[str] = (),
        timeout: float = _QUICK,
        hint: str = "",
    ) -> str:
        # Without one Helm would try localhost:8080, or the cluster of the pod that it runs in.
        if failure is DeploymentFailed and self.kubeconfig is None:
            raise InvalidInput(f"{what}: no kubeconfig was given", hint="name the cluster's")
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [str(self.binary), *arguments]
        command += ["--kube-context", self.context] if self.context else []
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                cwd=self.home,
            )
        except OSError as error:
            reason = error.strerror or error
            raise InvalidInput(f"{self.binary}: can't be run: {reason}") from error
        with process:
            try:
                output, errors = process.communicate(
                    _as_yaml(values) if values is not None else b"", timeout=timeout
                )
            except subprocess.TimeoutExpired:
                _stop(process)
                raise failure(f"{what}: no answer within {timeout:.0f} s", hint=hint) from None
            except BaseException:
                # Ctrl-C reached Helm as well; a signal to us alone did not.
                _stop(process)
                raise
        if process.returncode:
            text = redact(errors.decode(errors="replace").strip(), secrets)
            raise failure(f"{what}: {text[-_ERROR_LIMIT:] or 'no message'}", hint=hint)
        return output.decode(errors="replace")


def _as_yaml(values: Values) -> bytes:
    layers = values if isinstance(values, list | tuple) else [values]
    merged = merge(*layers)
    try:
        text = json.dumps(merged, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"chart values: {error}") from error
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise DeploymentFailed(f"Helm's answer is not JSON: {error}") from error


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
