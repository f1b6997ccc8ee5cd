"""Namespaces and their way out, without a container in them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faas.spec import Network
from tests.support.leftovers import none_left
from worker.network.egress import Egress
from worker.network.namespace import new_namespace, socket_in
from worker.network.pool import READY, NamespacePool

pytestmark = [pytest.mark.root, pytest.mark.oci]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def test_a_socket_stays_in_the_namespace_it_was_made_in() -> None:
    home = interfaces()
    namespace = new_namespace()
    listener = socket_in(namespace, lambda: socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    assert interfaces() == home  # this thread is back
    assert socket_in(namespace, interfaces) == ["lo"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    inside = socket_in(namespace, socket.socket)
    inside.connect(("127.0.0.1", port))
    inside.close()
    listener.close()
    os.close(namespace)


def test_an_error_inside_still_comes_back() -> None:
    home, namespace = interfaces(), new_namespace()
    with pytest.raises(ZeroDivisionError):
        socket_in(namespace, lambda: 1 // 0)
    assert interfaces() == home
    os.close(namespace)


async def test_links_end_at_the_host_however_busy_this_thread_is_inside(
    threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    egress = Egress("busy0001")
    pool = NamespacePool(egress, threads)
    with none_left(), caplog.at_level(logging.WARNING):
        namespace = new_namespace()
        await pool.open()
        ended = time.monotonic() + 1
        while time.monotonic() < ended:
            socket_in(namespace, lambda: time.sleep(0.01))
            await asyncio.sleep(0)
        taken = [await pool.take(Network.OUTBOUND) for _ in range(3)]
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
    await asyncio.sleep(0.5)
    for kind in Network:
        began = time.perf_counter()
        taken = [await pool.take(kind) for _ in range(READY)]
        assert time.perf_counter() - began < 0.01
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
