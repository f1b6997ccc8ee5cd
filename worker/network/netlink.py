"""Links, addresses and routes without a program: what an instance's way out needs of rtnetlink(7), and no more.

Numbers and structures are those of linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h and veth.h. Each request is,
field for field, what iproute2 sends for the command that its function names. It is done in the namespace that the
calling thread is in, and interfaces' names and numbers are that namespace's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Address
from typing import NamedTuple

ACK_SECONDS = 5.0
ANSWER_BYTES = 4096

HEADER_BYTES, NLMSG_ERROR = 16, 2
REQUEST, ACK, REPLACE, EXCLUSIVE, CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_FD = 3, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
SIOCGIFINDEX, IFF_UP = 0x8933, 0x1
WHOLE = 32  # bits of an IPv4 address: a network of one


class Interface(NamedTuple):
    name: str
    number: int


class Request(NamedTuple):
    """One thing to do. `step` says it in the text of an error."""

    step: str
    kind: int
    flags: int
    body: bytes


def interface(name: str) -> Interface:
    """The one of that name. Raises OSError.

    As if_nametoindex(3) does it, whose errors Python tells without their number.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            found = fcntl.ioctl(control, SIOCGIFINDEX, struct.pack("=16si20x", name.encode(), 0))  # struct ifreq
        except OSError as error:
            raise _failed(f"the interface {name}", error.errno) from None
    return Interface(name, struct.unpack_from("=16xi", found)[0])


def veth_pair(name: str, peer: str, peer_namespace: int) -> Request:
    """`ip link add NAME type veth peer name PEER netns …`: of the namespace there is a descriptor."""
    there = _link() + attribute(IFLA_NET_NS_FD, struct.pack("=i", peer_namespace)) + _name(peer)
    data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, there))
    body = _link() + _name(name) + attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"veth") + data)
    return Request(f"the veth pair {name}, {peer}", RTM_NEWLINK, CREATE | EXCLUSIVE, body)


def address(link: Interface, own: IPv4Address) -> Request:
    """`ip addr add OWN/32 dev LINK`"""
    body = struct.pack("=BBBBI", socket.AF_INET, WHOLE, 0, RT_SCOPE_UNIVERSE, link.number)
    body += attribute(IFA_LOCAL, own.packed) + attribute(IFA_ADDRESS, own.packed)
    return Request(f"the address {own} of {link.name}", RTM_NEWADDR, CREATE | EXCLUSIVE, body)


def up(link: Interface) -> Request:
    """`ip link set LINK up`"""
    return Request(f"{link.name} up", RTM_NEWLINK, 0, _link(link.number, IFF_UP))


def host_route(link: Interface, to: IPv4Address, *, replace: bool = False) -> Request:
    """`ip route add TO dev LINK`, or `replace`, which takes the place of one to the same address"""
    body = _route(WHOLE, RT_SCOPE_LINK) + attribute(RTA_DST, to.packed)
    body += attribute(RTA_OIF, struct.pack("=I", link.number))
    flags = CREATE | (REPLACE if replace else EXCLUSIVE)
    return Request(f"the route to {to} by {link.name}", RTM_NEWROUTE, flags, body)


def default_route(gateway: IPv4Address) -> Request:
    """`ip route add default via GATEWAY`: by the interface that the gateway's own route has"""
    body = _route(0, RT_SCOPE_UNIVERSE) + attribute(RTA_GATEWAY, gateway.packed)
    return Request(f"the default route via {gateway}", RTM_NEWROUTE, CREATE | EXCLUSIVE, body)


def ask(*requests: Request) -> None:
    """Blocking, 0.5 ms for a pair, 0.1 for the rest. Have the kernel do these in this order, in one system call.

    Raises OSError for the first that failed; those after it were tried all the same.
    """
    messages = b"".join(
        struct.pack("=IHHII", HEADER_BYTES + len(one.body), one.kind, REQUEST | ACK | one.flags, number, 0) + one.body
        for number, one in enumerate(requests)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(ACK_SECONDS)
        kernel.bind((0, 0))
        kernel.send(messages)
        for number, one in enumerate(requests):
            kind, answered, code = struct.unpack_from("=4xH2xI4xi", kernel.recv(ANSWER_BYTES))  # struct nlmsgerr
            if kind != NLMSG_ERROR or answered != number:
                raise _failed(one.step, errno.EPROTO)
            if code:
                raise _failed(one.step, -code)


def _failed(step: str, number: int | None) -> OSError:
    number = number or errno.EPROTO
    return OSError(number, f"{step}: {os.strerror(number)}")


def _link(number: int = 0, flags: int = 0) -> bytes:
    """struct ifinfomsg: an interface, and the flags to be set"""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, number, flags, flags)


def _route(prefix: int, scope: int) -> bytes:
    """struct rtmsg"""
    return struct.pack("=BBBBBBBBI", socket.AF_INET, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)


def _name(interface: str) -> bytes:
    return attribute(IFLA_IFNAME, interface.encode() + b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    """struct rtattr, and its value"""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
