"""The oci driver on this machine: images, life of a sandbox, crashes of the server, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import Conflict, ImageUnusable, Unavailable
from faas.oci import media_types
from faas.oci.digest import Digest
from faas.spec import Network
from tests.support.images import MemoryImages, program_layer, tar_of
from tests.support.leftovers import none_left, on_this_machine, sandboxed
from tests.support.sandboxes import MB, Workbench, probe, workbench
from worker.drivers.base import DriverPaths, SandboxState
from worker.drivers.linux import mounts
from worker.drivers.oci import identities
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.runtime import Runtime, outdated
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.scratch import READY
from worker.janitor import Janitor
from worker.layers.store import UnpackedImage
from worker.network import pool

pytestmark = [pytest.mark.root, pytest.mark.oci]

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    async with alone(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def alone(data: Path) -> AsyncIterator[Workbench]:
    """A workbench that leaves nothing of its own, whatever else runs on this machine."""
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(data)):
        async with workbench(data, server_id) as made:
            yield made


async def test_output_and_exit_status_arrive(bench: Workbench) -> None:
    async with bench.running("env", "GREETING", "stderr", "oops", "exit", "3") as sandbox:
        assert await sandbox.stdout.read() == b"hello\n"
        assert await sandbox.stderr.read() == b"oops\n"
        outcome = await sandbox.exited
        assert (outcome.code, outcome.signal, outcome.out_of_memory) == (3, 0, False)
        assert bench.driver.state(sandbox) is SandboxState.STOPPED


async def test_a_crash_is_told_by_its_signal(bench: Workbench) -> None:
    outcome, _ = await bench.run("abort")
    assert (outcome.signal, str(outcome)) in ((6, "signal: aborted"), (11, "signal: segmentation fault"))


async def test_a_slow_reader_blocks_the_writer_and_loses_nothing(bench: Workbench) -> None:
    async with bench.running("flood", str(2 * MB)) as sandbox:
        await asyncio.sleep(0.2)
        assert not sandbox.exited.done()
        assert len(await sandbox.stdout.read()) == 2 * MB // 64 * 65


async def test_a_socket_listens_inside_before_the_start(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("patience", "15", "tcp", "127.0.0.1", "9001"))
    listener = await sandbox.listen(9001)
    await bench.driver.start(sandbox)
    loop = asyncio.get_running_loop()
    peer, _ = await asyncio.wait_for(loop.sock_accept(listener), 5)
    with peer:
        assert await loop.sock_recv(peer, 5) == b"hello"
        await loop.sock_sendall(peer, b"served")
    assert await sandbox.stdout.read() == b"answer served\n"
    await bench.driver.delete(sandbox.id)


async def test_a_port_that_nobody_listens_on_refuses(bench: Workbench) -> None:
    async with bench.running("wait") as sandbox:
        with pytest.raises(ConnectionRefusedError):
            await sandbox.connect(8080)


async def test_states_ids_and_conflicts(bench: Workbench) -> None:
    driver = bench.driver
    spec = bench.spec("wait")
    sandbox = await driver.create(spec)
    assert (driver.state(sandbox), await driver.ids()) == (SandboxState.CREATED, [spec.id])
    with pytest.raises(Conflict):
        await driver.create(spec)
    await driver.start(sandbox)
    assert driver.state(sandbox) is SandboxState.RUNNING
    with pytest.raises(Conflict):
        await driver.start(sandbox)
    await driver.kill(sandbox)
    await driver.kill(sandbox)
    assert driver.state(sandbox) is SandboxState.STOPPED
    await asyncio.gather(driver.delete(spec.id), driver.delete(spec.id))
    await driver.delete(spec.id)
    assert await driver.ids() == []


async def test_what_never_started_can_be_killed_and_deleted(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("wait"))
    await bench.driver.kill(sandbox)
    assert sandbox.exited.result().signal == signal.SIGKILL
    await bench.driver.delete(sandbox.id)


async def test_a_caller_that_is_cancelled_leaves_nothing_half_done(bench: Workbench) -> None:
    for delay in (0.0, 0.002, 0.01, 0.02):
        spec = bench.spec("wait")

        async def begin(spec=spec) -> None:  # type: ignore[no-untyped-def]
            await bench.driver.start(await bench.driver.create(spec))

        task = asyncio.create_task(begin())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait([task])  # a quick machine may have started it before the last delay is over
        await bench.driver.delete(spec.id)
    assert await bench.driver.ids() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"args": ("/bin/absent",)}, "not in the image"),
        ({"args": ("absent",)}, "not in the image"),
        ({"args": ("/etc/hosts",)}, "cannot be executed"),
        ({"workdir": "/absent"}, "working directory"),
    ],
)
async def test_a_command_that_cannot_run_is_said_so(bench: Workbench, changes: dict[str, object], words: str) -> None:
    sandbox = await bench.driver.create(bench.spec(**changes))
    with pytest.raises(ImageUnusable, match=words):
        await bench.driver.start(sandbox)
    await bench.driver.delete(sandbox.id)


@pytest.mark.parametrize("words", [(), ("serve", "8080")])
async def test_a_caller_does_not_wait_for_a_thread_that_hangs(
    bench: Workbench, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines of create, start and delete hold; what is on its way ends, and delete waits for it."""
    driver, free = oci(bench), threading.Event()
    hanging = "run" if words else "mount_root"
    holder = driver._runtime if words else mounts
    original = getattr(holder, hanging)

    def hang(*args: object) -> object:
        assert free.wait(20)
        return original(*args)

    monkeypatch.setattr(holder, hanging, hang)
    spec = bench.spec(*words)
    made = await driver.create(spec) if words else None  # else it is this that hangs
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await driver.start(made or await driver.create(spec))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await driver.delete(spec.id)
    assert time.monotonic() - began < 5
    assert await driver.ids() == [spec.id]
    with pytest.raises(Conflict):
        await driver.create(spec)
    free.set()
    await driver.delete(spec.id)
    assert await driver.ids() == []
    assert not [row for row in on_this_machine()["sandboxed processes"] if bench.server_id in row]


