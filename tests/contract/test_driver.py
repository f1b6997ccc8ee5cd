"""What every driver must do: one suite over each of them, on real containers."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from faas.errors import Conflict, ImageUnusable, NotFound, NotOffered
from faas.oci.manifest import ImageConfig
from faas.spec import Network
from tests.support.images import program_layer
from tests.support.leftovers import none_left, on_this_machine
from tests.support.podman import podman_service
from tests.support.processes import zombies
from tests.support.sandboxes import MB, Workbench, probe, workbench
from worker.drivers.base import Exit, SandboxState
from worker.drivers.docker.driver import DockerDriver

pytestmark = [pytest.mark.root]
KINDS = [
    pytest.param("oci", marks=pytest.mark.oci),
    pytest.param("launched", marks=pytest.mark.oci),
    pytest.param("docker", marks=pytest.mark.docker),
    pytest.param("podman", marks=[pytest.mark.podman, pytest.mark.oci]),
]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Podman's service, as DOCKER_HOST names it."""
    with podman_service(tmp_path_factory.mktemp("podman")) as host:
        yield host


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "podman":
        monkeypatch.setenv("DOCKER_HOST", request.getfixturevalue("podman"))
    return str(request.param)


@pytest.fixture
async def bench(kind: str, tmp_path: Path) -> AsyncIterator[Workbench]:
    async with workbench(tmp_path, kind=kind) as made:
        yield made


async def test_it_runs_to_its_exit_status_and_gives_both_outputs(bench: Workbench) -> None:
    async with bench.running("env", "GREETING", "stderr", "oops", "exit", "7") as sandbox, asyncio.timeout(20):
        out, err = await asyncio.gather(sandbox.stdout.read(), sandbox.stderr.read())
        assert await sandbox.exited == Exit(7)
        assert bench.driver.state(sandbox) is SandboxState.STOPPED
    assert (out, err) == (b"hello\n", b"oops\n")


async def test_a_signal_is_told_from_an_exit(bench: Workbench) -> None:
    outcome, _ = await bench.run("abort")
    assert outcome.signal in (6, 11)  # the kernel gives process 1 no SIGABRT, so abort(3) goes on to a fault
    assert not outcome.out_of_memory


async def test_what_has_ended_leaves_no_zombie(bench: Workbench) -> None:
    for code in (1, 2, 3):
        outcome, _ = await bench.run("exit", str(code))
        assert outcome == Exit(code)
    assert _zombies() == []


def _zombies() -> list[str]:
    """Podman's monitors are left out: they fall to whichever process here is a subreaper."""
    return [row for row in zombies(os.getpid()) if "(conmon)" not in row]


async def test_inside_is_a_plain_user_as_process_1(bench: Workbench) -> None:
    _, text = await bench.run("ids", "groups", user=(1234, 4321))
    identity, groups = text.splitlines()
    assert identity == "1234 4321 1"
    assert int(groups) <= 1  # engines list the primary group there


async def test_the_working_directory_is_the_one_asked_for(bench: Workbench) -> None:
    _, text = await bench.run("touch", "here", workdir="/tmp")
    assert text == "here allowed\n"


async def test_no_capability_no_new_privilege_and_a_filter(bench: Workbench) -> None:
    _, text = await bench.run("cat", "/proc/self/status")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


async def test_dangerous_calls_are_refused(bench: Workbench) -> None:
    results = await bench.table("calls", network=Network.NONE)
    assert len(results) > 30
    allowed = {name for name, result in results.items() if result == "allowed"}
    assert allowed == set()
    for name in ("unshare_user", "setns", "mount", "ptrace", "keyctl", "bpf", "io_uring_setup", "userfaultfd"):
        assert results[name] in ("EPERM", "ENOSYS", "EBADF"), (name, results[name])


async def test_ordinary_calls_are_allowed(bench: Workbench) -> None:
    results = await bench.table("good-calls")
    assert {name for name, result in results.items() if result != "allowed"} == set()


async def test_tmp_has_a_hard_size_and_costs_no_memory(bench: Workbench) -> None:
    async with bench.running("fill", "/tmp/full", "1000", "wait", memory_bytes=32 * MB, tmp_bytes=64 * MB) as sandbox:
        line = (await asyncio.wait_for(sandbox.stdout.readline(), 20)).split()
        assert line[0] == b"ENOSPC"
        assert 48 * MB < int(line[1]) <= 64 * MB
        await asyncio.wait_for(sandbox.stdout.readline(), 20)
        assert bench.driver.stats(sandbox).memory_bytes < 16 * MB
        assert not sandbox.exited.done()


