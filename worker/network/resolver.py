"""What an instance needs to resolve names: /etc/resolv.conf and /etc/hosts, made once, mounted read-only."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path

log = logging.getLogger("worker.network")

# Where systemd-resolved keeps the real servers while /etc/resolv.conf names its stub on loopback.
RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"


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


def write_files(folder: Path) -> tuple[Path, Path]:
    """Write both into `folder`; returns (resolv.conf, hosts)."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    resolver, hosts = folder / "resolv.conf", folder / "hosts"
    resolver.write_text(resolv_conf())
    hosts.write_text(HOSTS)
    return resolver, hosts