async def test_what_the_driver_does_not_hold_is_deleted_all_the_same(bench: Workbench) -> None:
    driver = oci(bench)
    for network in Network:
        sandbox = await driver.create(bench.spec("tasks", "3", "wait", network=network))
        await driver.start(sandbox)
        await sandbox.stdout.readline()
    started, created = await driver.create(bench.spec("wait")), await driver.create(bench.spec("wait"))
    await driver.start(started)
    orphans = {name: driver._sandboxes.pop(name) for name in await driver.ids() if name != created.id}  # forgotten
    assert await driver.ids() == sorted([*orphans, created.id])
    janitor = Janitor(driver)
    janitor.know(created.id)
    await janitor.sweep()
    assert set(await driver.ids()) == {*orphans, created.id}  # seen once: it may be on its way
    await janitor.sweep()
    assert await driver.ids() == [created.id]
    left = on_this_machine()
    for kind in ("sandboxed processes", "cgroups", "mounts"):
        rows = [row for row in left[kind] if bench.server_id in row]
        assert not [row for row in rows if any(f"/{name}" in row for name in orphans)]
    assert driver.state(created) is SandboxState.CREATED
    for orphan in orphans.values():  # what nobody but the forgotten entry knew of
        orphan.close_sockets()
        orphan.close_outputs()
        if orphan.namespace:
            await driver._supplies.namespaces.discard(orphan.namespace)


def mounted_in(process: str) -> set[str]:
    return {row.split()[4] for row in Path(f"/proc/{process}/mountinfo").read_text().splitlines()}


async def test_what_a_running_sandbox_has_mounted_is_mounted_inside_alone(bench: Workbench) -> None:
    """Else each start would copy, and read through, the mounts of all that run."""

    def ours() -> list[str]:
        return [row for row in on_this_machine()["mounts"] if f"/run/faas/{bench.server_id}/" in row]

    async with contextlib.AsyncExitStack() as stack:
        spec = bench.spec("wait", tmp_bytes=64 * MB)
        made = await bench.driver.create(spec)
        stack.push_async_callback(bench.driver.delete, spec.id)
        assert any(f"/bundles/{made.id}/rootfs" in row for row in ours())
        await bench.driver.start(made)
        for _ in range(3 * READY):
            await stack.enter_async_context(bench.running("wait", tmp_bytes=64 * MB))
        async with asyncio.timeout(20):
            while any("/bundles/" in row for row in ours()):  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.05)
        assert sum("/scratch/" in row for row in ours()) <= READY  # those that are made ahead
        first = next(row.split()[0] for row in sandboxed(bench.server_id) if made.id in row)
        assert {"/", "/tmp", "/proc"} <= mounted_in(first)


