"""The way out of an instance: a veth pair, one firewall table of ours, masquerading.

From inside, everything beyond this machine is reachable and nothing else: no address of the host (also none that it
would translate into a container's), no other instance, no container of a bridge here, no link-local address (cloud
metadata). The one exception is name service, where the host's resolver has one of the host's own addresses. Each
instance is a point-to-point link with one address; all share the gateway's.

    instance  eth0 100.64.x.y/32 ── vfXXXXn gateway/32  host ── masquerade ── out
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from faas.errors import Unavailable
from worker import shared
from worker.network import netlink
from worker.network.namespace import own_namespace
from worker.network.programs import attempt, run
from worker.network.resolver import RESOLV_CONFS, servers, stamp

log = logging.getLogger("worker.network")

SHARED_SPACE = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598: on no LAN, so it hides nobody's addresses
INSIDE = "eth0"  # an instance's end of its link
PREFIX = 20  # 4,094 instances
RECHECK_SECONDS = 10.0  # between looks at the machine's other firewall, which an engine may start or rewrite
# Of the network namespace that the calling thread is in.
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
IPV6 = Path("/proc/sys/net/ipv6/conf")


def choose_subnet(
    server_id: str, taken: list[ipaddress.IPv4Network], claim: Callable[[ipaddress.IPv4Network], bool] = lambda _: True
) -> ipaddress.IPv4Network:
    """A /20 of the shared address space, by the server's id, that overlaps nothing in `taken`, and that `claim` got."""
    ranges = 1 << (PREFIX - SHARED_SPACE.prefixlen)
    start = int.from_bytes(hashlib.sha256(server_id.encode()).digest()[:4], "big") % ranges
    for offset in range(ranges):
        base = int(SHARED_SPACE.network_address) + ((start + offset) % ranges << (32 - PREFIX))
        candidate = ipaddress.IPv4Network((base, PREFIX))
        if not any(candidate.overlaps(other) for other in taken) and claim(candidate):
            return candidate
    raise Unavailable("no free range in 100.64.0.0/10", hint="set subnet to a free IPv4 range")


def host_networks() -> list[ipaddress.IPv4Network]:
    """The IPv4 networks that this host has an address in or a route to, but for the default route."""
    rows = json.loads(run(["ip", "-json", "-4", "addr", "show"]) or "[]")
    addresses = [a for row in rows for a in row.get("addr_info", ()) if "local" in a]
    found = [ipaddress.IPv4Network((a["local"], a["prefixlen"]), strict=False) for a in addresses]
    for row in json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"):
        try:
            network = ipaddress.IPv4Network(row.get("dst", "default"), strict=False)
        except ValueError:  # "default"
            continue
        if network.prefixlen > 1:  # a VPN's 0.0.0.0/1 is a default route too
            found.append(network)
    return found


def uplinks() -> list[str]:
    """The interfaces that this host's own default routes leave by."""
    rows = json.loads(run(["ip", "-json", "-4", "route", "show", "default"]) or "[]")
    return sorted({row["dev"] for row in rows if "dev" in row})


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def bridges() -> set[str]:
    return {row["ifname"] for row in json.loads(run(["ip", "-json", "link", "show", "type", "bridge"]) or "[]") if row}


def _without_ipv6(interface: str) -> None:
    """A link has no use for link-local addresses, and its two ends not for each other's."""
    if IPV6.exists():
        (IPV6 / interface / "disable_ipv6").write_text("1")


@contextlib.contextmanager
def _told_as_ours() -> Iterator[None]:
    """What the kernel refuses as Unavailable."""
    try:
        yield
    except OSError as error:
        hint = "modprobe veth" if error.errno == errno.EOPNOTSUPP else ""
        raise Unavailable(f"an instance's link: {error.strerror or error}", hint=hint) from None


