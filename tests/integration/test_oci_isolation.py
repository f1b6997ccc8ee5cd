"""Proofs from inside: what a function can do to this machine, to the network and to its neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faas.spec import Network
from tests.support.elsewhere import in_throwaway_thread
from tests.support.sandboxes import MB, Workbench, workbench
from worker.drivers.linux.cgroups import is_v2
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.sandbox import OciSandbox
from worker.network.namespace import new_namespace, setns, socket_in
from worker.network.shaping import MBIT_PER_CPU, share

pytestmark = [pytest.mark.root, pytest.mark.oci]

UNREACHABLE = {"ECONNREFUSED", "ETIMEDOUT", "EAGAIN", "EINPROGRESS", "EHOSTUNREACH", "ENETUNREACH", "EPERM", "EACCES"}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    async with workbench(tmp_path) as made:
        yield made


async def test_dangerous_system_calls_are_refused(bench: Workbench) -> None:
    answers = await bench.table("calls")
    assert len(answers) == 39
    assert {name for name, answer in answers.items() if answer == "allowed"} == set()
    assert answers["clone3"] == "ENOSYS"  # so that callers fall back to clone, whose flags can be seen
    for name in ("unshare_user", "setns", "mount", "open_tree", "ptrace", "keyctl", "bpf", "io_uring_setup"):
        assert answers[name] == "EPERM", name
    assert answers["write_root"] == "EROFS"


async def test_what_programs_need_is_allowed(bench: Workbench) -> None:
    answers = await bench.table("good-calls")
    assert set(answers.values()) == {"allowed"}


async def test_there_are_no_privileges(bench: Workbench) -> None:
    _, text = await bench.run("ids", "groups", "cat", "/proc/self/status")
    status = dict(line.split(":", 1) for line in text.splitlines()[2:])
    assert text.splitlines()[:2] == ["65534 65534 1", "0"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


async def test_the_users_of_a_spec_are_kept(bench: Workbench) -> None:
    _, text = await bench.run("ids", user=(1234, 5678))
    assert text == "1234 5678 1\n"


async def test_nothing_of_the_host_is_visible(bench: Workbench) -> None:
    _, text = await bench.run("cat", "/proc/self/mounts", "cat", "/proc/self/cgroup", "cat", "/proc/1/environ")
    assert str(Path.cwd()) not in text
    assert "/sys" not in {line.split()[1] for line in text.splitlines() if len(line.split()) == 6}
    assert "/faas/" not in "".join(line for line in text.splitlines() if line[:1].isdigit())
    assert os.environ.get("PATH", "-") not in text
    root = next(line for line in text.splitlines() if line.split()[1] == "/")
    assert root.split()[3].split(",")[0] == "ro"


async def test_limits_on_files_and_cores_hold(bench: Workbench) -> None:
    _, text = await bench.run("cat", "/proc/self/limits", open_files=64)
    limits = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert limits["Max open files"] == ["64", "64"]
    assert limits["Max core file size"] == ["1", "1"]  # where cores go to a program, the kernel ignores 0


@pytest.fixture
def host_listener() -> Iterator[int]:
    """A service on every address of this host; its port."""
    with socket.create_server(("0.0.0.0", 0), backlog=64) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    peer, _ = listener.accept()
                except TimeoutError:
                    continue
                peer.sendall(b"host")
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        stop.set()
        thread.join()


def interface_addresses() -> set[tuple[int, str]]:
    """(interface's index, address): no two interfaces of a machine's life have one index."""
    rows = json.loads(subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, text=True).stdout)
    return {(row["ifindex"], a["local"]) for row in rows if row for a in row.get("addr_info", ())}


def host_addresses() -> list[str]:
    return sorted({address for _, address in interface_addresses()})


def instance_addresses(server_id: str) -> list[str]:
    """Those of one server's instances."""
    rows = json.loads(subprocess.run(["ip", "-json", "-4", "route"], capture_output=True, text=True).stdout)
    return sorted(row["dst"] for row in rows if row.get("dev", "").startswith(f"vf{server_id}"))


async def test_no_address_of_the_host_is_reachable(bench: Workbench, host_listener: int) -> None:
    addresses = host_addresses()
    with socket.create_connection(("127.0.0.1", host_listener), timeout=20) as here:  # the service is really there
        assert here.recv(4) == b"host"
    words = [word for address in addresses for word in ("tcp", address, str(host_listener))]
    _, text = await bench.run(*words, network=Network.OUTBOUND)
    assert len(text.splitlines()) == len(addresses) >= 2
    assert set(text.split()) <= UNREACHABLE


async def test_another_instance_is_unreachable(bench: Workbench) -> None:
    async with bench.running("serve", "8080", network=Network.OUTBOUND) as server:
        assert await server.stdout.readline() == b"listening\n"
        with await server.connect(8080) as inside:
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(inside, 5) == b"hello"
        addresses = instance_addresses(bench.server_id)
        assert addresses
        words = [word for address in addresses for word in ("tcp", address, "8080")]
        own, text = await bench.run(*words, network=Network.OUTBOUND)
        assert own.code == 0
        assert set(text.split()) <= UNREACHABLE


RECORD = "203.0.113.7"  # what the name server says to every question


def answer_to(words: bytes, peer: str) -> bytes:
    """An address for a name (RFC 1035, 4.1); of anything else an echo, with who asked."""
    if words[2:4] != b"\x01\x00":
        return words + f" {peer}".encode()
    question = words[12 : words.index(b"\0", 12) + 5]
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(RECORD)
    return words[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0" + question + record


@dataclass
class Outside:
    """A machine beyond this one: a namespace behind a link, that answers UDP on port 53 of each of its addresses."""

    namespace: int
    link: str
    address: str
    services: list[socket.socket] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)

    def serve(self, address: str) -> None:
        service = socket_in(self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        service.bind((address, 53))
        service.settimeout(0.05)
        self.services.append(service)

    def also_at(self, address: str) -> None:
        """Give it another address, and this host the route there."""

        def add() -> None:
            setns(self.namespace)
            subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "eth0"], check=True)

        in_throwaway_thread(add)
        subprocess.run(["ip", "route", "add", address, "dev", self.link], check=True)
        self.serve(address)

    def answer(self) -> None:
        for service in list(self.services):
            with contextlib.suppress(TimeoutError):
                words, peer = service.recvfrom(512)
                self.heard.append(words)
                service.sendto(answer_to(words, peer[0]), peer)


