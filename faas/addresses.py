"""Which addresses may be called for a stranger's word: those of the public internet alone.

The address is checked after resolution, at connect: no name, redirect or notation leads to this machine or to its
networks.
"""

from __future__ import annotations

import ipaddress
import socket

from aiohttp import AddrInfoType

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # leads to the IPv4 address in its last 32 bits


class Refused(OSError):
    """The address must not be called from here."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, however it is written."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


def public_socket(info: AddrInfoType) -> socket.socket:
    """A connector's `socket_factory`. Raises Refused before anything is sent."""
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise Refused(f"{address[0]} is not an address of the public internet")
    return socket.socket(family, kind, protocol)
