"""Namespaces and their way out, without a container in them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from faas.spec import Network
from tests.support.elsewhere import in_throwaway_thread
from tests.support.leftovers import none_left
from worker.network.egress import FORWARDING, Egress
from worker.network.namespace import new_namespace, setns, socket_in
from worker.network.pool import READY, NamespacePool, NetworkNamespace

T = TypeVar("T")

pytestmark = [pytest.mark.root, pytest.mark.oci]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def here() -> int:
    """The network namespace of this thread."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_a_socket_stays_in_the_namespace_it_was_made_in() -> None:
    home, port = here(), 1  # at the host nobody listens there
    namespace = new_namespace()
    listener = socket_in(namespace, lambda: socket.create_server(("127.0.0.1", port)))
    assert here() == home  # this thread is back
    assert socket_in(namespace, interfaces) == ["lo"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    inside = socket_in(namespace, socket.socket)
    inside.connect(("127.0.0.1", port))
    inside.close()
    listener.close()
    os.close(namespace)


def test_an_error_inside_still_comes_back() -> None:
    home, namespace = here(), new_namespace()
    with pytest.raises(ZeroDivisionError):
        socket_in(namespace, lambda: 1 // 0)
    assert here() == home
    os.close(namespace)


async def test_links_end_at_the_host_however_busy_this_thread_is_inside(
    threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    egress = Egress("busy0001")
    pool = NamespacePool(egress, threads)
    with none_left("busy0001"), caplog.at_level(logging.WARNING):
        namespace = new_namespace()
        await pool.open()
        ended = time.monotonic() + 1
        while time.monotonic() < ended:
            socket_in(namespace, lambda: time.sleep(0.01))
            await asyncio.sleep(0)
        taken = [await asyncio.to_thread(pool.make, Network.OUTBOUND) for _ in range(3)]
        assert socket_in(namespace, interfaces) == ["lo"]
        assert all(socket_in(one.descriptor, interfaces) == ["eth0", "lo"] for one in taken)
        for one in taken:
            await pool.discard(one)
        await pool.close()
        os.close(namespace)
        await asyncio.sleep(0.3)  # the kernel takes links away in its own time
    assert caplog.records == []


async def test_namespaces_are_ready_ahead(threads: ThreadPoolExecutor) -> None:
    pool = NamespacePool(Egress("ready001"), threads)
    await pool.open()
    async with asyncio.timeout(20):
        while any(len(pool._ready[kind]) < READY for kind in Network):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for kind in Network:  # without a wait, in which others could be made
        taken = [one for _ in range(READY) if (one := pool.ready(kind)) is not None]
        assert len(taken) == READY
        for one in taken:
            await pool.discard(one)
    await pool.close()


async def test_a_firewall_that_drops_what_it_does_not_know_lets_instances_pass(threads: ThreadPoolExecutor) -> None:
    """As Docker's: FORWARD with the policy DROP, and DOCKER-USER before all else where an engine runs."""
    egress = Egress("pass0001")
    rules = await asyncio.to_thread(_forward_rules, "")
    if "-P FORWARD DROP" not in rules:
        pytest.skip("no such firewall on this machine")
    await asyncio.to_thread(egress.open)
    assert (await asyncio.to_thread(_forward_rules, egress.prefix)).count("ACCEPT") == 2
    await asyncio.to_thread(egress.close)
    assert await asyncio.to_thread(_forward_rules, egress.prefix) == ""


def _forward_rules(prefix: str) -> str:
    text = subprocess.run(["iptables", "-S"], capture_output=True, text=True).stdout
    return "\n".join(line for line in text.splitlines() if prefix in line)


def test_unprivileged_low_ports_are_open_in_each_namespace() -> None:
    namespace = new_namespace()
    setting = socket_in(namespace, Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text)
    assert setting.strip() == "0"
    os.close(namespace)


def test_a_namespace_that_is_closed_is_never_entered_again() -> None:
    namespace = NetworkNamespace(new_namespace())
    assert socket_in(namespace.descriptor, interfaces) == ["lo"]
    number = namespace.descriptor
    namespace.close()
    another = new_namespace()
    if another != number:  # the kernel gives the lowest free number: a late caller would be in there
        os.dup2(another, number)
        os.close(another)
        another = number
    for use in (lambda: namespace.descriptor, lambda: namespace.path):
        with pytest.raises(OSError, match="gone"):
            use()
    namespace.close()
    assert socket_in(another, interfaces) == ["lo"]
    os.close(another)


def at(namespace: int, work: Callable[[], T]) -> T:
    """Run `work` in `namespace`, with what it starts."""

    def enter() -> T:
        setns(namespace)
        return work()

    return in_throwaway_thread(enter)


def configure(lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


@pytest.fixture
def router() -> Iterator[tuple[int, int, int]]:
    """A machine that does not forward, between 10.1.0.2 and 10.2.0.2: the namespaces of the three."""
    machine, left, right = new_namespace(), new_namespace(), new_namespace()
    for number, (other, name) in enumerate(((left, "lan1"), (right, "lan2")), 1):
        pair = f"link add {name} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{other}\n"
        here = f"addr add 10.{number}.0.1/24 dev {name}\nlink set {name} up\n"
        at(machine, lambda lines=pair + here: configure(lines))  # type: ignore[misc]
        there = f"addr add 10.{number}.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.{number}.0.1\n"
        at(other, lambda lines=there: configure(lines))  # type: ignore[misc]
    at(machine, lambda: FORWARDING.write_text("0"))
    yield machine, left, right
    for namespace in (machine, left, right):
        os.close(namespace)


def reaches(source: int, target: int, address: str) -> bool:
    """Whether a datagram from one namespace arrives in the other."""
    with socket_in(target, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as there:
        there.bind((address, 5000))
        there.settimeout(0.1)
        for _ in range(5):  # the first one may come before the link is up
            with socket_in(source, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as here:
                here.sendto(b"hello", (address, 5000))
            with contextlib.suppress(TimeoutError):
                return there.recv(16) == b"hello"
        return False


def arrives(source: int, target: int, address: str) -> bool:
    """Likewise, with the patience that a link which came up just now may need on a busy machine."""
    return any(reaches(source, target, address) for _ in range(8))


def test_a_machine_that_forwards_for_instances_is_no_router(router: tuple[int, int, int]) -> None:
    machine, left, right = router
    egress = Egress("router01")
    at(machine, lambda: FORWARDING.write_text("1"))
    assert arrives(left, right, "10.2.0.2")
    at(machine, lambda: FORWARDING.write_text("0"))
    assert not reaches(left, right, "10.2.0.2")
    at(machine, egress.open)
    assert at(machine, FORWARDING.read_text) == "1\n"
    assert not reaches(left, right, "10.2.0.2")
    assert not reaches(right, left, "10.1.0.2")
    number, name = egress.take(), egress.link_name()
    instance = at(machine, lambda: new_namespace(lambda: egress.link_inside(number, name)))
    at(machine, lambda: egress.link_outside(number, name))
    assert arrives(instance, left, "10.1.0.2")
    # What comes later, as an engine's bridge does, may count on forwarding.
    at(machine, lambda: configure("link set lan2 name eng0\nlink set eng0 up\nroute replace 10.2.0.0/24 dev eng0\n"))
    assert arrives(right, left, "10.1.0.2")
    os.close(instance)
    at(machine, egress.close)
    assert at(machine, FORWARDING.read_text) == "1\n"  # since somebody came


def test_forwarding_is_off_again_where_nobody_else_needs_it(router: tuple[int, int, int]) -> None:
    machine, _, _ = router
    crashed, egress, other = Egress("router02"), Egress("router02"), Egress("router03")
    at(machine, crashed.open)
    assert crashed._claim is not None
    crashed._claim.close()  # as its process's end does
    at(machine, egress.open)
    at(machine, egress.close)
    assert at(machine, FORWARDING.read_text) == "0\n"
    at(machine, egress.open)
    at(machine, other.open)
    at(machine, egress.close)
    assert at(machine, FORWARDING.read_text) == "1\n"  # the other server's instances live on
    at(machine, other.close)
    assert at(machine, FORWARDING.read_text) == "1\n"  # it found it so


def test_a_bridge_that_is_there_already_may_forward(router: tuple[int, int, int]) -> None:
    machine, left, right = router
    at(machine, lambda: configure("link add br0 type bridge\nlink set lan2 master br0\nlink set br0 up\n"))
    at(machine, lambda: configure("addr del 10.2.0.1/24 dev lan2\naddr add 10.2.0.1/24 dev br0\n"))
    egress = Egress("router04")
    at(machine, egress.open)
    assert arrives(left, right, "10.2.0.2")  # as an engine's does that is started later
    at(machine, egress.close)
    assert at(machine, FORWARDING.read_text) == "1\n"


def test_where_forwarding_is_on_it_stays_as_it_was(router: tuple[int, int, int]) -> None:
    machine, left, right = router
    at(machine, lambda: FORWARDING.write_text("1"))
    egress = Egress("router05")
    at(machine, egress.open)
    assert arrives(left, right, "10.2.0.2")
    at(machine, egress.close)
    assert at(machine, FORWARDING.read_text) == "1\n"


def test_the_table_follows_the_hosts_resolver(router: tuple[int, int, int], tmp_path: Path) -> None:
    """A resolver on an address of the host is let through on port 53, also when it came after the server's start."""
    machine, *_ = router
    source = tmp_path / "resolv.conf"
    source.write_text("nameserver 10.1.0.53\n")
    egress = Egress("router06", resolvers=(source,))
    at(machine, egress.open)
    number, name = egress.take(), egress.link_name()
    instance = at(machine, lambda: new_namespace(lambda: egress.link_inside(number, name)))
    at(machine, lambda: egress.link_outside(number, name))

    def asks() -> bool:
        with socket_in(machine, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
            server.bind(("10.1.0.1", 53))
            server.settimeout(0.5)
            with socket_in(instance, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
                client.sendto(b"hello", ("10.1.0.1", 53))
            try:
                return server.recv(16) == b"hello"
            except TimeoutError:
                return False

    assert not asks()
    source.write_text("nameserver 10.1.0.1\n")
    at(machine, egress.follow_resolver)
    assert asks()
    source.write_text("nameserver 10.1.0.53\n")
    at(machine, egress.follow_resolver)
    assert not asks()
    os.close(instance)
    at(machine, egress.close)
