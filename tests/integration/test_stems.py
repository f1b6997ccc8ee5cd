"""Stems: a runtime that was started ahead becomes a function, which cannot tell it from an ordinary start."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Conflict, InitFailed, OutOfMemory
from faas.leases import HttpRequest, Invocation, Trigger
from faas.spec import Interface
from tests.support.fake_driver import eventually
from tests.support.leftovers import none_left, on_this_machine
from tests.support.sandboxes import MB, probe
from tests.support.stem_functions import TIMEOUT_SECONDS, Bases, World
from worker.drivers.base import SandboxState
from worker.drivers.linux.cgroups import is_v2
from worker.drivers.oci import attachment, stems
from worker.drivers.oci.sandbox import OciSandbox
from worker.sandbox_spec import PIDS, RUNTIME_API_PORT

pytestmark = [pytest.mark.root, pytest.mark.oci]

FOLDERS: dict[str, bytes | str | None] = {"var": None, "var/task": None}
DEPENDENCIES: dict[str, bytes | str | None] = {
    "opt": None,
    "opt/python": None,
    "opt/python/helper": None,
    "opt/python/helper/__init__.py": b"WHERE = __file__\n",
}
APP = b"""
import os, signal, subprocess, time

def handler(event, context):
    if "probe" in event:
        done = subprocess.run(["/var/task/probe", *event["probe"]], capture_output=True, text=True, timeout=15)
        return done.stdout
    if "eat" in event:
        return len(bytearray(event["eat"] << 20))
    if "forks" in event:
        children = []
        try:
            while True:
                children.append(os.fork())
                if not children[-1]:
                    time.sleep(60)
                    os._exit(0)
        except OSError:
            return len(children), [os.kill(child, signal.SIGKILL) for child in children].count(None)
    return event