def host_hears(address: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.settimeout(2)
        here.connect((address, 53))
        here.send(b"host")
        return here.recv(64)


@pytest.fixture
def outside() -> Iterator[Outside]:
    link, here, there = "faastest0", "198.51.100.1", "198.51.100.2"

    def furnish() -> None:
        subprocess.run(
            ["ip", "-batch", "-"],
            input=f"link add eth0 type veth peer name {link} netns {os.getpid()}\n"
            f"addr add {there}/30 dev eth0\nlink set eth0 up\n",
            text=True,
            check=True,
        )

    namespace = in_throwaway_thread(lambda: new_namespace(furnish))  # `netns` is where our main thread is
    subprocess.run(["ip", "addr", "add", f"{here}/30", "dev", link], check=True)
    subprocess.run(["ip", "link", "set", link, "up"], check=True)
    made, stop = Outside(namespace, link, there), threading.Event()
    made.serve(there)

    def answer() -> None:
        while not stop.is_set():
            made.answer()

    thread = threading.Thread(target=answer)
    thread.start()
    yield made
    stop.set()
    thread.join()
    for service in made.services:
        service.close()
    subprocess.run(["ip", "link", "delete", link], check=True)
    os.close(namespace)


async def test_what_is_beyond_this_machine_is_reachable_under_the_hosts_address(
    bench: Workbench, outside: Outside
) -> None:
    _, text = await bench.run("patience", "15", "udp", outside.address, "53", network=Network.OUTBOUND)
    assert text == "answer hello 198.51.100.1\n"


async def test_link_local_addresses_are_unreachable(bench: Workbench, outside: Outside) -> None:
    """Where clouds keep the credentials of the machine: it answers the host, so only the firewall keeps it."""
    for address in ("169.254.169.254", "169.254.1.1"):
        outside.also_at(address)
        assert host_hears(address).startswith(b"host")
        words = ("udp", address, "53", "patience", "15", "udp", outside.address, "53")
        _, text = await bench.run(*words, network=Network.OUTBOUND)
        refusal, answer = text.splitlines()
        assert refusal in UNREACHABLE
        assert answer == "answer hello 198.51.100.1"


async def test_the_own_range_is_unreachable_whoever_is_there(bench: Workbench, outside: Outside) -> None:
    assert isinstance(bench.driver, OciDriver)
    address = str(bench.driver._supplies.egress.subnet[-2])  # no instance's yet
    outside.also_at(address)
    assert host_hears(address).startswith(b"host")
    _, text = await bench.run("udp", address, "53", network=Network.OUTBOUND)
    assert text.strip() in UNREACHABLE


def transfer(sender: int, receiver: int, listener: int, size: int) -> float:
    """Seconds that so many bytes take, from one namespace into another; who listens is in `listener`."""
    address = "198.51.100.2"
    with socket_in(listener, lambda: socket.create_server((address, 0))) as server:
        connector = sender if listener == receiver else receiver
        client = socket_in(connector, lambda: socket.create_connection(server.getsockname(), timeout=20))
        peer, _ = server.accept()
        into, out_of = (client, peer) if connector == sender else (peer, client)
        began = time.monotonic()
        sending = threading.Thread(target=lambda: (into.sendall(bytes(size)), into.close()))
        sending.start()
        while out_of.recv(1 << 18):
            pass
        taken = time.monotonic() - began
        sending.join()
        out_of.close()
        return taken


async def test_bandwidth_follows_memory_both_ways(bench: Workbench, outside: Outside) -> None:
    speed: dict[tuple[int, str], float] = {}
    for megabytes in (128, 1024):
        async with bench.running("wait", network=Network.OUTBOUND, memory_bytes=megabytes * MB) as sandbox:
            assert isinstance(sandbox, OciSandbox)
            assert sandbox.namespace is not None
            here, there = sandbox.namespace.descriptor, outside.namespace
            size = megabytes * 40_000  # about half a second
            for way, ends in {"out": (here, there, there), "in": (there, here, there)}.items():
                for _ in range(1 if megabytes == 128 else 5):  # one in which this machine does not stand still
                    taken = await asyncio.to_thread(transfer, *ends, size)
                    speed[megabytes, way] = max(speed.get((megabytes, way), 0.0), size / taken)
                    if megabytes == 1024 and speed[1024, way] > 2.5 * speed[128, way]:
                        break
    for way in ("out", "in"):
        assert speed[128, way] < share(128 * MB, MBIT_PER_CPU) / 8 * 1.5
        assert speed[1024, way] < share(1024 * MB, MBIT_PER_CPU) / 8 * 1.5
        assert speed[1024, way] > 2.5 * speed[128, way]  # 8 times on a machine that is not busy


async def test_a_source_that_is_not_the_instances_own_goes_nowhere(bench: Workbench, outside: Outside) -> None:
    """Tried as root of its namespace, which nobody in it is: what its firewall does when all else has failed."""
    async with bench.running("wait", network=Network.OUTBOUND) as sandbox:
        assert isinstance(sandbox, OciSandbox)
        assert sandbox.namespace is not None
        assert isinstance(bench.driver, OciDriver)
        own, subnet = sandbox.namespace.number, bench.driver._supplies.egress.subnet
        sources = {"own": subnet[own], "neighbour": subnet[own + 1], "gateway": subnet[1], "host": "198.51.100.1"}
        for name, source in sources.items():
            await asyncio.to_thread(say, sandbox.namespace.descriptor, str(source), outside.address, name.encode())
        await asyncio.sleep(0.3)
    assert set(outside.heard) == {b"own"}


def say(namespace: int, source: str, target: str, words: bytes) -> None:
    """Send words from an address that the namespace is made to have."""

    def tell() -> None:
        setns(namespace)
        subprocess.run(["ip", "addr", "add", f"{source}/32", "dev", "eth0"], capture_output=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((source, 0))
            for _ in range(3):
                asking.sendto(words, (target, 53))

    in_throwaway_thread(tell)


async def test_no_network_is_loopback_alone(bench: Workbench, outside: Outside) -> None:
    _, text = await bench.run("cat", "/proc/net/dev", "udp", outside.address, "53", network=Network.NONE)
    lines = text.splitlines()
    assert [line.split(":")[0].strip() for line in lines[2:-1]] == ["lo"]
    assert lines[-1] == "ENETUNREACH"


async def test_names_can_be_resolved(tmp_path: Path, outside: Outside) -> None:
    source = tmp_path / "resolv.conf"  # the host's
    source.write_text(f"nameserver 127.0.0.53\nnameserver {outside.address}\n")
    words = ("cat", "/etc/resolv.conf", "cat", "/etc/hosts", "resolve", "name.example")
    async with workbench(tmp_path / "data", resolvers=(source,)) as bench:
        _, text = await bench.run(*words, hostname="my-function", network=Network.OUTBOUND)
        lines = text.splitlines()
        assert [line for line in lines if line.startswith("nameserver")] == [f"nameserver {outside.address}"]
        assert "127.0.0.1\tlocalhost my-function" in lines
        assert lines[-1] == RECORD
        # Another resolver, on an address of this host: the next instance is told of it, and reaches that port alone.
        source.write_text("nameserver 198.51.100.1\n")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.bind(("198.51.100.1", 53))
            here.settimeout(20)
            asked = asyncio.create_task(bench.run("resolve", "name.example", network=Network.OUTBOUND))
            question, peer = await asyncio.to_thread(here.recvfrom, 512)
            here.sendto(answer_to(question, peer[0]), peer)
            _, text = await asked
            assert text.strip() == RECORD


async def test_low_ports_can_be_listened_on(bench: Workbench) -> None:
    async with bench.running("serve", "80") as sandbox:
        assert await sandbox.stdout.readline() == b"listening\n"


async def test_memory_over_the_limit_is_said_as_such(bench: Workbench) -> None:
    outcome, text = await bench.run("eat", "128")
    assert outcome.out_of_memory
    assert (outcome.signal, text) == (9, "")
    assert str(outcome) == "out of memory"


async def test_a_child_out_of_memory_is_counted(bench: Workbench) -> None:
    async with bench.running("eat-child", "128", "wait") as sandbox:
        if is_v2():  # there the kernel ends the instance as a whole
            outcome = await sandbox.exited
            assert (outcome.signal, outcome.out_of_memory) == (9, True)
            return
        assert await sandbox.stdout.readline() == b"child 9\n"
        assert bench.driver.stats(sandbox).oom_kills == 1


async def test_memory_within_the_limit_is_measured(bench: Workbench) -> None:
    async with bench.running("eat", "32", "wait") as sandbox:
        assert await sandbox.stdout.readline() == b"eaten\n"
        stats = bench.driver.stats(sandbox)
        assert 32 * MB <= stats.memory_bytes < 40 * MB
        assert (stats.oom_kills, stats.pids) == (0, 1)
        assert stats.cpu_seconds > 0


async def test_files_in_tmp_do_not_count_as_memory(bench: Workbench) -> None:
    async with bench.running("fill", "/tmp/big", "100", "wait", tmp_bytes=128 * MB) as sandbox:
        assert await sandbox.stdout.readline() == b"written %d\n" % (100 * MB)
        stats = bench.driver.stats(sandbox)
        assert stats.memory_bytes < 16 * MB
        assert stats.oom_kills == 0


async def test_tmp_is_full_at_its_size(bench: Workbench) -> None:
    _, text = await bench.run("fill", "/tmp/big", "64", tmp_bytes=8 * MB)
    error, size = text.split()
    assert error == "ENOSPC"
    assert 8 * MB <= int(size) < 10 * MB


async def test_tmp_is_never_anothers(bench: Workbench) -> None:
    for _ in range(3):
        _, text = await bench.run("touch", "/tmp/x", "cat", "/tmp/left", "fill", "/tmp/left", "1")
        assert text.splitlines()[:2] == ["/tmp/x allowed", "ENOENT"]


async def test_no_ephemeral_storage_is_no_tmp(bench: Workbench) -> None:
    _, text = await bench.run("touch", "/tmp/x", tmp_bytes=0)
    assert text == "/tmp/x EROFS\n"


async def test_shared_memory_is_small(bench: Workbench) -> None:
    _, text = await bench.run("fill", "/dev/shm/big", "8")
    assert text == f"ENOSPC {MB}\n"


async def test_a_fork_bomb_stops_at_the_limit(bench: Workbench) -> None:
    async with bench.running("forks", "wait", pids=64) as sandbox:
        assert await sandbox.stdout.readline() == b"forks 63 EAGAIN\n"
        assert bench.driver.stats(sandbox).pids == 64


async def test_a_kill_leaves_none_of_64_stubborn_tasks(bench: Workbench) -> None:
    async with bench.running("tasks", "64", "wait") as sandbox:
        assert await sandbox.stdout.readline() == b"ready\n"
        assert bench.driver.stats(sandbox).pids == 65
        began = asyncio.get_running_loop().time()
        await bench.driver.kill(sandbox)
        assert asyncio.get_running_loop().time() - began < 5  # without another way
        assert sandbox.exited.result().signal == 9
        assert bench.driver.stats(sandbox).pids == 0


async def test_the_cpu_limit_holds_and_can_be_changed(bench: Workbench) -> None:
    clock = asyncio.get_running_loop().time
    async with bench.running("spin", cpus=0.1) as sandbox:

        async def of_a_core() -> float:
            began, before = clock(), bench.driver.stats(sandbox).cpu_seconds
            await asyncio.sleep(1.0)
            return (bench.driver.stats(sandbox).cpu_seconds - before) / (clock() - began)

        assert await of_a_core() < 0.25
        await bench.driver.set_cpus(sandbox, 0.5)
        for _ in range(30):  # a second in which the machine lets it have more than before
            fast = await of_a_core()
            assert fast < 0.7
            if fast > 0.25:
                break
        assert fast > 0.25
