"""Where the cluster's files lie, what is in them, and how its programs are started.

Why a setting is there is said beside it; what has no comment is what a kubeadm node has too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.site.network import API_SERVICE, DOMAIN, NODE_IP, POD_NET, SERVICE_NET, SITE_NAMES
from tests.site.pki import Authority

if TYPE_CHECKING:
    from pathlib import Path

NODE = "node1"
PAUSE = "site.test/pause:1"
_API = f"https://{NODE_IP}:6443"
_ETCD = "http://127.0.0.1:2379"
_API_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{DOMAIN}",
    "localhost",
)
# file: (common name, organisation), which are user and group in Kubernetes
_CLIENTS = {
    "admin": ("admin", "system:masters"),
    "apiserver-kubelet": ("apiserver-kubelet-client", "system:masters"),
    "controllers": ("system:kube-controller-manager", "site"),
    "scheduler": ("system:kube-scheduler", "site"),
    "proxy": ("system:kube-proxy", "site"),
}


@dataclass(frozen=True)
class Layout:
    """Where what lies below the cluster's folder; ``name`` is also its cgroup and CNI network."""

    folder: Path
    name: str

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.conf"

    @property
    def certs_dir(self) -> Path:
        return self.folder / "certs.d"

    @property
    def containerd_socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def containerd_state(self) -> Path:
        return self.folder / "containerd" / "state"

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    def write(self) -> None:
        """Write everything; certificates and keys only when they are not there yet."""
        for name in ("pki", "log", "etcd", "cni/net.d", "containerd/root", "containerd/state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "etcd").chmod(0o700)
        self.certs_dir.mkdir(exist_ok=True)
        if not (self.pki / "ca.crt").exists():
            self._certificates()
        for user in ("admin", "controllers", "scheduler", "proxy", "kubelet"):
            self._kubeconfig(user)
        for name, text in self._files().items():
            (self.folder / name).write_text(text)

    def _certificates(self) -> None:
        authority = Authority(self.pki)
        for file, (user, group) in _CLIENTS.items():
            authority.issue(file, user, group)
        authority.issue(
            "kubelet", f"system:node:{NODE}", "system:nodes", (NODE, NODE_IP, "127.0.0.1")
        )
        names = (*_API_NAMES, "127.0.0.1", NODE_IP, API_SERVICE)
        authority.issue("apiserver", "kube-apiserver", "site", names)
        authority.key_pair("accounts")

    def _kubeconfig(self, user: str) -> None:
        cluster = {"server": _API, "certificate-authority": str(self.pki / "ca.crt")}
        credentials = {
            "client-certificate": str(self.pki / f"{user}.crt"),
            "client-key": str(self.pki / f"{user}.key"),
        }
        (self.folder / f"{user}.conf").write_text(
            json.dumps(  # which is YAML too
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "site", "cluster": cluster}],
                    "users": [{"name": user, "user": credentials}],
                    "contexts": [{"name": "site", "context": {"cluster": "site", "user": user}}],
                    "current-context": "site",
                },
                indent=1,
            )
        )

    def _files(self) -> dict[str, str]:
        return {
            "resolv.conf": "search .\n",  # pods get no DNS server but the cluster's
            "containerd.toml": self._containerd(),
            "cni/net.d/10-pods.conflist": self._cni(),
            "kubelet.json": self._kubelet(),
            "proxy.json": self._proxy(),
            "Corefile": self._corefile(),
        }

    def _containerd(self) -> str:
        unused = ("zfs", "btrfs", "devmapper", "aufs")
        disabled = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in unused)
        cri = '[plugins."io.containerd.grpc.v1.cri"'
        return f"""\
version = 2
root = "{self.folder}/containerd/root"
state = "{self.containerd_state}"
disabled_plugins = [{disabled}]
[grpc]
  address = "{self.containerd_socket}"
{cri}]
  sandbox_image = "{PAUSE}"
  netns_mounts_under_state_dir = true
  # without CAP_SYS_RESOURCE runc can't lower oom_score_adj and no pod would start
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
{cri}.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{self.folder}/cni/net.d"
{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{self.folder}/runc"
{cri}.registry]
  config_path = "{self.certs_dir}"
"""

    def _cni(self) -> str:
        address = {
            "type": "host-local",
            "dataDir": str(self.folder / "cni" / "state"),
            "ranges": [[{"subnet": POD_NET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": address,
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return json.dumps({"cniVersion": "1.0.0", "name": self.name, "plugins": [bridge, ports]})

    def _kubelet(self) -> str:
        return json.dumps(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(self.pki / "ca.crt")},
                },
                "authorization": {"mode": "Webhook"},
                "cgroupDriver": "cgroupfs",
                "cgroupRoot": f"/{self.name}",  # pods of this cluster are told apart on the machine
                "failCgroupV1": False,
                "failSwapOn": False,
                "clusterDNS": [NODE_IP],
                "clusterDomain": DOMAIN,
                "resolvConf": str(self.folder / "resolv.conf"),
                "containerRuntimeEndpoint": f"unix://{self.containerd_socket}",
                "tlsCertFile": str(self.pki / "kubelet.crt"),
                "tlsPrivateKeyFile": str(self.pki / "kubelet.key"),
                "podLogsDir": str(self.folder / "podlogs"),
                "volumePluginDir": str(self.folder / "volumeplugins"),
                "serializeImagePulls": False,
                "registryPullQPS": 0,
                # a test machine's disk may be nearly full without this being a node's trouble
                "imageGCHighThresholdPercent": 100,
                "evictionHard": {
                    "memory.available": "100Mi",
                    "nodefs.available": "1%",
                    "imagefs.available": "1%",
                },
            },
            indent=1,
        )

    def _proxy(self) -> str:
        return json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "iptables",
                "clusterCIDR": POD_NET,
                "hostnameOverride": NODE,
                "clientConnection": {"kubeconfig": str(self.folder / "proxy.conf")},
                # conntrack's limits belong to the host and can't be set from a namespace
                "conntrack": {
                    "maxPerCore": 0,
                    "min": 0,
                    "tcpEstablishedTimeout": "0s",
                    "tcpCloseWaitTimeout": "0s",
                },
            },
            indent=1,
        )

    def _corefile(self) -> str:
        # no forward: what is neither here nor there is refused, and logged
        return f"""\
.:53 {{
  bind {NODE_IP}
  errors
  ready {NODE_IP}:8181
  log
  hosts {{
    {NODE_IP} {" ".join(SITE_NAMES)}
    fallthrough
  }}
  kubernetes {DOMAIN} in-addr.arpa {{
    kubeconfig {self.kubeconfig}
    pods insecure
  }}
}}
"""

    def commands(self, programs: Path) -> dict[str, list[str]]:
        """Command lines by name, in the order of starting."""
        folder, pki = self.folder, self.pki
        quiet = ["--leader-elect=false", "--bind-address=127.0.0.1"]
        return {
            "etcd": [
                "etcd",
                "--name=site",
                f"--data-dir={folder}/etcd",
                f"--listen-client-urls={_ETCD}",
                f"--advertise-client-urls={_ETCD}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=site=http://127.0.0.1:2380",
                "--log-level=warn",
            ],
            "containerd": ["containerd", "--config", f"{folder}/containerd.toml"],
            "apiserver": [
                f"{programs}/kube-apiserver",
                f"--etcd-servers={_ETCD}",
                "--bind-address=0.0.0.0",
                # without a default route it can't find out by itself
                f"--advertise-address={NODE_IP}",
                f"--service-cluster-ip-range={SERVICE_NET}",
                "--allow-privileged=true",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                f"--client-ca-file={pki}/ca.crt",
                f"--tls-cert-file={pki}/apiserver.crt",
                f"--tls-private-key-file={pki}/apiserver.key",
                f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
                f"--kubelet-client-key={pki}/apiserver-kubelet.key",
                f"--kubelet-certificate-authority={pki}/ca.crt",
                "--kubelet-preferred-address-types=InternalIP",
                f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
                f"--service-account-signing-key-file={pki}/accounts.key",
                f"--service-account-key-file={pki}/accounts.pub",
            ],
            "controllers": [
                f"{programs}/kube-controller-manager",
                f"--kubeconfig={folder}/controllers.conf",
                f"--root-ca-file={pki}/ca.crt",
                f"--service-account-private-key-file={pki}/accounts.key",
                "--use-service-account-credentials=true",
                f"--cluster-signing-cert-file={pki}/ca.crt",
                f"--cluster-signing-key-file={pki}/ca.key",
                *quiet,
            ],
            "scheduler": [
                f"{programs}/kube-scheduler",
                f"--kubeconfig={folder}/scheduler.conf",
                *quiet,
            ],
            "kubelet": [
                f"{programs}/kubelet",
                f"--config={folder}/kubelet.json",
                f"--kubeconfig={folder}/kubelet.conf",
                f"--root-dir={folder}/kubelet",
                f"--cert-dir={folder}/kubelet/pki",
                f"--hostname-override={NODE}",
                f"--node-ip={NODE_IP}",
            ],
            "proxy": [f"{programs}/kube-proxy", f"--config={folder}/proxy.json"],
            "coredns": [f"{programs}/coredns", "-conf", f"{folder}/Corefile"],
        }