async def test_one_that_does_not_die_does_not_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.drivers.oci.driver.KILL_SECONDS", 0.1)
    async with alone(tmp_path) as bench:
        driver = oci(bench)
        immortal, other = [await driver.create(bench.spec("wait", network=Network.OUTBOUND)) for _ in range(2)]
        for sandbox in (immortal, other):
            await driver.start(sandbox)
        kill = driver._cgroups.kill
        monkeypatch.setattr(driver._cgroups, "kill", lambda name: None if name == immortal.id else kill(name))
        assert isinstance(immortal, OciSandbox)
        assert immortal.process is not None
        monkeypatch.setattr(immortal.process, "kill", lambda: None)
        with pytest.raises(Unavailable, match="does not die"):
            await driver.delete(immortal.id)
        assert await driver.ids() == sorted([immortal.id, other.id])  # to be tried again
        with pytest.raises(Unavailable, match="does not die"):
            await driver.delete(immortal.id)


async def test_closing_goes_on_where_a_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr("worker.drivers.oci.driver.KILL_SECONDS", 0.1)
    async with alone(tmp_path) as bench:
        driver = oci(bench)
        for _ in range(2):
            await driver.start(await driver.create(bench.spec("wait", network=Network.OUTBOUND)))
        for sandbox in driver._sandboxes.values():
            assert sandbox.process is not None
            monkeypatch.setattr(sandbox.process, "kill", lambda: None)
        monkeypatch.setattr(driver._cgroups, "kill", lambda _: None)  # as where the kernel holds it
        monkeypatch.setattr(driver._layers, "close", broken)


async def test_a_layer_that_is_being_unpacked_does_not_hold_the_end_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # its blob never comes to its end
    began = time.monotonic()
    async with alone(tmp_path) as bench:
        reference = bench.images.add("slow", [tar_of({"slow": b"s"})])
        opened, original = asyncio.Event(), bench.images.open_blob

        async def slow(repository, descriptor):  # type: ignore[no-untyped-def]
            if descriptor.media_type == media_types.OCI_CONFIG:
                return await original(repository, descriptor)
            opened.set()
            return os.fdopen(reading, "rb")

        bench.images.open_blob = slow  # type: ignore[method-assign]
        preparing = asyncio.create_task(bench.driver.prepare(reference))
        await opened.wait()
        await asyncio.sleep(0.2)
    with pytest.raises(Unavailable, match="stopping"):
        await preparing
    oci(bench)._unpackers.shutdown(wait=True)  # as the interpreter's exit does
    assert time.monotonic() - began < 10
    os.close(writing)


@pytest.mark.parametrize("target", ["/proc/self/fd/8", "proc", "/a", "../sys", "/dev/shm"])
async def test_a_working_directory_that_links_into_proc_is_refused(bench: Workbench, target: str) -> None:
    """How runc's leaked descriptors were reached (CVE-2024-21626), one link away from the words of the image."""
    layers = [program_layer({"bin/probe": probe()}), tar_of({"home": target, "a": "b", "b": "proc/1"})]
    image = await bench.driver.prepare(bench.images.add("linked", layers))
    with pytest.raises(ImageUnusable, match=r"is a link to /(proc|sys|dev)"):
        await bench.driver.create(bench.spec("wait", image=image, workdir="/home/../home"))


async def test_a_working_directory_may_be_a_link(bench: Workbench) -> None:
    layers = [program_layer({"bin/probe": probe()}), tar_of({"home": "/srv/../tmp", "srv": None})]
    image = await bench.driver.prepare(bench.images.add("linked", layers))
    _, text = await bench.run("touch", "here", "touch", "/tmp/here", image=image, workdir="/home")
    assert text == "here allowed\n/tmp/here allowed\n"


async def test_layers_lie_on_each_other_with_whiteouts(bench: Workbench) -> None:
    upper = tar_of({"etc/.wh.passwd": b"", "data/two": b"2", ".wh.gone": b"", "old/.wh..wh..opq": b"", "old/new": b"n"})
    middle = tar_of({"data": None, "data/one": b"1", "gone": b"g", "old": None, "old/a": b"a"})
    reference = bench.images.add("layers", [program_layer({"bin/probe": probe()}), middle, upper], compress=True)
    image = await bench.driver.prepare(reference)
    paths = ("/data/one", "/data/two", "/gone", "/etc/passwd", "/old/a", "/old/new")
    _, text = await bench.run(*(w for p in paths for w in ("cat", p)), image=image)
    assert text == "12ENOENT\nENOENT\nENOENT\nn"


async def test_layers_are_unpacked_once_for_callers_at_once(bench: Workbench) -> None:
    opened = []
    original = bench.images.open_blob

    async def counting(repository, descriptor):  # type: ignore[no-untyped-def]
        opened.append(descriptor.media_type)
        return await original(repository, descriptor)

    bench.images.open_blob = counting  # type: ignore[method-assign]
    reference = bench.images.add("many", [program_layer({"bin/probe": probe()}), tar_of({"x": b"x" * 1000})])
    images = await asyncio.gather(*(bench.driver.prepare(reference) for _ in range(8)))
    assert all(image.handle == images[0].handle for image in images)
    assert sum("layer" in kind for kind in opened) == 1  # the first layer was there from the workbench


