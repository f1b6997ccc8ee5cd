"""The docker driver on an engine of its own: what an engine may do to it, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from faas.errors import NotOffered, Unavailable
from faas.oci import media_types
from faas.oci.manifest import ImageConfig, Manifest
from tests.conftest import IN_CI
from tests.support.engine import Engine
from tests.support.images import program_layer
from tests.support.leftovers import none_left
from tests.support.sandboxes import MB, Workbench, probe, workbench
from tests.support.server import RunningServer
from worker.drivers.base import Exit, SandboxStats
from worker.drivers.docker.driver import DockerDriver
from worker.drivers.docker.groups import ContainerGroupsV2

pytestmark = [pytest.mark.root, pytest.mark.docker]

PROJECT = Path(__file__).resolve().parents[2]
RECOVERY_SECONDS = 30.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if not shutil.which("dockerd"):
        pytest.fail("needs dockerd") if IN_CI else pytest.skip("needs dockerd")
    made = Engine(tmp_path_factory.mktemp("engine"))
    made.start()
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def chosen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)


@pytest.fixture
async def bench(tmp_path: Path, engine: Engine) -> AsyncIterator[Workbench]:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        async with workbench(tmp_path, server_id, "docker", pauses=0) as made:
            yield made
    assert engine.of(server_id) == []


def api_of(bench: Workbench) -> Any:
    assert isinstance(bench.driver, DockerDriver)
    return bench.driver._engine.api


async def until_gone(bench: Workbench, engine: Engine) -> None:
    """No sandbox is left, to the driver nor to the engine."""
    async with asyncio.timeout(20):
        while await bench.driver.ids() or len(engine.of(bench.server_id)) > 1:  # the network  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def namespaces_held() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # a thread has closed it meanwhile
            found += str(entry.readlink()).startswith("net:")
    return found


# --- limits and figures


async def test_figures_are_measured_wherever_the_engine_puts_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under systemd an engine takes no folder from us: its own default stands for that here."""
    info = docker.APIClient.info
    monkeypatch.setattr(docker.APIClient, "info", lambda api: {**info(api), "CgroupDriver": "systemd"})
    async with workbench(tmp_path, kind="docker") as bench:
        async with bench.running("eat", "20", "tasks", "5", "wait", cpus=0.5) as sandbox, asyncio.timeout(20):
            await sandbox.stdout.readuntil(b"waiting\n")
            stats = bench.driver.stats(sandbox)
            assert 19 * MB < stats.memory_bytes < 40 * MB
            assert stats.pids == 6
            assert stats.cpu_seconds > 0
            await bench.driver.set_cpus(sandbox, 0.25)
            limits = api_of(bench).inspect_container(sandbox.container)["HostConfig"]  # type: ignore[attr-defined]
            assert limits["CpuQuota"] == 25_000
        outcome, _ = await bench.run("eat", "200", memory_bytes=48 * MB)
        assert outcome.out_of_memory


def test_under_cgroup_v2_and_systemd_the_scope_is_found_and_dies_as_a_whole(tmp_path: Path) -> None:
    container = "c0ffee" * 10
    scope = tmp_path / "cgroup" / "system.slice" / f"docker-{container}.scope"
    scope.mkdir(parents=True)
    for name, content in {
        "memory.stat": "anon 4096\nfile 100\nshmem 1024\nkernel 512\n",
        "memory.events": "oom 1\noom_kill 2\n",
        "pids.current": "3\n",
        "cpu.stat": "usage_usec 1500000\n",
        "memory.oom.group": "0",
    }.items():
        (scope / name).write_text(content)
    (tmp_path / "proc" / "77").mkdir(parents=True)
    (tmp_path / "proc" / "77" / "cgroup").write_text(f"0::/system.slice/docker-{container}.scope\n")
    groups = ContainerGroupsV2("none0000", tmp_path / "cgroup")
    assert groups.of(77, "another", tmp_path / "proc") == ""  # the number is another process's by now
    assert groups.of(78, container, tmp_path / "proc") == ""
    assert (scope / "memory.oom.group").read_text() == "0"
    found = groups.of(77, container, tmp_path / "proc")
    assert (scope / "memory.oom.group").read_text() == "1"
    assert groups.stats(found) == SandboxStats(4096 + 1024 + 512, 2, 3, 1.5)


