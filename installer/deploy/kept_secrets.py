"""Harbor's secrets are kept twice: in the state folder, and in a Secret beside what they open.

Whoever loses the machine that installed would lose the key of Harbor's database with it. So the
cluster has a copy, in a Secret that no release owns: it outlives an uninstallation as the data do.
A run without them takes them back from there. Where both have some, they have to be the same: which
of two keys opens the data is nothing to guess.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from installer.deploy.installed import InstalledRelease
from installer.errors import DeploymentFailed, PreflightFailed
from installer.site import credentials
from installer.site.credentials import HarborSecrets
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.deploy.context import Context
    from installer.site.model import Release

_MANAGER = "harbor-airgap"
_SECONDS = 60.0


def secret_name(release: str) -> str:
    """Name of the Secret with the secrets of a Harbor, by Helm's name of it."""
    return f"{release}-kept-secrets"


class KeepSecrets:
    """Have the secrets of ``release``, a Harbor, here and in the cluster, the same."""

    def __init__(
        self,
        context: Context,
        release: Release,
        make: Callable[[], HarborSecrets | None] = lambda: None,
    ) -> None:
        """``make`` gives what the state folder has, made and kept if there is nothing yet."""
        self._context = context
        self._release = release
        self._make = make
        self._namespace = release.release_namespace
        self._secret = secret_name(release.release_name)
        self.name = f"secrets:{release.key}"
        self.place = f"{self._namespace}/{self._secret}"
        self.sentence = f"Keep the secrets of {release.key} here and in Secret {self.place}"

    def details(self) -> list[str]:
        """That they are taken back from the cluster, where they are."""
        lost = self._kept() is None and self.found() is not None
        return [f"they are taken back from there: {self._context.state.folder} has none"] * lost

    def found(self) -> HarborSecrets | None:
        """What the cluster has; raises PreflightFailed for a Secret that isn't the installer's."""
        text = self._context.kubectl.run(
            "get", "secret", self._secret, f"--namespace={self._namespace}", "--output=json",
            "--ignore-not-found",
        )  # fmt: skip
        if not text.strip():
            return None
        try:
            data = decode_json(text, dict[str, Any])["data"][credentials.FILE]
            return decode_json(base64.b64decode(data, validate=True), HarborSecrets)
        except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, KeyError, TypeError):
            raise PreflightFailed(
                f"Secret {self.place} is not what the installer wrote",
                hint="delete it if the state folder has the secrets; else bring back either",
            ) from None

    def are_known(self) -> bool:
        """Whether they are here or in the cluster; raises as ``found``."""
        return self._kept() is not None or self.found() is not None

    def preflight(self) -> None:
        """Refuse a Harbor whose secrets are lost, and one that has two; raises PreflightFailed."""
        kept, there = self._kept(), self.found()
        folder, key = self._context.state.folder, self._release.key
        if kept is not None and there is not None and kept != there:
            raise PreflightFailed(
                f"{folder} and Secret {self.place} have other secrets for {key}",
                hint="Harbor reads its database with only one of them: name the right folder with "
                "--state, or delete the Secret if this one is right",
            )
        if kept is None and there is None and self._is_installed():
            raise PreflightFailed(
                f"release {key} is there, but neither {folder} nor Secret {self.place} has its "
                "secrets",
                hint="bring back that folder, or name the right one with --state: Harbor can't "
                "read its database with a new secret key",
            )

    def check(self) -> bool:
        """Whether both have the same."""
        kept = self._kept()
        return kept is not None and kept == self.found()

    def apply(self) -> str:
        """Take them from where they are, or make them; raises as ``preflight``."""
        self.preflight()
        there = self.found()
        if there is not None:
            credentials.keep(self._context.state, self._release.key, there)
            return "taken back from the cluster"
        made = self._make()
        if made is None:
            raise ValueError(f"{self._release.key} is no Harbor")
        self._store(made)
        return ""

    def _kept(self) -> HarborSecrets | None:
        return credentials.kept(self._context.state, self._release.key)

    def _is_installed(self) -> bool:
        release = self._release
        installed = InstalledRelease(self._context, self._namespace, release.release_name)
        return installed.found() is not None

    def _store(self, secrets: HarborSecrets) -> None:
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._secret,
                "namespace": self._namespace,
                "labels": {"app.kubernetes.io/managed-by": _MANAGER},
            },
            "type": "Opaque",
            "data": {credentials.FILE: base64.b64encode(msgspec.json.encode(secrets)).decode()},
        }
        kubectl = self._context.kubectl
        try:
            kubectl.run("create", "namespace", self._namespace)
        except DeploymentFailed as error:
            if "AlreadyExists" not in error.message:
                raise
        # By standard input: neither a file nor the process list has it. Server-side, so that no
        # annotation repeats it.
        command = ("apply", "--server-side", f"--field-manager={_MANAGER}", "--filename=-")
        for _ in kubectl.stream(*command, feed=[msgspec.json.encode(document)], timeout=_SECONDS):
            pass
