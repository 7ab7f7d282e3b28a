"""A network namespace without a route out, and counters that show what tried to leave it.

The namespace has a loopback, one bridge with the node's address and no link to the host. Nothing
is dropped by a rule: there simply is no route, so every attempt fails at once and the kernel
counts it. A process on the node that connects anywhere else gets "Network is unreachable" before
a packet exists (OutNoRoutes); a packet of a pod reaches the node and finds no way on
(InNoRoutes), and nftables keeps its destination. Names show in the log of the cluster's DNS.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NODE_IP = "10.55.0.1"
NODE_NET = "10.55.0.0/24"
POD_NET = "10.244.0.0/24"
SERVICE_NET = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DOMAIN = "cluster.local"
SITE_NAMES = (
    "registry.site.test",
    "harbor.site.test",
    "postgresql.site.test",
    "redis.site.test",
)
"""Names that the cluster's DNS answers with the node's address."""

_LINKS = f"""
link set lo up
link add node0 type bridge
link add node0p type veth peer name node0q
link set node0p master node0
link set node0p up
link set node0q up
addr add {NODE_IP}/24 dev node0
link set node0 up
route add {SERVICE_NET} dev node0
"""
# node0p and node0q: without a member that is up a bridge has no carrier.
# The route: without it a connect from the node to a Service fails before it is translated.

_RULES = f"""
table inet outbound {{
  set inside4 {{
    type ipv4_addr; flags interval
    elements = {{ 127.0.0.0/8, {NODE_NET}, {POD_NET}, {SERVICE_NET}, 224.0.0.0/24 }}
  }}
  set inside6 {{
    type ipv6_addr; flags interval
    elements = {{ ::1, fe80::/10, ff00::/8 }}
  }}
  set seen4 {{ type ipv4_addr; size 4096; flags dynamic; counter; }}
  set seen6 {{ type ipv6_addr; size 4096; flags dynamic; counter; }}
  counter lookups {{ }}
  chain arriving {{
    type filter hook prerouting priority raw;
    ip daddr != @inside4 update @seen4 {{ ip daddr }}
    ip6 daddr != @inside6 update @seen6 {{ ip6 daddr }}
  }}
  chain leaving {{
    type filter hook output priority raw;
    ip daddr != @inside4 update @seen4 {{ ip daddr }}
    ip6 daddr != @inside6 update @seen6 {{ ip6 daddr }}
    ip daddr 127.0.0.0/8 meta l4proto {{ tcp, udp }} th dport 53 counter name lookups
  }}
}}
"""
# lookups: the host's resolv.conf may name a resolver on loopback, which does not live in here.

_QUERY = re.compile(r'\[INFO\] \S+ - \d+ "\S+ IN (\S+?)\.? ')


class NetworkFailed(Exception):
    """The kernel or a tool refused; the message has what it said."""


@dataclass(frozen=True)
class Outbound:
    """What tried to leave so far; take the difference of two with ``since``."""

    from_node: int = 0
    """Connects and packets of processes on the node that had no route."""
    from_pods: int = 0
    """Packets of pods that had no route on the node."""
    lookups: int = 0
    """Packets of processes on the node to a DNS server on the host's loopback."""
    destinations: Mapping[str, int] = field(default_factory=dict)
    """Packets by address outside the site, where there was a packet (pods, or a stray route)."""
    names: tuple[str, ...] = ()
    """Names outside the cluster's domain that the cluster's DNS was asked for, in order."""

    @property
    def attempts(self) -> int:
        """All that was counted, some of it twice; 0 is the proof that nothing tried."""
        packets = sum(self.destinations.values())
        return self.from_node + self.from_pods + self.lookups + packets + len(self.names)

    def since(self, before: Outbound) -> Outbound:
        """What came after ``before``."""
        more = {at: n - before.destinations.get(at, 0) for at, n in self.destinations.items()}
        return Outbound(
            self.from_node - before.from_node,
            self.from_pods - before.from_pods,
            self.lookups - before.lookups,
            {at: n for at, n in more.items() if n},
            self.names[len(before.names) :],
        )


@dataclass(frozen=True)
class Namespace:
    """A named network namespace (``/run/netns/NAME``)."""

    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """Command line that runs ``argv`` inside.

        Not ``ip netns exec``: that mounts /sys anew, and the cgroups below it are gone.
        """
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def create(self) -> None:
        """Make it with its links and counters; raises NetworkFailed."""
        _run(["ip", "netns", "add", self.name])
        _run(self.enter(["ip", "-batch", "-"]), _LINKS)
        settings = ["net.ipv4.ip_forward=1"]
        if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
            # a pod that reaches another one by its Service must see the answer translated back
            settings.append("net.bridge.bridge-nf-call-iptables=1")
        _run(self.enter(["sysctl", "-qw", *settings]))
        _run(self.enter(["nft", "-f", "-"]), _RULES)

    def processes(self) -> list[int]:
        """Ids of the processes that are inside."""
        if not self.path.exists():
            return []
        return [int(pid) for pid in _run(["ip", "netns", "pids", self.name]).split()]

    def delete(self) -> None:
        if self.path.exists():
            _run(["ip", "netns", "delete", self.name])

    def outbound(self, dns_log: Path | None = None) -> Outbound:
        """Read the counters, and the names from CoreDNS's log if there is one."""
        # cat and not open(): /proc/net is that of the reading process
        text = _run(self.enter(["cat", "/proc/net/snmp", "/proc/net/netstat", "/proc/net/snmp6"]))
        kernel = _kernel_counters(text)
        destinations: dict[str, int] = {}
        for name in ("seen4", "seen6"):
            listed = json.loads(
                _run(self.enter(["nft", "-j", "list", "set", "inet", "outbound", name]))
            )
            for entry in listed["nftables"]:
                for element in entry.get("set", {}).get("elem", []):
                    value = element["elem"]
                    destinations[value["val"]] = int(value["counter"]["packets"])
        listed = json.loads(
            _run(self.enter(["nft", "-j", "list", "counter", "inet", "outbound", "lookups"]))
        )
        lookups = sum(e["counter"]["packets"] for e in listed["nftables"] if "counter" in e)
        return Outbound(
            from_node=kernel["Ip.OutNoRoutes"] + kernel["Ip6OutNoRoutes"],
            from_pods=kernel["IpExt.InNoRoutes"] + kernel["Ip6InNoRoutes"],
            lookups=lookups,
            destinations=destinations,
            names=outside_names(dns_log.read_text().splitlines())
            if dns_log and dns_log.exists()
            else (),
        )


def outside_names(log: Iterable[str]) -> tuple[str, ...]:
    """Names in CoreDNS's log that neither the cluster nor the site answers."""
    asked = [found[1] for line in log if (found := _QUERY.search(line))]
    return tuple(name for name in asked if not _inside(name))


def _inside(name: str) -> bool:
    inside = (DOMAIN, "in-addr.arpa", "ip6.arpa", *SITE_NAMES)
    return name == "" or any(name == one or name.endswith(f".{one}") for one in inside)


def _kernel_counters(text: str) -> dict[str, int]:
    """Read /proc/net's two forms: pairs of lines (names, values), and lines of name and value."""
    counters: dict[str, int] = {}
    names: list[str] = []
    for line in text.splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            counters[key] = int(values[0])
        elif not names:
            names = [f"{key.removesuffix(':')}.{name}" for name in values]
        else:
            counters.update(zip(names, map(int, values), strict=True))
            names = []
    return counters


def _run(argv: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkFailed(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