async def test_an_images_volume_health_check_and_labels_are_not_the_engines_business(
    bench: Workbench, engine: Engine
) -> None:
    layer = program_layer({"bin/probe": probe()})
    plain = bench.images.add("keeps", [layer])
    manifest = bench.images.manifests[plain.partition("@")[2]]
    assert manifest.config is not None
    written = json.loads(bench.images.blobs[manifest.config.digest])
    said = {
        "Volumes": {"/var": {}, "/kept": {}},
        "Healthcheck": {"Test": ["CMD", "/bin/probe", "touch", "/tmp/health"], "Interval": 1_000_000_000},
        "OnBuild": ["RUN /bin/probe"],
        "Labels": {"somebody.elses": "order"},
    }
    written |= {"config": said, "CONFIG": said}  # engines read names in any case
    config = bench.images.blob(json.dumps(written).encode(), media_types.OCI_CONFIG)
    hostile = Manifest.image(config, list(manifest.layers))
    bench.images.manifests[str(hostile.digest)] = hostile
    with engine.api() as api:
        before = api.volumes()["Volumes"] or []
        image = await bench.driver.prepare(f"keeps@{hostile.digest}")
        async with bench.running("touch", "/var/x", "touch", "/kept/x", "touch", "/tmp/x", "wait", image=image) as made:
            async with asyncio.timeout(20):
                text = await made.stdout.readuntil(b"waiting\n")
            assert text.decode().splitlines()[:3] == ["/var/x EROFS", "/kept/x ENOENT", "/tmp/x allowed"]
            seen = api.inspect_container(made.container)  # type: ignore[attr-defined]
            assert "Health" not in seen["State"]
            assert [mount["Destination"] for mount in seen["Mounts"]] == ["/tmp"]
            assert "somebody.elses" not in seen["Config"]["Labels"]
            assert api.volumes()["Volumes"] in (None, before)
        assert (api.volumes()["Volumes"] or []) == before
    assert isinstance(image.config, ImageConfig)


async def test_a_writable_root_is_refused_before_anything_is_made(bench: Workbench, engine: Engine) -> None:
    with pytest.raises(NotOffered, match="writable_root") as refusal:
        await bench.driver.create(bench.spec("wait", writable_root=True))
    assert refusal.value.hint == "run the server with --driver oci"
    assert await bench.driver.ids() == []


# --- what has begun is finished


class Held:
    """The `number`th call of a method of the engine's API waits for `gate`; `attached` tells that all was made."""

    def __init__(self, api: Any, call: str, number: int) -> None:
        self.reached, self.gate, self.attached = threading.Event(), threading.Event(), threading.Event()
        self._original, self._left = getattr(api, call), number
        attach = api.attach_socket

        def attach_socket(*args: Any, **kwargs: Any) -> Any:
            try:
                return attach(*args, **kwargs)
            finally:
                self.attached.set()

        api.attach_socket = attach_socket

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if not self._left:
            self.reached.set()
            self.gate.wait(20)
        return self._original(*args, **kwargs)


