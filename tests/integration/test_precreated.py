"""Sandboxes made ahead by the oci driver: everything but the command of the first process, which waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import Conflict, ImageUnusable
from faas.spec import Network
from tests.support.leftovers import none_left, on_this_machine
from tests.support.sandboxes import MB, Workbench, workbench
from tests.support.stem_functions import Bases, World
from worker.drivers.base import Exit, Sandbox, SandboxSpec, SandboxState
from worker.drivers.linux.cgroups import is_v2
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.sandbox import OciSandbox
from worker.precreated import CHARGED_BYTES

pytestmark = [pytest.mark.root, pytest.mark.oci]

RESOLVER = "nameserver 192.0.2.1\n"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    (tmp_path / "resolv.conf").write_text(RESOLVER)
    server_id = secrets.token_hex(4)
    with none_left(server_id):
        async with workbench(tmp_path / "data", server_id, resolvers=(tmp_path / "resolv.conf",)) as made:
            yield made


async def ahead(bench: Workbench, spec: SandboxSpec) -> OciSandbox:
    sandbox = await bench.driver.create(spec, ahead=True)
    assert isinstance(sandbox, OciSandbox)
    return sandbox


async def output(sandbox: Sandbox) -> tuple[Exit, str]:
    async with asyncio.timeout(20):
        text, outcome = await asyncio.gather(sandbox.stdout.read(), sandbox.exited)
        return outcome, text.decode()


def group(bench: Workbench, sandbox: OciSandbox, controller: str) -> Path:
    assert isinstance(bench.driver, OciDriver)
    root = Path("/sys/fs/cgroup") if is_v2() else Path("/sys/fs/cgroup") / controller
    return root / bench.driver._cgroups.path(sandbox.name).lstrip("/")


async def test_no_account_of_this_machine_comes_to_the_gate_of_one_that_waits(bench: Workbench) -> None:
    """The runtime lets everybody write there, for its own first process: a stranger's byte would spoil the start."""
    sandbox = await ahead(bench, bench.spec("exit", "7"))
    assert isinstance(bench.driver, OciDriver)
    gate = bench.driver._runtime._state / sandbox.name / "exec.fifo"
    stranger = ("setpriv", "--reuid=60911", "--regid=60911", "--clear-groups", "sh", "-c", 'printf 1 >"$0"', str(gate))
    process = await asyncio.create_subprocess_exec(*stranger, stderr=subprocess.DEVNULL)
    try:
        await asyncio.sleep(0.3)  # until it waits there, or was refused
        await bench.driver.create(sandbox.spec)
        await bench.driver.start(sandbox)
        assert (await output(sandbox))[0].code == 7
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 2  # refused


async def test_its_command_runs_when_it_is_started_and_not_before(bench: Workbench) -> None:
    spec = bench.spec("env", "GREETING", "stderr", "oops", "exit", "7")
    made = await ahead(bench, spec)
    assert (made.path, bench.driver.state(made)) == ("precreated", SandboxState.CREATED)
    assert bench.driver.stats(made).memory_bytes < CHARGED_BYTES
    assert spec.id in await bench.driver.ids()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await made.stdout.read(1)
    assert await bench.driver.create(spec) is made
    await bench.driver.start(made)
    assert await output(made) == (Exit(7), "hello\n")
    assert await made.stderr.read() == b"oops\n"
    assert bench.driver.state(made) is SandboxState.STOPPED
    await bench.driver.delete(spec.id)
    assert await bench.driver.ids() == []


async def test_its_ports_can_be_listened_on_before_it_runs(bench: Workbench) -> None:
    spec = bench.spec("patience", "15", "tcp", "127.0.0.1", "9001")
    made = await ahead(bench, spec)
    await bench.driver.create(spec)
    listener = await made.listen(9001)
    await bench.driver.start(made)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        peer, _ = await loop.sock_accept(listener)
    peer.setblocking(False)
    assert await loop.sock_recv(peer, 5) == b"hello"
    peer.close()