class Egress:
    """One server's links, firewall table and addresses. `prefix` begins the names of its host-side interfaces."""

    def __init__(self, server_id: str, subnet: str = "", resolvers: tuple[Path, ...] = RESOLV_CONFS) -> None:
        self.table = f"faas_{server_id}"
        self.prefix = f"vf{server_id[:8]}"  # an interface's name has at most 15 characters
        self._server_id = server_id
        self._wanted = subnet
        self._resolvers = resolvers
        self._resolver_stamp: tuple[tuple[int, int], ...] = ()
        self._apart: list[str] | None = None
        self._installing = threading.Lock()
        self._free: deque[int] = deque()
        self._numbers = itertools.count(2)  # 0 is the network's own address, 1 the gateway's
        self._links = itertools.count(1)
        self._checked = 0.0
        self._host_namespace = -1
        self._claim: socket.socket | None = None
        self.subnet = SHARED_SPACE

    @property
    def gateway(self) -> ipaddress.IPv4Address:
        return self.subnet[1]

    def open(self) -> None:
        """Blocking. Choose addresses, turn forwarding on, install the table. Raises Unavailable."""
        self.close()
        self._host_namespace = own_namespace()
        if self._wanted:
            try:
                self.subnet = ipaddress.IPv4Network(self._wanted)
            except ValueError as error:
                raise Unavailable(f"subnet: {error}", hint="an IPv4 range such as 100.64.16.0/20") from None
        else:
            self.subnet = choose_subnet(self._server_id, host_networks(), self._claims)
        self._apart = self._interfaces_apart()
        self._install()  # before forwarding is on
        FORWARDING.write_text("1")
        self._pass_foreign_firewall()

    def _claims(self, subnet: ipaddress.IPv4Network) -> bool:
        """A server that opens beside us has no address yet."""
        self._claim = shared.claim(f"subnet-{subnet}")
        return self._claim is not None

    def close(self) -> None:
        """Blocking. Take the table, the rules and left-over links away; nothing there is no error."""
        if self._host_namespace >= 0:
            os.close(self._host_namespace)
            self._host_namespace = -1
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        for rule in self._foreign_rules():
            for chain in ("DOCKER-USER", "FORWARD"):
                attempt(["iptables", "-w", "-D", chain, *rule])
        self._stop_forwarding()
        attempt(["nft", "delete", "table", "inet", self.table])
        for name in interfaces():
            if name.startswith(self.prefix):
                attempt(["ip", "link", "delete", name])

    @property
    def follows_resolver(self) -> bool:
        """Whether the firewall lets through to the servers that instances are told now; a stat."""
        return stamp(self._resolvers) == self._resolver_stamp

    def follow_resolver(self) -> None:
        """Blocking, but nearly always only a stat: see to that."""
        if not self.follows_resolver:
            self._install()

    def _interfaces_apart(self) -> list[str] | None:
        """Those between which nothing was forwarded before us, and is not to be; None where this machine forwards.

        No bridge: an engine or hypervisor that was merely not running would count on forwarding, and could not see that
        it is we who turned it on. The uplink may be one all the same.
        """
        if FORWARDING.read_text().strip() != "0":
            return None
        return sorted((interfaces() - bridges() | set(uplinks())) - {"lo"})

    def _stop_forwarding(self) -> None:
        """Turn forwarding off where we turned it on, as the table says (also a crashed server's).

        Not where somebody else may need it: an interface that is not one of those kept apart, another server's table.
        """
        chain = attempt(["nft", "list", "chain", "inet", self.table, "apart"])
        if chain is None:
            return
        others = [row for row in (attempt(["nft", "list", "tables", "inet"]) or "").split() if row.startswith("faas_")]
        strangers = {name for name in interfaces() if not name.startswith(self.prefix)} - {"lo"}
        if others == [self.table] and strangers <= set(re.findall(r'"([^"]+)"', chain)):
            FORWARDING.write_text("0")

    def _install(self) -> None:
        """The table, in one step with the removal of an earlier one."""
        with self._installing:
            now = stamp(self._resolvers)
            table = f"table inet {self.table}"
            run(["nft", "-f", "-"], f"{table}\ndelete {table}\n{self._ruleset()}")
            self._resolver_stamp = now

    def _ruleset(self) -> str:
        links = f'"{self.prefix}*"'
        names = " ".join(f"ip daddr {a} {p} dport 53 accept;" for a in servers(self._resolvers) for p in ("udp", "tcp"))
        # The host's own uplink may be a bridge (a hypervisor's); all others hold containers or guests.
        not_uplink = " ".join(f'oifname != "{name}"' for name in uplinks())
        apart = jump = ""
        if self._apart is not None:
            names_apart = ", ".join(f'"{name}"' for name in self._apart)
            rule = f"iifname {{ {names_apart} }} oifname {{ {names_apart} }} drop" if self._apart else ""
            apart, jump = f"chain apart {{\n        {rule}\n    }}", "meta nfproto ipv4 jump apart"
        # Before address translation, so that a published port of a container counts as the host's address that it is.
        return f"""
table inet {self.table} {{
    {apart}
    chain prerouting {{
        type filter hook prerouting priority -150; policy accept;
        iifname != {links} accept
        meta nfproto ipv6 drop
        ip saddr != {self.subnet} drop
        fib saddr . iif oif missing drop
        {names}
        fib daddr type {{ local, broadcast, multicast }} drop
        ip daddr {{ 127.0.0.0/8, 169.254.0.0/16, {self.subnet} }} drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname {links} oifname {links} drop
        iifname {links} meta oifkind "bridge" {not_uplink} drop
        oifname {links} ct state established,related accept
        oifname {links} drop
        {jump}
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {self.subnet} oifname != {links} masquerade
    }}
}}
"""

    def _foreign_rules(self) -> list[list[str]]:
        return [
            ["-i", f"{self.prefix}+", "-j", "ACCEPT"],
            ["-o", f"{self.prefix}+", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"],
        ]

    def _pass_foreign_firewall(self) -> None:
        """Docker sets the FORWARD policy to DROP, which an accept in our own table cannot undo."""
        self._checked = time.monotonic()
        listed = attempt(["iptables", "-w", "-S", "FORWARD"]) or ""
        if "-P FORWARD DROP" not in listed:
            return
        chain = "DOCKER-USER" if "DOCKER-USER" in listed else "FORWARD"
        for rule in self._foreign_rules():
            if attempt(["iptables", "-w", "-C", chain, *rule]) is None:
                run(["iptables", "-w", "-I", chain, *rule])

    def take(self) -> int:
        """A free address, as its number in the subnet; for any thread. Raises Unavailable.

        The one that was free for longest, since others may still answer to a gone instance's.
        """
        if (number := next(self._numbers)) < self.subnet.num_addresses - 1:
            return number
        try:
            return self._free.popleft()
        except IndexError:
            hint = "set a larger subnet"
            raise Unavailable("every address of the instances' subnet is in use", hint=hint) from None

    def give_back(self, number: int) -> None:
        self._free.append(number)

    def link_name(self) -> str:
        """A new name for the host's end: the kernel takes a gone instance's interface down in its own time."""
        return f"{self.prefix}{next(self._links) % 0xFFFFF:x}"

    def link_inside(self, number: int, name: str) -> None:
        """Blocking, in the new namespace: make the pair, one end here, the other at the host, and the routes.

        The host's namespace goes by a descriptor: a process id would mean where its main thread is at the moment,
        which may be inside an instance, for a socket.
        """
        _without_ipv6("default")  # of interfaces that come
        with _told_as_ours():
            netlink.ask(netlink.veth_pair(INSIDE, name, self._host_namespace))
            link = netlink.interface(INSIDE)
            netlink.ask(
                netlink.address(link, self.subnet[number]),
                netlink.up(link),
                netlink.host_route(link, self.gateway),
                netlink.default_route(self.gateway),
            )

    def link_outside(self, number: int, name: str) -> None:
        """Blocking, at the host: the gateway's address and the route to the instance."""
        if time.monotonic() - self._checked > RECHECK_SECONDS:
            self._pass_foreign_firewall()
        _without_ipv6(name)
        with _told_as_ours():
            link = netlink.interface(name)
            netlink.ask(
                netlink.address(link, self.gateway),
                netlink.up(link),
                netlink.host_route(link, self.subnet[number], replace=True),
            )