"""
SEEN = Path(__file__).parent.parent / "functions" / "seen" / "app.py"
SERVED = b"""
import json, seen

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"seen": seen.SEEN}).encode()})
"""
BROKEN = {
    "nowhere": b"import nowhere_to_be_found\n",
    "syntax": b"def handler(:\n",
    "raising": b"raise ValueError('no')\n",
    "empty": b"",
    "leaving": b"import sys\nsys.exit(3)\n",
    "deep": b"import json\njson.loads('{')\n",
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def image(bases: Bases) -> str:
    files = {
        **FOLDERS,
        "var/task/app.py": APP,
        "var/task/probe": probe().read_bytes(),
        "var/task/seen.py": SEEN.read_bytes(),
    }
    files.update({f"var/task/{name}.py": content for name, content in BROKEN.items()})
    return bases.function(DEPENDENCIES, files)


@pytest.fixture
async def world(bases: Bases, tmp_path: Path) -> AsyncIterator[World]:
    with none_left(bases.server_id):
        made = World(bases, tmp_path / "logs")
        await made.pool.open()
        yield made
        await made.pool.close(1)


@pytest.fixture
async def cold(bases: Bases, tmp_path: Path) -> AsyncIterator[World]:
    """The same without stems. Another server: both run at once."""
    own = replace(bases, data=tmp_path / "data", server_id=secrets.token_hex(4))
    made = World(own, tmp_path / "cold", stems=0)
    await made.pool.open()
    yield made
    await made.pool.close(1)


def without_instance(seen: dict[str, Any]) -> dict[str, Any]:
    """What differs between any two instances is taken out."""
    own = {
        "FAAS_INSTANCE",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "FAAS_FUNCTION",
    }
    environ = [(name, value if name not in own else "") for name, value in seen["environ"]]
    child = [row for row in seen["child's environ"] if row.removeprefix("export ").partition("=")[0] not in own]
    assert "export GREETING='hello'" in child
    mounts = {place: row for place, row in seen["mounts"].items() if place not in ("/var/task", "/opt/python")}
    return {**seen, "environ": environ, "child's environ": child, "mounts": mounts}


async def test_a_function_sees_what_it_would_see_after_an_ordinary_start(world: World, cold: World, image: str) -> None:
    await world.warmed(image)
    keys: dict[str, Any] = {"handler": "seen.handler", "memory": 256, "env": {"GREETING": "hello", "TZ": "Asia/Tokyo"}}
    revisions = [world.revision(image, **keys), cold.revision(image, **keys)]
    answers = [await one.invoke(revision) for one, revision in zip((world, cold), revisions, strict=True)]
    assert [answer.path for answer in answers] == ["stem", "cold"]
    stem, ordinary = (answer.value for answer in answers)
    code = [stem["seen"]["mounts"][place] for place in ("/var/task", "/opt/python")]
    assert [{"ro", "nosuid", "nodev"} <= set(options) and kind for kind, options in code] == ["overlay", "overlay"]
    seen, expected = without_instance(stem["seen"]), without_instance(ordinary["seen"])
    assert {name: (seen[name], value) for name, value in expected.items() if seen[name] != value} == {}
    assert [stem["name"], ordinary["name"]] == [revision.key.function for revision in revisions]
    assert set(stem["loaded"]) >= set(ordinary["loaded"])
    assert {"json", "logging", "datetime"} <= set(stem["loaded"])
    again = await world.once(image, **keys)
    assert all(again.value["chance"][name] != stem["chance"][name] for name in ("random", "hash", "urandom"))


async def test_an_application_sees_that_too(world: World, cold: World, bases: Bases, image: str) -> None:
    await world.warmed(image)
    files = {**FOLDERS, "var/task/served.py": SERVED, "var/task/seen.py": SEEN.read_bytes()}
    app = bases.function(files, env=("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "FAAS_APP=served:app"))
    told = []
    for one in (world, cold):
        keys = {"handler": "", "app": "served:app", "env": {"GREETING": "hello"}}
        revision = replace(one.revision(app, **keys), interface=Interface.HTTP)
        await one.pool.scale(revision, 1)
        async with one.pool.acquire(revision, Invocation("r1", Trigger.HTTP, TIMEOUT_SECONDS)) as lease:
            response = await lease.request(HttpRequest("GET", "/", (("Host", "x"),)))
            body = b"".join([piece async for piece in response.body])
        assert lease.cold_start is not None
        told.append((lease.cold_start.path, without_instance(json.loads(body)["seen"])))
    assert [path for path, _ in told] == ["stem", "cold"]
    seen, expected = (found for _, found in told)
    assert {name: (seen[name], value) for name, value in expected.items() if seen[name] != value} == {}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_init_error_reads_the_same(world: World, cold: World, image: str, name: str) -> None:
    await world.warmed(image)
    told = []
    for one in (world, cold):
        revision = one.revision(image, handler=f"{name}.handler")
        with pytest.raises(InitFailed) as failure:
            await one.invoke(revision)
        error = failure.value
        told.append((error.message, error.error_type, error.hint, error.log_tail))
    assert told[0] == told[1]
    assert world.sample("faas_stem_failures_total", runtime=world_runtime(world)) == 0


def world_runtime(world: World) -> str:
    return world.bases.reference.partition("@")[0].removeprefix("runtime/")


async def test_the_way_is_told_in_the_report_and_the_metrics(world: World, image: str) -> None:
    first = await world.once(image)
    assert (first.path, first.messages[-1].split("\t")[-1]) == ("cold", "Start: cold")
    await world.until(lambda: world.ready() == 2)
    revision = world.revision(image)
    answer = await world.invoke(revision)
    assert (answer.path, answer.messages[-1].split("\t")[-1]) == ("stem", "Start: stem")
    assert "Start:" not in (await world.invoke(revision)).messages[-1]
    name = revision.key.function
    assert world.sample("faas_cold_starts_total", function=name, path="stem") == 1
    await world.until(lambda: world.sample("faas_stems", runtime=world_runtime(world)) == 2)  # made anew


PROBES = [
    ("calls",),
    ("good-calls",),
    ("ids", "groups", "cat", "/proc/self/status"),
    ("cat", "/proc/self/cgroup", "cat", "/proc/net/dev", "cat", "/proc/sys/kernel/hostname"),
    ("fill", "/dev/shm/big", "8"),
    ("touch", "/x", "touch", "/tmp/x", "touch", "/var/task/x", "touch", "/proc/sys/kernel/hostname"),
]
# Of what a process tells about itself: its numbers, how much it used, and signals of everybody with its user id.
VARYING = ("Pid", "Tgid", "NSpid", "NStgid", "Vm", "Rss", "voluntary", "nonvoluntary", "eth0", "lo", "SigQ")
UNREACHABLE = {"ECONNREFUSED", "ETIMEDOUT", "EAGAIN", "EINPROGRESS", "EHOSTUNREACH", "ENETUNREACH", "EPERM", "EACCES"}


async def test_isolation_is_that_of_an_ordinary_start(world: World, cold: World, image: str) -> None:
    await world.warmed(image)
    stem, ordinary = (one.revision(image, memory=1024) for one in (world, cold))
    for words in PROBES:
        answers = [
            [
                re.sub(r"^(\d+ \d+) \d+$", r"\1", row)  # its own number: the runtime's threads had some before it
                for row in (await one.invoke(revision, probe=words)).value.splitlines()
                if not row.strip().startswith(VARYING)
            ]
            for one, revision in ((world, stem), (cold, ordinary))
        ]
        assert answers[0] == answers[1], words
    assert (await world.invoke(stem, probe=("calls",))).value.count("allowed") == 0
    reached = await world.invoke(stem, probe=("tcp", "127.0.0.1", "22", "tcp", "169.254.169.254", "80"))
    assert set(reached.value.split()) <= UNREACHABLE
    assert (await world.invoke(stem, forks=True)).value == [PIDS - 1, PIDS - 1]


async def test_limits_are_the_functions_own(world: World, image: str) -> None:
    await world.warmed(image, 2)
    roomy = await world.once(image, {"eat": 300}, memory=512)
    assert (roomy.path, roomy.value) == ("stem", 300 << 20)
    await world.until(lambda: world.ready() > 0)
    tight = world.revision(image, memory=192)
    assert (await world.invoke(tight)).path == "stem"
    with pytest.raises(OutOfMemory):
        await world.invoke(tight, eat=300)


async def test_the_share_of_the_cpu_is_the_functions_own(world: World, image: str) -> None:
    await world.warmed(image)
    answer = await world.invoke(world.revision(image, memory=442))
    assert answer.path == "stem"
    sandbox = next(one for one in world.driver._sandboxes.values() if one.path == "stem")
    if not is_v2():
        group = Path("/sys/fs/cgroup/cpu") / world.driver._cgroups.path(sandbox.name).lstrip("/")
        assert int((group / "cpu.cfs_quota_us").read_text()) == round(442 / 1769 * 100_000)
        assert (group / "cpu.shares").read_text().strip() == "1024"


INELIGIBLE: list[dict[str, Any]] = [
    {"network": "none"},
    {"ephemeral_storage": 64},
    {"writable_root": True},
    {"workdir": "/tmp"},
    {"env": {"PYTHONHASHSEED": "1"}},
    {"env": {"LD_PRELOAD": "/x.so"}},
    {"env": {"LC_ALL": "C"}},
    {"command": ["/usr/bin/python3", "-I", "-S", "-B", "/opt/faas/python/bootstrap.py", "--other"]},
]


async def test_what_cannot_be_changed_any_more_starts_the_ordinary_way(world: World, image: str, bases: Bases) -> None:
    await world.warmed(image)
    for keys in INELIGIBLE:
        assert (await world.once(image, {"a": 1}, **keys)).path == "cold", keys
    code = {**FOLDERS, "var/task/app.py": APP}
    others = {
        "a module of the standard library's name": bases.function({**code, "var/task/uuid.py": b""}),
        "the same among the dependencies": bases.function(
            {"opt": None, "opt/python": None, "opt/python/logging": None, "opt/python/logging/__init__.py": b"A = 1\n"},
            code,
        ),
        "files elsewhere": bases.function({**code, "etc": None, "etc/more": b""}),
        "no word of a base": bases.function(code, labels={}),
        "another user": bases.function(code, user="1000"),
    }
    for why, other in others.items():
        assert (await world.once(other, {"a": 1})).path == "cold", why
    assert world.ready() >= 1
    assert world.sample("faas_stem_failures_total", runtime=world_runtime(world)) == 0


async def test_a_stem_that_dies_while_it_waits_is_replaced(world: World, image: str) -> None:
    await world.warmed(image, 2)
    before = parked(world)
    for stem in before:
        assert stem.process is not None
        os.kill(stem.process.pid, signal.SIGKILL)
    await world.until(lambda: world.ready() == 2 and not set(before) & set(parked(world)))
    assert (await world.once(image)).path == "stem"


def parked(world: World) -> list[OciSandbox]:
    return [stem for shelf in world.driver._stems._shelves.values() for stem in shelf.ready]


async def test_an_assignment_that_fails_is_a_cold_start_and_counted(
    world: World, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.warmed(image)

    def broken(*_: Any) -> None:
        raise OSError("it cannot be mounted")

    monkeypatch.setattr(attachment, "attach", broken)
    answer = await world.once(image, {"a": 1})
    assert (answer.path, answer.value) == ("cold", {"a": 1})
    assert world.sample("faas_stem_failures_total", runtime=world_runtime(world)) == 1


async def test_a_stem_is_one_functions_and_gone_with_it(world: World, image: str) -> None:
    await world.warmed(image, 2)
    stems = parked(world)
    revisions = [world.revision(image) for _ in range(2)]
    answers = await asyncio.gather(*(world.invoke(revision, n=n) for n, revision in enumerate(revisions)))
    assert [(answer.path, answer.value) for answer in answers] == [("stem", {"n": 0}), ("stem", {"n": 1})]
    for revision in revisions:
        await world.pool.retire(revision.key)
    names = {stem.name for stem in stems}
    await world.until(lambda: not names & set(world.driver._bundles.ids()))
    assert not names & {stem.name for stem in parked(world)}


async def test_what_goes_on_at_once_asks_for_its_event_before_it_is_started(world: World, image: str) -> None:
    await world.warmed(image, 2)
    prepared = await world.driver.prepare(image)
    for number, at_once in enumerate((True, False)):
        spec = world.pool._parts.launches.spec(world.revision(image), prepared, f"early{number}")
        sandbox = await world.driver.create(spec, at_once=at_once)
        listener = await sandbox.listen(RUNTIME_API_PORT)
        loop = asyncio.get_running_loop()
        if not at_once:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await loop.sock_accept(listener)
            await world.driver.start(sandbox)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            runtime = (await loop.sock_accept(listener))[0]
            assert (await loop.sock_recv(runtime, 4096)).startswith(b"GET /2018-06-01/runtime/invocation/next ")
        if at_once:
            await world.driver.start(sandbox)
        assert (sandbox.path, world.driver.state(sandbox)) == ("stem", SandboxState.RUNNING)
        with pytest.raises(Conflict):
            await world.driver.start(sandbox)
        runtime.close()
        await world.driver.delete(spec.id)


async def test_stems_are_no_instances_to_the_janitor(world: World, image: str) -> None:
    await world.warmed(image, 2)
    revision = world.revision(image)
    assert (await world.invoke(revision)).path == "stem"
    instance = world.pool.instances(revision.key)[0].id
    await world.until(lambda: world.ready() == 2)
    assert instance in await world.driver.ids()
    for _ in range(3):
        await world.pool._janitor.sweep()
    assert world.ready() == 2
    assert (await world.invoke(revision, a=1)).value == {"a": 1}


async def test_stems_go_when_nobody_needs_them(world: World, image: str) -> None:
    await world.warmed(image, 2)
    shelves, now = world.driver._stems, asyncio.get_running_loop().time()
    shelves.shrink(now + 60, short=False)
    assert world.ready() == 2
    shelves.shrink(now + 1200, short=False)
    assert (world.ready(), world.sample("faas_stems", runtime=world_runtime(world))) == (0, 0)
    assert (await world.once(image)).path == "cold"
    await world.until(lambda: world.ready() == 2)
    shelves.shrink(now, short=True)
    assert world.ready() == 0


async def test_their_memory_is_told_and_can_be_had_back(world: World, image: str) -> None:
    await world.warmed(image, 2)
    driver, before = world.driver, parked(world)
    measured = sum(driver._cgroups.stats(stem.name).memory_bytes for stem in before)
    assert measured > 2 * 4 * MB
    assert abs(driver.spare_bytes() - measured) < measured / 2
    revision = world.revision(image)
    assert (await world.invoke(revision)).path == "stem"
    await world.until(lambda: world.ready() == 2)
    await driver.drop_spares()
    names = {stem.name for stem in before}
    assert (driver.spare_bytes(), world.ready()) == (0, 0)
    assert len(names & set(driver._bundles.ids())) == 1  # the one that serves
    assert (await world.once(image)).path == "cold"
    await asyncio.sleep(1)
    assert world.ready() == 0  # not at once: what they had is needed
    assert (await world.invoke(revision, a=1)).value == {"a": 1}


async def test_after_their_memory_was_needed_they_come_back(
    world: World, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems, "DROPPED_SECONDS", 0.2)
    await world.warmed(image, 2)
    await world.driver.drop_spares()
    await world.warmed(image, 2)
    assert (await world.once(image)).path == "stem"


CRASHING = """
import asyncio, pickle, sys
from pathlib import Path
from tests.support.stem_functions import World

async def main():
    bases, image = pickle.loads(Path(sys.argv[1]).read_bytes())
    world = World(bases, Path(sys.argv[1] + ".logs"))
    await world.pool.open()
    await world.warmed(image, 2)
    print("parked", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_crashed_servers_stems_end(bases: Bases, image: str, tmp_path: Path, project_root: Path) -> None:
    import pickle

    own = replace(bases, data=tmp_path / "data", server_id=secrets.token_hex(4))
    (tmp_path / "world").write_bytes(pickle.dumps((own, image)))
    with none_left(own.server_id):
        crashing = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CRASHING, str(tmp_path / "world")), stdout=subprocess.PIPE, cwd=project_root
        )
        assert crashing.stdout is not None
        assert await asyncio.wait_for(crashing.stdout.readline(), 90) == b"parked\n"
        crashing.kill()
        await crashing.wait()
        # They notice by themselves: nobody is at the other end any more.
        await eventually(lambda: own.server_id not in "".join(on_this_machine()["sandboxed processes"]), 20)
        second = World(own, tmp_path / "logs")
        await second.pool.open()
        assert await second.driver.ids() == []
        await second.pool.close(1)