async def test_knowing_a_layers_name_does_not_give_its_content(bench: Workbench) -> None:
    secret = program_layer({"bin/probe": probe()})
    claimed = bench.images.add("thief", [tar_of({"mine": b"other content"})], diff_ids=())
    manifest = bench.images.manifests[claimed.partition("@")[2]]
    config = bench.images.blobs[manifest.config.digest].replace(  # type: ignore[union-attr]
        str(Digest.of(tar_of({"mine": b"other content"}))).encode(), str(Digest.of(secret)).encode()
    )
    descriptor = bench.images.blob(config, manifest.config.media_type)  # type: ignore[union-attr]
    forged = type(manifest).image(descriptor, list(manifest.layers))
    bench.images.manifests[str(forged.digest)] = forged
    with pytest.raises(ImageUnusable, match="diff id"):
        await bench.driver.prepare(f"thief@{forged.digest}")


async def test_images_that_cannot_run_here_are_refused(bench: Workbench) -> None:
    images, layer = bench.images, tar_of({"x": b"x"})
    cases = {
        "this machine is linux": images.add("a", [layer], architecture="s390x"),
        "windows": images.add("w", [layer], os="windows"),
        "0 layers": images.add("n", []),
        "no image": "absent@sha256:" + "0" * 64,
    }
    for words, reference in cases.items():
        with pytest.raises(ImageUnusable, match=words):
            await bench.driver.prepare(reference)
    gone = images.add("gone", [tar_of({"y": b"y"})])
    del images.blobs[Digest.of(tar_of({"y": b"y"}))]
    with pytest.raises(ImageUnusable, match="gone"):
        await bench.driver.prepare(gone)
    torn = images.add("torn", [tar_of({"z": b"z"})])
    images.blobs[Digest.of(tar_of({"z": b"z"}))] = tar_of({"z": b"another"})
    with pytest.raises(ImageUnusable, match="another content"):
        await bench.driver.prepare(torn)


async def test_a_writable_root_belongs_to_the_user_and_ends_at_its_size(bench: Workbench) -> None:
    words = ["touch", "/new", "touch", "/etc/new", "touch", "/etc/passwd", "fill", "/var/big", "64"]
    _, text = await bench.run(*words, writable_root=True, tmp_bytes=8 * MB)
    lines = text.splitlines()
    assert lines[:3] == ["/new allowed", "/etc/new allowed", "/etc/passwd allowed"]
    assert lines[3].startswith("ENOSPC")
    _, text = await bench.run("cat", "/etc/passwd", "touch", "/new")
    assert text.startswith("root:")  # the layer itself is as it was
    assert text.endswith("/new EROFS\n")


async def test_hundred_layers_fit_one_mount(bench: Workbench) -> None:
    layers = [program_layer({"bin/probe": probe()}), *(tar_of({f"n/{n}": str(n).encode()}) for n in range(60))]
    image = await bench.driver.prepare(bench.images.add("deep", layers))
    assert isinstance(image.handle, UnpackedImage)
    options = sum(len(str(layer)) + 1 for layer in image.handle.layers)
    assert options * 120 / 61 < 4000
    _, text = await bench.run("cat", "/n/0", "cat", "/n/59", image=image)
    assert text == "059"


async def test_many_sandboxes_at_once_leave_nothing(bench: Workbench) -> None:
    outcomes = await asyncio.gather(*(bench.run("ids", "exit", str(n)) for n in range(12)))
    assert [outcome.code for outcome, _ in outcomes] == list(range(12))


def oci(bench: Workbench) -> OciDriver:
    assert isinstance(bench.driver, OciDriver)
    return bench.driver


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def full_again(bench: Workbench) -> None:
    """What is made ahead is all there."""
    supplies = oci(bench)._supplies
    async with asyncio.timeout(20):
        while (  # noqa: ASYNC110
            any(len(ready) < pool.READY for ready in supplies.namespaces._ready.values())
            or len(supplies.identities._ready) < identities.READY
            or any(len(ready) < READY for ready in supplies.scratch._ready.values())
        ):
            await asyncio.sleep(0.02)


async def test_no_descriptor_is_left_open(bench: Workbench) -> None:
    await bench.run("ids")
    await full_again(bench)
    before = open_descriptors()
    for _ in range(4):
        await bench.run("ids")
    await full_again(bench)
    assert open_descriptors() <= before + 1