async def test_without_ephemeral_storage_nothing_can_be_written(bench: Workbench) -> None:
    _, text = await bench.run("touch", "/tmp/x", "touch", "/x", tmp_bytes=0)
    assert "allowed" not in text


async def test_over_the_memory_limit_it_is_killed_and_that_is_proved(bench: Workbench) -> None:
    outcome, text = await bench.run("eat", "200", memory_bytes=48 * MB)
    assert outcome.out_of_memory
    assert "eaten" not in text


async def test_memory_within_the_limit_is_measured(bench: Workbench) -> None:
    async with bench.running("eat", "20", "wait", memory_bytes=64 * MB) as sandbox:
        await asyncio.wait_for(sandbox.stdout.readuntil(b"waiting\n"), 20)
        assert 19 * MB < bench.driver.stats(sandbox).memory_bytes < 30 * MB


async def test_a_fork_bomb_stops_at_the_limit(bench: Workbench) -> None:
    async with bench.running("forks", "wait", pids=32) as sandbox:
        line = await asyncio.wait_for(sandbox.stdout.readline(), 20)
        words = line.split()
        assert words[0] == b"forks"
        assert 24 <= int(words[1]) < 32
        assert words[2] == b"EAGAIN"


async def test_the_open_file_limit_is_the_one_asked_for(bench: Workbench) -> None:
    _, text = await bench.run("cat", "/proc/self/limits", open_files=128)
    row = next(line for line in text.splitlines() if line.startswith("Max open files"))
    assert row.split()[3:5] == ["128", "128"]


async def test_the_cpu_limit_holds_and_can_be_changed(bench: Workbench) -> None:
    async with bench.running("spin", cpus=0.2) as sandbox:

        async def used(seconds: float) -> float:
            """Of a core, however late this process is woken."""
            began, first = time.monotonic(), bench.driver.stats(sandbox).cpu_seconds
            await asyncio.sleep(seconds)
            return (bench.driver.stats(sandbox).cpu_seconds - first) / (time.monotonic() - began)

        await asyncio.sleep(0.5)
        assert await used(1.5) < 0.2 * 1.6
        await bench.driver.set_cpus(sandbox, 0.7)
        async with asyncio.timeout(30):  # of a core, which others may need
            while await used(0.5) <= 0.2 * 1.6:
                pass


async def test_the_server_listens_inside_before_the_function_runs(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("patience", "15", "tcp", "127.0.0.1", "9001"))
    listener = await sandbox.listen(9001)
    await bench.driver.start(sandbox)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        peer, _ = await loop.sock_accept(listener)
        with peer:
            assert await loop.sock_recv(peer, 100) == b"hello"
            await loop.sock_sendall(peer, b"welcome")
        assert await sandbox.stdout.read() == b"answer welcome\n"
    await bench.driver.delete(sandbox.id)


async def test_the_function_cannot_take_the_servers_port(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("serve", "9001"))
    await sandbox.listen(9001)
    await bench.driver.start(sandbox)
    assert await asyncio.wait_for(sandbox.stdout.read(), 20) == b"EADDRINUSE\n"
    await bench.driver.delete(sandbox.id)


async def test_a_port_of_the_function_is_reached_from_outside(bench: Workbench) -> None:
    async with bench.running("serve", "8080") as sandbox, asyncio.timeout(20):
        assert await sandbox.stdout.readline() == b"listening\n"
        with await sandbox.connect(8080) as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            await sandbox.connect(8081)


async def test_port_80_needs_no_privilege(bench: Workbench) -> None:
    async with bench.running("serve", "80") as sandbox:
        assert await asyncio.wait_for(sandbox.stdout.readline(), 20) == b"listening\n"


async def test_the_hosts_loopback_and_addresses_are_out_of_reach(bench: Workbench) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 0)
    port = str(server.sockets[0].getsockname()[1])
    addresses = ["127.0.0.1", *_host_addresses()]
    words = [word for address in addresses for word in ("tcp", address, port)]
    try:
        _, text = await bench.run(*words, network=Network.OUTBOUND)
    finally:
        server.close()
    assert len(text.splitlines()) == len(addresses)
    assert "answer" not in text


async def test_one_instance_does_not_reach_another(bench: Workbench) -> None:
    words = ("cat", "/proc/net/fib_trie", "serve", "8080")
    async with bench.running(*words, network=Network.OUTBOUND) as other, asyncio.timeout(30):
        said = await other.stdout.readuntil(b"listening\n")
        (address,) = _addresses(said.decode())
        with await other.connect(8080):  # it does listen
            _, text = await bench.run("tcp", address, "8080", network=Network.OUTBOUND)
    assert len(text.splitlines()) == 1
    assert "answer" not in text


