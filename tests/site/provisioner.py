"""A tiny provisioner that plays a CSI driver's part where no driver can run.

The kernel that the tests run on need not have an NFS client. So claims of a driver's storage class
get a folder of the node, in all else as the driver's provisioner would do it: the volume is made
when the claim is there, with the class's reclaim policy, and deleted by the provisioner alone when
its claim is gone.
"""

from __future__ import annotations

import json
import shutil
import threading
from typing import TYPE_CHECKING, Any, Self

from tests.site.cluster import CommandFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site.cluster import Cluster

_PAUSE = 0.5
_MADE_BY = "pv.kubernetes.io/provisioned-by"


class Provisioner:
    """A thread that makes volumes below ``folder`` for a driver's classes, as a context manager."""

    def __init__(self, cluster: Cluster, driver: str, folder: Path) -> None:
        self._cluster = cluster
        self._driver = driver
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failures: list[str] = []
        self.deleted: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def volumes(self) -> list[dict[str, Any]]:
        """Those that it made and that are there."""
        found = self._items("get", "persistentvolumes")
        return [
            one
            for one in found
            if (one["metadata"].get("annotations") or {}).get(_MADE_BY) == self._driver
        ]

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            try:
                self._look()
            except CommandFailed as failure:  # somebody was faster; the next look is soon
                self.failures.append(str(failure))

    def _look(self) -> None:
        # Only who runs works: without the driver nothing is made or deleted.
        if self._driver not in [
            one["metadata"]["name"] for one in self._items("get", "csidrivers")
        ]:
            return
        classes = {
            one["metadata"]["name"]: one
            for one in self._items("get", "storageclasses")
            if one["provisioner"] == self._driver
        }
        for claim in self._items("get", "persistentvolumeclaims", "--all-namespaces"):
            of = classes.get(claim["spec"].get("storageClassName", ""))
            if of and claim["status"].get("phase") == "Pending":
                self._provide(claim, of)
        for volume in self.volumes():
            if (
                volume["status"].get("phase") == "Released"
                and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
            ):
                self._take(volume)

    def _provide(self, claim: dict[str, Any], of: dict[str, Any]) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        path = self._folder / f"{metadata['namespace']}-{metadata['name']}"
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)  # the kubelet gives no folder of a node to a pod's group
        document = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": f"pvc-{metadata['uid']}",
                "annotations": {_MADE_BY: self._driver},
            },
            "spec": {
                "capacity": spec["resources"]["requests"],
                "accessModes": spec["accessModes"],
                "storageClassName": spec["storageClassName"],
                "persistentVolumeReclaimPolicy": of["reclaimPolicy"],
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    **{key: metadata[key] for key in ("namespace", "name", "uid")},
                },
                "hostPath": {"path": str(path), "type": "Directory"},
            },
        }
        self._cluster.kubectl("apply", "--filename=-", stdin=json.dumps(document))

    def _take(self, volume: dict[str, Any]) -> None:
        shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
        name = volume["metadata"]["name"]
        self._cluster.kubectl("delete", "persistentvolume", name, "--wait=false")
        self.deleted.append(name)

    def _items(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._cluster.kubectl(*words, "--output=json"))[
            "items"
        ]
        return found
