"""What is asked of the kernel over netlink is what iproute2's commands ask, and its errors come back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from faas.errors import Unavailable
from worker.network import netlink
from worker.network.egress import IPV6, Egress
from worker.network.namespace import new_namespace, socket_in

pytestmark = [pytest.mark.root, pytest.mark.oci]

OWN, GATEWAY = IPv4Address("100.64.16.5"), IPv4Address("100.64.16.1")
SHOWN = ("addr show", "-4 route show table all", "-6 route show table all", "neigh show")


@pytest.fixture
def namespaces() -> Iterator[Callable[[], int]]:
    """New ones, which take what is in them along."""
    made: list[int] = []

    def make() -> int:
        made.append(new_namespace())
        return made[-1]

    yield make
    for namespace in made:
        os.close(namespace)


@pytest.fixture
def pair(namespaces: Callable[[], int]) -> tuple[int, int]:
    """An instance's namespace with one end, eth0, and a machine's with the other, out0."""
    inside, machine = namespaces(), namespaces()
    ask(inside, netlink.veth_pair("eth0", "out0", machine))
    return inside, machine


def ask(namespace: int, *requests: netlink.Request) -> None:
    socket_in(namespace, lambda: netlink.ask(*requests))


def interface(namespace: int, name: str) -> netlink.Interface:
    return socket_in(namespace, lambda: netlink.interface(name))


def ip(*words: str, lines: str = "") -> str:
    return subprocess.run(["ip", *words], input=lines, capture_output=True, text=True, check=True).stdout


def shown(namespace: int) -> dict[str, Any]:
    """All that iproute2 has to say about a namespace with one link that is up, but for its ends' random addresses."""

    def rows(words: str) -> list[dict[str, Any]]:
        found = json.loads(socket_in(namespace, lambda: ip("-json", "-details", *words.split())) or "[]")
        return [{key: value for key, value in row.items() if key != "address"} for row in found if row]

    deadline = time.monotonic() + 5
    while True:  # the kernel makes this state known in its own time
        looked = {words: rows(words) for words in SHOWN}
        if looked["addr show"][-1]["operstate"] == "UP" or time.monotonic() > deadline:
            return looked
        time.sleep(0.02)


def test_a_link_is_the_one_that_the_commands_of_iproute2_make(namespaces: Callable[[], int]) -> None:
    machine, inside = namespaces(), namespaces()
    egress = Egress("netlink1", subnet="100.64.16.0/20")
    socket_in(machine, egress.open)
    name, number = egress.link_name(), int(OWN) - int(egress.subnet[0])
    socket_in(inside, lambda: egress.link_inside(number, name))
    socket_in(machine, lambda: egress.link_outside(number, name))

    their_machine, their_inside = namespaces(), namespaces()

    def without_ipv6(link: str) -> None:
        if IPV6.exists():
            (IPV6 / link / "disable_ipv6").write_text("1")

    def link_inside() -> None:
        without_ipv6("default")
        home = f"/proc/{os.getpid()}/fd/{their_machine}"
        lines = f"link add eth0 type veth peer name {name} netns {home}\naddr add {OWN}/32 dev eth0\nlink set eth0 up\n"
        ip("-batch", "-", lines=f"{lines}route add {GATEWAY} dev eth0\nroute add default via {GATEWAY}\n")

    def link_outside() -> None:
        without_ipv6(name)
        lines = f"addr add {GATEWAY}/32 dev {name}\nlink set {name} up\nroute replace {OWN} dev {name}\n"
        ip("-batch", "-", lines=lines)

    socket_in(their_inside, link_inside)
    socket_in(their_machine, link_outside)
    ours = shown(inside)
    assert [row["ifname"] for row in ours["addr show"]] == ["lo", "eth0"]
    assert ours["addr show"][1]["linkinfo"] == {"info_kind": "veth"}
    assert ours == shown(their_inside)
    assert shown(machine) == shown(their_machine)
    socket_in(machine, egress.close)


def test_a_name_that_exists_is_refused_on_either_side(pair: tuple[int, int]) -> None:
    inside, machine = pair
    for name, peer in (("eth0", "out1"), ("eth1", "out0")):
        with pytest.raises(OSError, match=f"the veth pair {name}, {peer}: File exists") as raised:
            ask(inside, netlink.veth_pair(name, peer, machine))
        assert raised.value.errno == errno.EEXIST


def test_an_interface_that_is_not_there_is_said(namespaces: Callable[[], int], pair: tuple[int, int]) -> None:
    with pytest.raises(OSError, match="the interface eth0: No such device") as raised:
        interface(namespaces(), "eth0")
    assert raised.value.errno == errno.ENODEV
    gone = netlink.Interface("gone0", 999)
    for request in (netlink.address(gone, OWN), netlink.up(gone), netlink.host_route(gone, GATEWAY)):
        with pytest.raises(OSError, match=r"gone0.*: No such device") as raised:
            ask(pair[0], request)
        assert raised.value.errno == errno.ENODEV


def test_a_descriptor_of_no_namespace_is_refused(namespaces: Callable[[], int]) -> None:
    inside = namespaces()
    with open(os.devnull) as nothing:
        for descriptor, number in ((-1, errno.EBADF), (nothing.fileno(), errno.EINVAL)):
            with pytest.raises(OSError, match="the veth pair eth0, out0: ") as raised:
                ask(inside, netlink.veth_pair("eth0", "out0", descriptor))
            assert raised.value.errno == number


def test_the_first_of_several_that_fails_is_told(pair: tuple[int, int]) -> None:
    own = netlink.address(interface(pair[0], "eth0"), OWN)
    with pytest.raises(OSError, match=r"the default route via 100\.64\.16\.1: Network is unreachable") as raised:
        ask(pair[0], own, netlink.default_route(GATEWAY), own)
    assert raised.value.errno == errno.ENETUNREACH


def test_a_route_that_exists_is_replaced_only_where_that_is_asked(pair: tuple[int, int]) -> None:
    loopback, link = interface(pair[0], "lo"), interface(pair[0], "eth0")
    ask(pair[0], netlink.up(link), netlink.host_route(loopback, GATEWAY))
    with pytest.raises(OSError, match=r"the route to 100\.64\.16\.1 by eth0: File exists") as raised:
        ask(pair[0], netlink.host_route(link, GATEWAY))
    assert raised.value.errno == errno.EEXIST
    ask(pair[0], netlink.host_route(link, GATEWAY, replace=True))
    rows = json.loads(socket_in(pair[0], lambda: ip("-json", "route", "show")))
    assert [(row["dst"], row["dev"]) for row in rows] == [(str(GATEWAY), "eth0")]


def test_what_the_kernel_refuses_is_unavailable_to_whoever_needs_the_link(pair: tuple[int, int]) -> None:
    egress = Egress("netlink2", subnet="100.64.16.0/20")
    socket_in(pair[1], egress.open)
    with pytest.raises(Unavailable, match="an instance's link: the veth pair eth0, new0: File exists"):
        socket_in(pair[0], lambda: egress.link_inside(5, "new0"))
    socket_in(pair[1], lambda: egress.link_outside(5, "out0"))
    with pytest.raises(Unavailable, match=r"an instance's link: the address 100\.64\.16\.1 of out0: File exists"):
        socket_in(pair[1], lambda: egress.link_outside(5, "out0"))
    socket_in(pair[1], egress.close)