def _host_addresses() -> list[str]:
    return _addresses(Path("/proc/net/fib_trie").read_text())


def _addresses(routes: str) -> list[str]:
    rows = routes.split("Local:")[1].splitlines()
    found = {rows[i - 1].split()[-1] for i, row in enumerate(rows) if "host LOCAL" in row}
    return sorted(a for a in found if not a.startswith("127."))


async def test_without_a_network_only_the_loopback_is_there(bench: Workbench) -> None:
    _, text = await bench.run("cat", "/proc/net/dev", network=Network.NONE)
    assert [line.split(":")[0].strip() for line in text.splitlines() if ":" in line] == ["lo"]


async def test_killing_ends_every_process_whatever_it_ignores(bench: Workbench) -> None:
    async with bench.running("tasks", "40", "wait", pids=64) as sandbox:
        await asyncio.wait_for(sandbox.stdout.readuntil(b"waiting\n"), 20)
        assert bench.driver.stats(sandbox).pids >= 41
        await asyncio.wait_for(bench.driver.kill(sandbox), 10)
        assert sandbox.exited.result().signal == 9
        assert await asyncio.wait_for(sandbox.stdout.read(), 10) == b""
        await bench.driver.kill(sandbox)  # once more is no error


async def test_a_flood_of_output_is_read_without_loss(bench: Workbench) -> None:
    _, text = await bench.run("flood", str(4 * MB))
    assert len(text) == 4 * MB // 64 * 65
    assert set(text) == set("0123456789\n")


async def test_an_id_is_unique_and_deleting_what_is_absent_is_no_error(bench: Workbench) -> None:
    spec = bench.spec("wait")
    sandbox = await bench.driver.create(spec)
    assert bench.driver.state(sandbox) is SandboxState.CREATED
    assert spec.id in await bench.driver.ids()
    with pytest.raises(Conflict):
        await bench.driver.create(spec)
    await bench.driver.delete(spec.id)
    await bench.driver.delete(spec.id)
    await bench.driver.delete("never-was")
    assert spec.id not in await bench.driver.ids()


async def test_a_command_that_is_not_there_is_the_images_fault(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("x", args=("/bin/nowhere",)))
    with pytest.raises(ImageUnusable):
        await bench.driver.start(sandbox)
    await bench.driver.delete(sandbox.id)


async def test_an_image_that_is_gone_or_for_another_machine_is_refused(bench: Workbench) -> None:
    with pytest.raises((ImageUnusable, NotFound)):
        await bench.driver.prepare(f"probe@sha256:{'0' * 64}")
    foreign = bench.images.add("foreign", [program_layer({"bin/probe": probe()})], architecture="s390x")
    with pytest.raises(ImageUnusable, match="s390x"):
        await bench.driver.prepare(foreign)


async def test_a_compressed_image_of_several_layers_runs(bench: Workbench) -> None:
    from tests.support.images import tar_of

    layers = [program_layer({"bin/probe": probe()}), tar_of({"etc/greeting": b"from the second layer\n"})]
    reference = bench.images.add("two", layers, compress=True)
    image = await bench.driver.prepare(reference)
    assert isinstance(image.config, ImageConfig)
    _, text = await bench.run("cat", "/etc/greeting", image=image)
    assert text == "from the second layer\n"


async def test_one_made_ahead_runs_when_it_is_started_and_not_before(bench: Workbench) -> None:
    spec = bench.spec("env", "GREETING", "exit", "7")
    made = await bench.driver.create(spec, ahead=True)
    assert (made.path, bench.driver.state(made)) == ("precreated", SandboxState.CREATED)
    assert spec.id in await bench.driver.ids()
    sandbox = await bench.driver.create(spec)
    assert (sandbox.id, sandbox.path, sandbox.exited.done()) == (spec.id, "precreated", False)
    await bench.driver.start(sandbox)
    async with asyncio.timeout(20):
        assert (await sandbox.stdout.read(), await sandbox.exited) == (b"hello\n", Exit(7))
    await bench.driver.delete(spec.id)
    assert await bench.driver.ids() == []


async def test_one_made_ahead_that_never_runs_leaves_nothing(bench: Workbench) -> None:
    spec = bench.spec("wait")
    made = await bench.driver.create(spec, ahead=True)
    await bench.driver.kill(made)
    async with asyncio.timeout(10):
        assert (await made.exited).signal == 9
    await bench.driver.delete(spec.id)
    assert await bench.driver.ids() == []