CRASHING = """
import asyncio, sys
from pathlib import Path
from faas.spec import Network
from tests.support.sandboxes import workbench

async def main():
    async with workbench(Path(sys.argv[1]), sys.argv[2]) as bench:
        for network in Network:
            sandbox = await bench.driver.create(bench.spec("tasks", "3", "wait", network=network, writable_root=True))
            await bench.driver.start(sandbox)
            await sandbox.stdout.readline()
        print("running", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_after_a_kill_the_next_server_finds_and_removes_everything(tmp_path: Path) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        crashing = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CRASHING, str(tmp_path), server_id, stdout=subprocess.PIPE, cwd=PROJECT
        )
        assert crashing.stdout is not None
        assert await asyncio.wait_for(crashing.stdout.readline(), 20) == b"running\n"
        crashing.kill()
        await crashing.wait()
        left = on_this_machine()
        assert len(left["sandboxed processes"]) >= 8
        assert any(server_id in mount for mount in left["mounts"])
        async with workbench(tmp_path, server_id) as bench:
            assert await bench.driver.ids() == []
            assert not [p for p in on_this_machine()["sandboxed processes"] if "probe" in p and server_id in p]
            outcome, text = await bench.run("ids")
            assert (outcome.code, text) == (0, "65534 65534 1\n")


async def test_a_runtime_that_is_not_there_is_said(tmp_path: Path) -> None:
    driver = OciDriver(DriverPaths(tmp_path, "none0000"), MemoryImages(), runtime="no-such-runtime")
    assert OciDriver.missing("no-such-runtime") == ["no-such-runtime is not installed"]
    with pytest.raises(Unavailable, match="no-such-runtime is not installed"):
        await driver.open()


def test_modules_that_nobody_has_used_yet_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh Debian has neither in its lists: with a modprobe that makes the file which the kernel would make."""
    control, program = tmp_path / "loop-control", tmp_path / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n[ "$2" = loop ] && touch {control}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(mounts, "LOOP_CONTROL", control)
    assert mounts.loop_devices()
    assert not mounts.known("no-such-fs")
    assert (tmp_path / "asked").read_text() == "--quiet loop\n--quiet no-such-fs\n"
    assert OciDriver.missing() == []


def test_programs_are_found_where_path_lacks_roots_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # after `su` without `-`
    assert OciDriver.missing() == []


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("runc version 1.1.11\ncommit: v1.1.11-0-g4bccb38c\nspec: 1.0.2-dev", "older than 1.1.12"),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+b1\nspec: 1.0.2-dev", "only its changelog says"),
        ("runc version 1.1.7-0ubuntu1~22.04.1\nspec: 1.0.2-dev", "only its changelog says"),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev", ""),
        ("runc version 1.1.12\nspec: 1.1.0", ""),
        ("runc version 1.2.0-rc.1\nspec: 1.1.0", ""),
        ("crun version 1.8.1", ""),
        ("", ""),
    ],
)
def test_a_runtime_with_a_known_hole_is_told(version: str, words: str) -> None:
    assert words in outdated(version)
    assert bool(words) == bool(outdated(version))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            'unable to start container process: exec: "/bin/a": stat /bin/a: no such file or directory',
            "not in the image",
        ),
        ('unable to start container process: exec: "a": executable file not found in $PATH', "not in the image"),
        ('unable to start container process: exec: "/etc/hosts": permission denied', "cannot be executed"),
        ('chdir to cwd ("/x") set in config.json failed: permission denied', "working directory"),
        ("error during container init: mkdir /absent: read-only file system", "working directory"),
        ("executable file `a` not found in $PATH: No such file or directory", "not in the image"),
        ("open executable: Permission denied", "cannot be executed"),
        ("exec container process `/a`: Exec format error", "cannot be executed"),
        ("exec container process (missing dynamic library?) `/a`: No such file or directory", "not in the image"),
        ("chdir to `/x`: No such file or directory", "working directory"),
        ("unable to apply cgroup configuration: mkdir /sys/fs/cgroup/memory/faas: permission denied", ""),
        ("openat2 /proc/123/ns/net: no such file or directory", ""),
        ('error mounting "/run/faas/x/scratch/y" to rootfs at "/tmp": no such file or directory', ""),
        ("chdir to newroot: Permission denied", ""),
    ],
)
def test_only_what_the_image_is_at_fault_for_is_put_on_it(tmp_path: Path, said: str, fault: str) -> None:
    program = tmp_path / "runtime"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "log").write_text(json.dumps({"level": "error", "msg": said}) + "\n")
    with pytest.raises(ImageUnusable if fault else Unavailable, match=fault or "the runtime failed"):
        Runtime(str(program), tmp_path / "state").run("i1", tmp_path, 1, 2)
