"""A real one-node Kubernetes in a network namespace that has no route out.

etcd, containerd and runc are Debian's, Kubernetes and CoreDNS are built from their source
(build.py). Everything of a cluster lies below one folder and runs in one network namespace and
one cgroup of its own, so that nothing of it can be missed when it ends: ``down`` works from any
state, also after a failed ``up`` and from another process. No registry runs inside: what serves
images there is what is being tested.

    python -m tests.site.cluster [--folder DIR] up | status | in COMMAND… | down [--keep]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests import programs
from tests.site import build, cgroups, images, requirements
from tests.site.configuration import NODE, PAUSE, Layout
from tests.site.network import NODE_IP, Namespace, NetworkFailed, Outbound
from tests.site.processes import Processes, kill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# a unix socket's path has at most 107 characters, and the kubelet adds some below the folder
_LONGEST_FOLDER = 64
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CNI_RESULTS = Path("/var/lib/cni/results")  # the one path that libcni does not let choose


class ClusterFailed(Exception):
    """The cluster does not come up; the message has the end of the log in question."""


class CommandFailed(Exception):
    """A command in the namespace failed; the message has its output."""


class Cluster:
    """One node, ``node1``; as a context manager it is up inside and gone afterwards."""

    def __init__(self, folder: Path) -> None:
        """Describe the cluster of a folder, running or not; raises ValueError for a long path."""
        self.folder = folder.resolve()
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise ValueError(f"{folder}: longer than {_LONGEST_FOLDER}, too long for unix sockets")
        self.name = f"site-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
        self.node_ip = NODE_IP
        self._layout = Layout(self.folder, self.name)
        self._namespace = Namespace(self.name)
        self._processes = Processes(self.folder / "processes.json", self._layout.logs)

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator; it works in the namespace only."""
        return self._layout.kubeconfig

    @property
    def certs_dir(self) -> Path:
        """containerd's registry ``config_path``: HOST/hosts.toml in it counts at the next pull."""
        return self._layout.certs_dir

    @property
    def containerd_socket(self) -> Path:
        return self._layout.containerd_socket

    def up(self, seconds: float = 120) -> float:
        """Start everything and wait for the node to be Ready; how many seconds it took.

        Raises ClusterFailed, NetworkFailed, build.BuildFailed or programs.ProgramMissing; then
        ``down`` cleans up.
        """
        began = time.monotonic()
        started = datetime.now(UTC).replace(microsecond=0)
        deadline = began + seconds
        if any(map(self._processes.alive, self._processes.names())):
            raise ClusterFailed(f"the cluster of {self.folder} is up already, or was not ended")
        binaries = build.programs()
        programs.kubectl()
        self._layout.write()
        if not self._namespace.path.exists():
            self._namespace.create()
        cgroups.create(self.name)
        commands = self._layout.commands(binaries)
        first = ("etcd", "containerd", "apiserver")
        for name in first:
            self.spawn(name, commands[name])
        self._wait("containerd", deadline, lambda: not self._ctr("version", check=False).returncode)
        self._import_pause()
        self.wait_for_api(deadline - time.monotonic())
        for name in commands:
            if name not in first:
                self.spawn(name, commands[name])
        self._wait("kubelet", deadline, lambda: self._ready(started))
        self._wait(
            "controllers", deadline, lambda: self._answers("get", "serviceaccount", "default")
        )
        return time.monotonic() - began

    def down(self, *, keep: bool = False) -> None:
        """End and remove everything, from any state; ``keep`` leaves the folder for the next up."""
        state = ("etcd", "containerd")
        self._processes.stop([name for name in self._processes.names() if name not in state])
        cgroups.kill(self.name)
        if keep and self._processes.alive("containerd"):
            self._forget_containers()
        sockets = self._shim_sockets()
        self._processes.stop(state)
        for pid in self._namespace.processes():  # containers' shims, and what a test left
            kill(pid)
        self._unmount()
        self._namespace.delete()
        cgroups.remove(self.name)
        for path in (*sockets, *self._cni_results()):
            path.unlink(missing_ok=True)
        if not keep and self.folder.exists():
            shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = 300,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the network namespace, KUBECONFIG set; raises CommandFailed."""
        done = subprocess.run(
            self._namespace.enter(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.environment, **(env or {})},
            check=False,
        )
        if check and done.returncode:
            command = " ".join(map(str, argv))
            raise CommandFailed(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Output of kubectl; raises CommandFailed."""
        return self.run([programs.kubectl(), *arguments], stdin=stdin, timeout=timeout).stdout

    def spawn(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> int:
        """Start a program in the namespace that ``stop`` or ``down`` ends; its process id.

        Its output is in ``log(name)``.
        """
        environment = {**self.environment, **(env or {})}
        return self._processes.start(name, self._namespace.enter(argv), environment)

    def stop(self, name: str) -> None:
        """End what ``spawn`` started."""
        self._processes.stop([name])

    def start(self, name: str) -> None:
        """Start one of the cluster's own programs again after ``stop``."""
        self.spawn(name, self._layout.commands(build.programs())[name])

    def wait_for_api(self, seconds: float = 180) -> None:
        """Wait until the API server serves; raises ClusterFailed."""
        deadline = time.monotonic() + seconds
        self._wait("apiserver", deadline, lambda: self._answers("get", "--raw=/readyz"))

    def reboot(self, seconds: float = 60) -> None:
        """Take the node's power away and give it back; the control plane is on another machine.

        Raises ClusterFailed when it is not Ready again.
        """
        self._processes.stop(["kubelet"], seconds=0)
        cgroups.kill(self.name)
        self._forget_containers()
        self._processes.stop(["containerd"], seconds=0)
        started = datetime.now(UTC).replace(microsecond=0)
        deadline = time.monotonic() + seconds
        self.start("containerd")
        self._wait("containerd", deadline, lambda: not self._ctr("version", check=False).returncode)
        self.start("kubelet")
        self._wait("kubelet", deadline, lambda: self._ready(started))

    def log(self, name: str) -> Path:
        return self._processes.log(name)

    def outbound(self) -> Outbound:
        """What tried to leave the namespace since it was made."""
        return self._namespace.outbound(self.log("coredns"))

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands inside: KUBECONFIG, and no proxy."""
        inherited = {k: v for k, v in os.environ.items() if k.upper() not in _PROXIES}
        path = f"{inherited.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"  # runc, CNI's tools
        return {**inherited, "PATH": path, "KUBECONFIG": str(self.kubeconfig)}

    def status(self) -> str:
        """Processes with their memory, node and pods, for people."""
        lines = []
        for name in self._processes.names():
            pid = self._processes.pid(name)
            state = f"{_resident(pid)} MiB" if self._processes.alive(name) else "ended"
            lines.append(f"{name:12} {pid:>8} {state}")
        lines.append(self.kubectl("get", "nodes,pods", "--all-namespaces", "--output=wide"))
        return "\n".join(lines)

    def _ctr(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        ctr = ["ctr", f"--address={self.containerd_socket}", "--namespace=k8s.io"]
        return self.run([*ctr, *arguments], check=check)

    def _answers(self, *arguments: str) -> bool:
        return self.run([programs.kubectl(), *arguments], check=False).returncode == 0

    def _ready(self, since: datetime) -> bool:
        asked = [str(programs.kubectl()), "get", "node", NODE, "--output=json"]
        done = self.run(asked, check=False)
        if done.returncode:
            return False
        conditions = json.loads(done.stdout)["status"].get("conditions", [])
        return any(
            one["type"] == "Ready"
            and one["status"] == "True"
            # a kept cluster remembers a Ready from before
            and datetime.fromisoformat(one["lastHeartbeatTime"]) >= since
            for one in conditions
        )

    def _import_pause(self) -> None:
        archive = self.folder / "pause.tar"
        images.write_archive(archive, {PAUSE: images.pause()})
        self._ctr("images", "import", archive)

    def _wait(self, name: str, deadline: float, done: Callable[[], bool]) -> None:
        while not done():
            ended = not self._processes.alive(name)
            if ended or time.monotonic() > deadline:
                reason = "ended" if ended else "is not ready in time"
                raise ClusterFailed(f"{name} {reason}:\n{self._processes.tail(name)}")
            time.sleep(0.1)

    def _forget_containers(self) -> None:
        """Remove containers from containerd's metadata: their processes are gone."""
        for kind, force in (("tasks", ["--force"]), ("containers", [])):
            if listed := self._ctr(kind, "list", "--quiet", check=False).stdout.split():
                self._ctr(kind, "delete", *force, *listed, check=False)

    def _shim_sockets(self) -> list[Path]:
        """Sockets that containerd's shims have outside the folder, by their address files."""
        found = self._layout.containerd_state.glob("io.containerd.runtime.v2.task/*/*/address")
        return [Path(path.read_text().strip().removeprefix("unix://")) for path in found]

    def _cni_results(self) -> list[Path]:
        """Records of libcni for this cluster's pods, which it keeps when a pod is killed."""
        found = []
        for path in _CNI_RESULTS.glob(f"{self.name}-*-eth0"):
            sandbox = path.name.removeprefix(f"{self.name}-").removesuffix("-eth0")
            found += [path, _CNI_RESULTS / f"cni-loopback-{sandbox}-lo"]
        return found

    def _unmount(self) -> None:
        for _ in range(5):  # a mount may be there more than once
            below = _mounts(self.folder)
            if not below:
                return
            subprocess.run(["umount", "--lazy", *below], capture_output=True, check=False)
        # whatever is still mounted may be somebody's data: never delete through it
        raise ClusterFailed(f"can't unmount {', '.join(_mounts(self.folder))}")


_FAILURES = (
    ClusterFailed,
    CommandFailed,
    NetworkFailed,
    build.BuildFailed,
    programs.ProgramMissing,
    ValueError,
)


def _mounts(folder: Path) -> list[str]:
    """Mount points below the folder, the deepest first."""
    points = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        # spaces and the like are written as octal escapes (see fstab(5))
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[1])
        if Path(point).is_relative_to(folder):
            points.append(point)
    return sorted(points, reverse=True)


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.site.cluster", description=__doc__)
    default = programs.cache_folder() / "site"
    parser.add_argument("--folder", type=Path, default=default, help="default: %(default)s")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up")
    verbs.add_parser("status")
    verbs.add_parser("down").add_argument("--keep", action="store_true")
    verbs.add_parser("in").add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    try:
        _act(Cluster(chosen.folder), chosen)
    except _FAILURES as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def _act(cluster: Cluster, chosen: argparse.Namespace) -> None:
    match chosen.verb:
        case "up":
            if reason := requirements.for_cluster():
                raise ClusterFailed(reason)
            print(f"Ready after {cluster.up():.1f} s; KUBECONFIG={cluster.kubeconfig}")
        case "status":
            print(cluster.status())
            print(cluster.outbound())
        case "down":
            cluster.down(keep=chosen.keep)
        case "in":
            argv = cluster._namespace.enter(chosen.command)
            os.execvpe(argv[0], argv, cluster.environment)  # noqa: S606  # it is what was asked for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