@pytest.mark.parametrize("claimed", [False, True])
async def test_one_that_never_ran_is_killed_and_leaves_nothing(bench: Workbench, claimed: bool) -> None:
    spec = bench.spec("wait", network=Network.OUTBOUND)
    made = await ahead(bench, spec)
    assert made.process is not None
    pid = made.process.pid
    if claimed:
        await bench.driver.create(spec)
    await bench.driver.kill(made)
    assert made.exited.result() == Exit(137, 9)
    await bench.driver.delete(spec.id)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert bench.server_id not in "".join(on_this_machine()["sandboxed processes"])
    assert await bench.driver.ids() == []


async def test_one_that_ends_while_it_waits_is_seen_and_replaced_when_it_is_needed(bench: Workbench) -> None:
    spec = bench.spec("env", "GREETING")
    made = await ahead(bench, spec)
    assert made.process is not None
    os.kill(made.process.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await made.exited == Exit(137, 9)
    other = await bench.driver.create(spec)
    assert (other is not made, other.path) == (True, "cold")
    await bench.driver.start(other)
    assert await output(other) == (Exit(0), "hello\n")


PROBES = [
    ("calls",),
    ("good-calls",),
    ("ids", "groups", "cat", "/proc/self/status"),
    ("cat", "/proc/self/cgroup", "cat", "/proc/sys/kernel/hostname", "cat", "/proc/1/environ"),
    ("cat", "/proc/self/limits", "cat", "/proc/self/oom_score_adj"),
    ("fill", "/dev/shm/big", "8", "fill", "/tmp/big", "8"),
    ("touch", "/x", "touch", "/tmp/x", "touch", "/proc/sys/kernel/hostname"),
    ("tcp", "127.0.0.1", "22", "tcp", "169.254.169.254", "80"),
]
VARYING = ("Pid", "Tgid", "NSpid", "Vm", "Rss", "voluntary", "nonvoluntary", "SigQ")


def steady(text: str) -> list[str]:
    return [row for row in text.splitlines() if not row.strip().startswith(VARYING)]


@pytest.mark.parametrize("words", PROBES, ids=" ".join)
async def test_isolation_is_that_of_an_ordinary_start(bench: Workbench, words: tuple[str, ...]) -> None:
    spec = bench.spec(*words, network=Network.OUTBOUND)
    made = await ahead(bench, spec)
    await bench.driver.create(spec)
    await bench.driver.start(made)
    found = await output(made)
    expected = await bench.run(*words, network=Network.OUTBOUND)
    assert (found[0], steady(found[1])) == (expected[0], steady(expected[1]))


async def test_limits_hold_and_the_share_of_the_cpu_is_full_once_it_serves(bench: Workbench) -> None:
    spec = bench.spec("eat", "100")
    made = await ahead(bench, spec)
    shares = group(bench, made, "cpu") / ("cpu.weight" if is_v2() else "cpu.shares")
    assert int(shares.read_text()) <= 2
    await bench.driver.create(spec)
    assert int(shares.read_text()) == (100 if is_v2() else 1024)
    await bench.driver.start(made)
    outcome, _ = await output(made)
    assert outcome.out_of_memory


async def test_what_another_one_asks_for_is_made_anew(bench: Workbench) -> None:
    spec = bench.spec("env", "GREETING")
    made = await ahead(bench, spec)
    with pytest.raises(Conflict):
        await bench.driver.create(spec, ahead=True)
    changed = bench.spec("env", "GREETING", id=spec.id, env={"GREETING": "changed"})
    other = await bench.driver.create(changed)
    assert other is not made
    await bench.driver.start(other)
    assert await output(other) == (Exit(0), "changed\n")
    with pytest.raises(Conflict):
        await bench.driver.create(changed)


async def test_one_with_an_old_resolver_is_made_anew(bench: Workbench, tmp_path: Path) -> None:
    spec = bench.spec("cat", "/etc/resolv.conf", memory_bytes=32 * MB)
    made = await ahead(bench, spec)
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.77\n")
    other = await bench.driver.create(spec)
    assert (other is not made, other.path) == (True, "cold")
    await bench.driver.start(other)
    assert "192.0.2.77" in (await output(other))[1]


async def test_what_cannot_be_executed_is_told_when_it_is_made(bench: Workbench) -> None:
    spec = bench.spec(args=("/bin/nothing",))
    with pytest.raises(ImageUnusable, match="not in the image"):
        await bench.driver.create(spec, ahead=True)
    assert await bench.driver.ids() == []


async def test_closing_the_driver_ends_those_that_wait(tmp_path: Path) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id):
        async with workbench(tmp_path, server_id) as bench:
            await asyncio.gather(*(ahead(bench, bench.spec("wait", network=network)) for network in Network))


