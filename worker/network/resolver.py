"""What an instance needs to resolve names: the content of its /etc/resolv.conf and /etc/hosts."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

log = logging.getLogger("worker.network")

# Where systemd-resolved keeps the real servers while /etc/resolv.conf names its stub on loopback.
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def stamp(sources: tuple[Path, ...] = RESOLV_CONFS) -> tuple[tuple[int, int], ...]:
    """Changes when the host's resolver settings do; one stat each."""
    found = []
    for source in sources:
        try:
            status = source.stat()
            found.append((status.st_mtime_ns, status.st_ino))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def resolv_conf(sources: tuple[Path, ...] = RESOLV_CONFS) -> str:
    """The host's resolver settings without servers that are reachable from the host alone (loopback)."""
    for source in sources:
        try:
            lines = source.read_text().splitlines()
        except OSError:
            continue
        servers = [line for line in lines if line.startswith("nameserver") and _reachable(line)]
        if servers:
            rest = [line for line in lines if line.startswith(("search ", "options "))]
            return "\n".join([*servers, *rest]) + "\n"
    log.warning("this host names no resolver beyond loopback; functions cannot resolve names")
    return ""


def _reachable(line: str) -> bool:
    try:
        address = ipaddress.ip_address(line.split()[1].partition("%")[0])
    except (ValueError, IndexError):
        return False
    return not address.is_loopback and address.version == 4  # instances have no IPv6


def hosts(hostname: str) -> str:
    """/etc/hosts of an instance: itself, and nobody else."""
    return f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def servers(sources: tuple[Path, ...] = RESOLV_CONFS) -> list[str]:
    """The addresses in `resolv_conf`, which the firewall lets through where one of them is this host's own."""
    return [line.split()[1] for line in resolv_conf(sources).splitlines() if line.startswith("nameserver")]