@pytest.mark.parametrize(("call", "number"), [("create_container", 1), ("start", 1), ("create_container", 2)])
async def test_a_caller_that_is_cancelled_is_let_go_and_what_is_made_for_it_is_removed(
    bench: Workbench, engine: Engine, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = namespaces_held()
    held = Held(api_of(bench), call, number)
    monkeypatch.setattr(api_of(bench), call, held)
    making = asyncio.create_task(bench.driver.create(bench.spec("wait")))
    assert await asyncio.to_thread(held.reached.wait, 20)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making  # the engine has not answered yet
    attached = asyncio.create_task(asyncio.to_thread(held.attached.wait, 20))
    held.gate.set()
    assert await attached
    await until_gone(bench, engine)
    assert namespaces_held() == before


async def test_closing_waits_for_what_is_being_made(tmp_path: Path, engine: Engine) -> None:
    async with workbench(tmp_path, kind="docker", pauses=0) as bench:
        held = Held(api_of(bench), "create_container", 1)
        api_of(bench).create_container = held
        making = asyncio.create_task(bench.driver.create(bench.spec("wait")))
        assert await asyncio.to_thread(held.reached.wait, 20)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        threading.Timer(1.0, held.gate.set).start()
    assert held.attached.is_set()
    assert engine.of(bench.server_id) == []


async def test_what_the_engine_did_not_remove_is_known_until_it_has(
    bench: Workbench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await bench.driver.create(bench.spec("wait"))
    await bench.driver.start(sandbox)

    def broken(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(api_of(bench), "remove_container", broken)
        with pytest.raises(Unavailable, match="does not answer: reset by peer"):
            await bench.driver.delete(sandbox.id)
    assert await bench.driver.ids() == [sandbox.id]
    assert not sandbox.exited.done()
    await bench.driver.delete(sandbox.id)
    assert await bench.driver.ids() == []
    assert len(engine.of(bench.server_id)) == 1  # the network


async def test_a_sandbox_that_only_the_engine_knows_is_removed_by_its_label(bench: Workbench) -> None:
    labels = {"faas.server": bench.server_id, "faas.sandbox": "stray"}
    api_of(bench).create_container(str(bench.image.handle), entrypoint=["/bin/probe", "wait"], labels=labels)
    assert await bench.driver.ids() == ["stray"]
    await bench.driver.delete("stray")
    assert await bench.driver.ids() == []


async def test_an_image_that_was_pruned_is_loaded_once_more(bench: Workbench, engine: Engine) -> None:
    assert await bench.run("env", "GREETING") == (Exit(0), "hello\n")
    with engine.api() as api:
        api.prune_images(filters={"dangling": False})
        assert api.images() == []
    outcomes = await asyncio.gather(*(bench.run("env", "GREETING") for _ in range(3)))
    assert outcomes == [(Exit(0), "hello\n")] * 3


# --- an engine that hangs, or is gone

HANGING = """
import asyncio, sys
from pathlib import Path
from tests.support.sandboxes import workbench
from worker.drivers.docker import driver
import docker

driver.CLOSE_SECONDS = 2.0
info = docker.APIClient.info
docker.APIClient.info = lambda api: {**info(api), "CgroupDriver": sys.argv[3]}

async def main():
    async with workbench(Path(sys.argv[1]), sys.argv[2], "docker") as bench:
        sandboxes = [await bench.driver.create(bench.spec("wait")) for _ in range(10)]
        await asyncio.gather(*map(bench.driver.start, sandboxes))
        look = bench.driver._engine.api.inspect_container
        print(*(Path(f"/proc/{look(s.container)['State']['Pid']}") for s in sandboxes))
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.mark.parametrize("manager", ["cgroupfs", "systemd"])
async def test_an_engine_that_hangs_does_not_hold_the_servers_exit(
    tmp_path: Path, engine: Engine, manager: str
) -> None:
    server_id = "hang1234"
    with none_left(server_id, str(tmp_path)):
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HANGING, str(tmp_path), server_id, manager),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
        )
        assert server.stdout is not None
        async with asyncio.timeout(60):
            processes = [Path(word) for word in (await server.stdout.readline()).decode().split()]
        assert len(processes) == 10
        engine.freeze()
        try:
            async with asyncio.timeout(30):  # one call alone may take twice that
                _, errors = await server.communicate(b"stop\n")
            async with asyncio.timeout(10):  # they have been killed: their shims bury them, while the engine hangs
                while any(process.exists() for process in processes):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        finally:
            engine.thaw()
        assert server.returncode == 0, errors.decode()
        assert b"removed at the next start" in errors
        async with workbench(tmp_path, server_id, "docker") as bench:
            assert await bench.driver.ids() == []
    assert engine.of(server_id) == []


SLOW = """
import time

def handler(event, context):
    time.sleep(float(event.get("body") or 0))
    return {"statusCode": 200, "body": "done"}
"""


@pytest.fixture
def server(tmp_path: Path, chosen: None) -> Iterator[RunningServer]:
    with RunningServer(tmp_path / "data", "--driver", "docker") as running:
        yield running


def test_a_push_with_a_writable_root_is_refused_with_one_thing_to_do(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    (tmp_path / "faas.toml").write_text(
        'name = "wide"\nruntime = "python"\nhandler = "app.handler"\nwritable_root = true\n'
    )
    pushed = server.faas("push", tmp_path, check=False)
    assert pushed.returncode != 0
    assert "the docker driver has no writable_root: an engine cannot bound its size" in pushed.stderr
    assert "run the server with --driver oci" in pushed.stderr
    assert server.get("/function/wide").status == 404


def test_an_engine_that_is_restarted_is_said_and_functions_run_again_soon_after_it_is_back(
    server: RunningServer, engine: Engine, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "slow", SLOW, "timeout = 60\n[scale]\nmax = 4")

    def call(seconds: float) -> Any:
        return server.request("POST", "/function/slow", str(seconds).encode(), {"Content-Type": "text/plain"})

    assert call(0).text == "done"
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(call, 50) for _ in range(2)]
        while engine.instances(server.id) < 2:
            time.sleep(0.1)
        while server.get("/v1/functions/slow", api=True).json()["instances"]["busy"] < 2:
            time.sleep(0.1)
        engine.stop()
        try:
            during = call(0)
            assert during.status == 503, during.text
            assert "the Docker Engine does not answer" in during.text
        finally:
            engine.start()
        deadline = time.monotonic() + RECOVERY_SECONDS
        while (after := call(0)).status != 200:
            assert time.monotonic() < deadline, (after.text, server.log_tail())
            time.sleep(0.2)
        ended = [future.result() for future in running]
    assert {(answer.status, answer.headers.get("X-Error-Type")) for answer in ended} == {(502, "Runtime.ExitError")}
    deadline = time.monotonic() + RECOVERY_SECONDS
    while "the Docker Engine answers again" not in (log := server.log_file.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.1)
    assert "the Docker Engine does not answer; no instance starts until it does" in log
    while engine.states(server.id) != {"running"}:  # nothing that died, nothing half made
        assert time.monotonic() < deadline, (engine.of(server.id), server.log_tail())
        time.sleep(0.2)
    assert server.stop() == 0
    assert engine.of(server.id) == []