CRASHING = """
import asyncio, sys
from pathlib import Path
from tests.support.sandboxes import workbench

async def main():
    async with workbench(Path(sys.argv[1]), sys.argv[2]) as bench:
        await bench.driver.create(bench.spec("wait"), ahead=True)
        print("waiting", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_crashed_servers_are_swept_by_the_next_one(tmp_path: Path, project_root: Path) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        crashing = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CRASHING, str(tmp_path), server_id), stdout=subprocess.PIPE, cwd=project_root
        )
        assert crashing.stdout is not None
        assert await asyncio.wait_for(crashing.stdout.readline(), 60) == b"waiting\n"
        crashing.kill()
        await crashing.wait()
        assert server_id in "".join(on_this_machine()["sandboxed processes"])
        async with workbench(tmp_path, server_id) as second:
            assert await second.driver.ids() == []
            assert server_id not in "".join(on_this_machine()["sandboxed processes"])


# Over the pool

CODE: dict[str, bytes | str | None] = {
    "var": None,
    "var/task": None,
    "var/task/app.py": b"import os\ndef handler(_, context):\n    return [context.log_stream_name, dict(os.environ)]\n",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


async def test_the_second_instance_of_a_function_without_stems_was_made_ahead(bases: Bases, tmp_path: Path) -> None:
    with none_left(bases.server_id):
        world = World(bases, tmp_path / "logs", stems=0, precreated=1)
        await world.pool.open()
        revision = world.revision(bases.function(CODE))
        assert (await world.invoke(revision)).path == "cold"
        await world.until(lambda: world.sample("faas_precreated") == 1)
        await world.pool.scale(revision, 0)
        await world.until(lambda: not world.pool.instances(revision.key))
        answer = await world.invoke(revision)
        assert (answer.path, answer.messages[-1].split("\t")[-1]) == ("precreated", "Start: precreated")
        stream, environ = answer.value
        assert environ["FAAS_INSTANCE"] == world.pool.instances(revision.key)[0].id
        assert stream.endswith(environ["FAAS_INSTANCE"])
        assert world.sample("faas_cold_starts_total", function=revision.key.function, path="precreated") == 1
        await world.until(lambda: world.sample("faas_precreated") == 1)
        await world.pool.close(1)


async def test_what_a_stem_serves_needs_nothing_made_ahead(bases: Bases, tmp_path: Path) -> None:
    with none_left(bases.server_id):
        world = World(bases, tmp_path / "logs", stems=1, precreated=1)
        await world.pool.open()
        revision = world.revision(bases.function(CODE))
        assert (await world.invoke(revision)).path == "cold"  # the base's first need
        await world.until(lambda: world.ready() == 1)
        await world.pool.scale(revision, 0)
        await world.until(lambda: not world.pool.instances(revision.key))
        assert (await world.invoke(revision)).path == "stem"
        assert world.sample("faas_precreated") == 0
        await world.pool.close(1)