async def test_one_made_ahead_for_something_else_is_made_anew(bench: Workbench) -> None:
    spec = bench.spec("env", "GREETING")
    await bench.driver.create(spec, ahead=True)
    changed = dataclasses.replace(spec, env={"GREETING": "changed"})
    sandbox = await bench.driver.create(changed)
    await bench.driver.start(sandbox)
    async with asyncio.timeout(20):
        assert await sandbox.stdout.read() == b"changed\n"
    await bench.driver.delete(spec.id)


async def test_a_terminal_is_given_once_and_echoes_what_is_typed(bench: Workbench) -> None:
    if isinstance(bench.driver, DockerDriver):
        with pytest.raises(NotOffered, match="docker driver gives no terminal"):
            await bench.driver.create(bench.spec("ids", terminal=True))
        return
    async with bench.running("wait", terminal=True) as sandbox, asyncio.timeout(20):
        master = sandbox.take_terminal()
        with pytest.raises(Conflict):
            sandbox.take_terminal()
        assert os.isatty(master)
        assert not os.get_inheritable(master)
        os.write(master, b"typed\n")
        seen = b""
        while b"typed" not in seen:  # its echo
            seen += await asyncio.to_thread(_read, master)
        await bench.driver.kill(sandbox)
        os.close(master)


def _read(master: int) -> bytes:
    select.select([master], [], [], 10)
    return os.read(master, 4096)


async def test_a_frozen_one_stands_still_until_it_is_thawed(bench: Workbench) -> None:
    async with bench.running("spin") as sandbox, asyncio.timeout(30):
        while not bench.driver.stats(sandbox).cpu_seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await bench.driver.freeze(sandbox)
        await bench.driver.freeze(sandbox)  # once more is no error
        frozen = bench.driver.stats(sandbox).cpu_seconds
        await asyncio.sleep(0.3)
        assert bench.driver.stats(sandbox).cpu_seconds == frozen
        await bench.driver.thaw(sandbox)
        await bench.driver.thaw(sandbox)
        while bench.driver.stats(sandbox).cpu_seconds == frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_frozen_one_is_killed_and_deleted_as_any_other(bench: Workbench) -> None:
    for delete_alone in (False, True):
        async with bench.running("tasks", "10", "wait") as sandbox, asyncio.timeout(20):
            await sandbox.stdout.readuntil(b"waiting\n")
            await bench.driver.freeze(sandbox)
            if not delete_alone:
                await bench.driver.kill(sandbox)
                assert sandbox.exited.result().signal == 9
            await bench.driver.delete(sandbox.id)
            assert (await sandbox.exited).signal == 9
    assert await bench.driver.ids() == []


async def test_what_has_ended_is_frozen_and_thawed_without_an_error(bench: Workbench) -> None:
    async with bench.running("exit", "3") as sandbox, asyncio.timeout(20):
        assert await sandbox.exited == Exit(3)
        await bench.driver.freeze(sandbox)
        await bench.driver.thaw(sandbox)


CRASHING = """
import asyncio, sys
from pathlib import Path
from faas.spec import Network
from tests.support.sandboxes import workbench

async def main():
    async with workbench(Path(sys.argv[1]), sys.argv[2], sys.argv[3]) as bench:
        for network in Network:
            sandbox = await bench.driver.create(bench.spec("tasks", "3", "wait", network=network))
            await bench.driver.start(sandbox)
            await sandbox.stdout.readline()
        print("running", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_crashed_servers_sandboxes_are_swept_by_the_next_one(
    kind: str, tmp_path: Path, project_root: Path
) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        crashing = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CRASHING, str(tmp_path), server_id, kind),
            stdout=subprocess.PIPE,
            cwd=project_root,
        )
        assert crashing.stdout is not None
        assert await asyncio.wait_for(crashing.stdout.readline(), 60) == b"running\n"
        crashing.kill()
        await crashing.wait()
        if kind != "launched":  # there the launcher has lost its server, and ends them itself
            left = on_this_machine()
            assert len([process for process in left["sandboxed processes"] if server_id in process]) >= 8
            assert any(server_id in mount for mount in left["mounts"])
        async with workbench(tmp_path, server_id, kind) as second:
            assert await second.driver.ids() == []
            assert not [p for p in on_this_machine()["sandboxed processes"] if server_id in p and "probe" in p]
            outcome, text = await second.run("env", "GREETING")
            assert (outcome, text) == (Exit(0), "hello\n")


async def test_closing_leaves_nothing_on_the_machine(kind: str, tmp_path: Path) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id):
        async with workbench(tmp_path, server_id, kind) as bench:
            sandbox = await bench.driver.create(bench.spec("wait", network=Network.OUTBOUND))
            await bench.driver.start(sandbox)
            assert on_this_machine()["sandboxed processes"]
