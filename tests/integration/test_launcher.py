"""The launcher against a server that was taken over: it gets what the verbs allow, or is left alone with nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Conflict, FaasError, ImageUnusable, InvalidInput, NotFound, Unavailable
from tests.support.images import MemoryImages, program_layer
from tests.support.leftovers import none_left, on_this_machine
from tests.support.sandboxes import MB, probe, workbench
from worker.drivers.oci.process import stream
from worker.launcher import images as image_verbs
from worker.launcher import process, wire
from worker.launcher.client import LaunchedDriver
from worker.launcher.peer import Answer, Peer
from worker.launcher.process import Launched, Options
from worker.launcher.server import DESCRIPTORS_EACH

pytestmark = [pytest.mark.root, pytest.mark.oci]

DEADLINE_SECONDS = 30.0
NOT_IDS = ("", "../../etc", "a/b", "/etc/shadow", "A", "never-was", "x" * 33, "a\0b", "é", 7, None, ["a"], {"a": 1})
WITH_IDS = ("listen", "connect", "start", "kill", "delete", "set_cpus", "freeze", "thaw")


class Hostile:
    """A server that says what it likes. `say` answers, `told` holds the events."""

    def __init__(self, launched: Launched, data: Path, server_id: str) -> None:
        self.launched = launched
        self.data = data
        self.server_id = server_id
        self.images = MemoryImages()
        self.told: list[dict[str, Any]] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.verbs = dict(image_verbs.verbs(self.images))
        self.peer = Peer(launched.take(), self.verbs, self.ended.set_result, self.told.append)

    async def call(self, verb: Any, descriptors: list[int] | None = None, **words: Any) -> tuple[Any, list[int]]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.peer.call(verb, descriptors or [], **words)

    async def prepared(self) -> str:
        reference = self.images.add("probe", [program_layer({"bin/probe": probe()})])
        _, descriptors = await self.call("prepare", image=reference)
        wire.close_all(descriptors)
        return reference

    def sandbox(self, image: str, *words: str, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": f"t{secrets.token_hex(6)}",
            "image": image,
            "ahead": False,
            "at_once": False,
            "args": ["/bin/probe", *words],
            "env": {},
            "workdir": "/",
            "memory_bytes": 32 * MB,
            "cpus": 1.0,
            "tmp_bytes": 0,
            "user": [65534, 65534],
            "pids": 16,
            "open_files": 64,
            "writable_root": False,
            "terminal": False,
            "network": "none",
            "labels": {},
            "secrets": {"values": {}, "variables": {}},
        }
        return {**values, **changes}

    async def still_serves(self) -> None:
        """An honest sandbox runs to its end."""
        spec = self.sandbox(await self.prepared(), "exit", "7")
        _, descriptors = await self.call("create", **spec)
        wire.close_all(descriptors)
        await self.call("start", id=spec["id"])
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not any(event.get("id") == spec["id"] for event in self.told):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await self.call("delete", id=spec["id"])


@contextmanager
def started(data: Path) -> Iterator[tuple[Launched, str]]:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(data)):
        launched = process.start(Options(str(data), server_id))
        try:
            yield launched, server_id
        finally:
            launched.wait()
            assert not Path(f"/proc/{launched.pid}").exists()


@asynccontextmanager
async def taken_over(data: Path) -> AsyncIterator[Hostile]:
    with started(data) as (launched, server_id):
        hostile = Hostile(launched, data, server_id)
        try:
            await hostile.call("open")
            yield hostile
        finally:
            await hostile.peer.close()
            await asyncio.to_thread(launched.wait)


@pytest.fixture
async def hostile(tmp_path: Path) -> AsyncIterator[Hostile]:
    async with taken_over(tmp_path) as made:
        yield made


async def test_a_verb_that_is_none_is_refused_and_the_next_one_served(hostile: Hostile) -> None:
    for verb in ("exec", "mount", "read", "open_blob", "manifest", "__class__", "", 5, None, ["open"], {"open": 1}):
        with pytest.raises(InvalidInput, match="no such verb"):
            await hostile.call(verb, id="a", path="/etc/shadow")
    with pytest.raises(Conflict):
        await hostile.call("open")
    await hostile.still_serves()


async def test_before_it_is_open_and_after_its_end_no_verb_does_anything(tmp_path: Path) -> None:
    with started(tmp_path) as (launched, server_id):
        hostile = Hostile(launched, tmp_path, server_id)
        for verb in ("prepare", "create", "ids", "drop_spares", "spare_bytes", *WITH_IDS):
            with pytest.raises(Unavailable, match="not open"):
                await hostile.call(verb, id="a")
        await hostile.call("open")
        await hostile.call("close")
        for verb in ("prepare", "create", "ids", *WITH_IDS):
            with pytest.raises(Unavailable, match="not open"):
                await hostile.call(verb, id="a")
        await hostile.peer.close()


async def test_ids_are_names_never_paths_and_foreign_ones_are_not_there(hostile: Hostile) -> None:
    for verb in WITH_IDS:
        for wrong in NOT_IDS:
            with pytest.raises(InvalidInput):
                await hostile.call(verb, id=wrong, port=80, cpus=1.0)
        if verb != "delete":  # where what is absent is no error
            with pytest.raises(NotFound):
                await hostile.call(verb, id="0f0f0f0f0f0f0f0f", port=80, cpus=1.0)
    image = await hostile.prepared()
    for wrong in NOT_IDS:
        with pytest.raises(InvalidInput):
            await hostile.call("create", **hostile.sandbox(image, id=wrong))
    await hostile.still_serves()


WRONG: list[dict[str, Any]] = [
    {"user": [0, 0]},
    {"user": [1000, 0]},
    {"user": [0, 1000]},
    {"user": [2**32, 1]},
    {"user": [-1, 1]},
    {"user": [True, True]},
    {"user": "root"},
    {"memory_bytes": 1},
    {"memory_bytes": 2**40},
    {"memory_bytes": -1},
    {"memory_bytes": "max"},
    {"memory_bytes": True},
    {"cpus": float("nan")},
    {"cpus": float("inf")},
    {"cpus": 0},
    {"cpus": 10_000},
    {"tmp_bytes": 2**50},
    {"pids": 0},
    {"pids": 100_000},
    {"open_files": 10**9},
    {"args": []},
    {"args": [""]},
    {"args": ["/bin/probe", "a\0b"]},
    {"args": ["x" * 200_000]},
    {"args": ["x" * 100_000] * 20},
    {"args": "/bin/probe"},
    {"env": {"A=B": "c"}},
    {"env": {"": "c"}},
    {"env": {"A": "b\0c"}},
    {"env": {"A": 1}},
    {"env": {f"N{n}": "x" * 1000 for n in range(2000)}},
    {"workdir": "/proc/self/fd/3"},
    {"workdir": "//proc/1"},
    {"workdir": "/./sys"},
    {"workdir": "/tmp/../dev"},
    {"workdir": "tmp"},
    {"workdir": "/" + "x" * 5000},
    {"network": "host"},
    {"network": None},
    {"labels": {"../x": "y"}},
    {"secrets": {"values": {"../../../etc/cron.d/x": "y"}, "variables": {}}},
    {"labels": {"run.oci.hooks.stdout": "/etc/passwd"}},
    {"labels": {"org.systemd.property.ExecStart": "x"}},
    {"labels": {"faas.x": "y" * 5000}},
    {"labels": {"faas.x": 1}},
    {"labels": {f"faas.{'n' * n}": "" for n in range(1, 32)}},
    {"writable_root": "yes"},
    {"ahead": 1},
    {"at_once": "yes"},
]


async def test_what_no_function_may_have_is_refused(hostile: Hostile) -> None:
    image = await hostile.prepared()
    taken = []
    for wrong in WRONG:
        try:
            await hostile.call("create", **hostile.sandbox(image, "exit", "0", **wrong))
        except InvalidInput:
            continue
        taken.append(str(wrong)[:100])
    assert taken == []
    assert (await hostile.call("ids"))[0] == []


async def test_what_a_sandbox_cannot_be_given_is_not_taken_from_the_message(hostile: Hostile) -> None:
    """Keys that the verbs do not have do nothing."""
    spec = hostile.sandbox(await hostile.prepared(), "cat", "/proc/self/status", "cat", "/proc/sys/kernel/hostname")
    more: dict[str, Any] = {
        "hostname": "evil",
        "mounts": [{"source": "/etc"}],
        "capabilities": ["CAP_SYS_ADMIN"],
        "path": "/",
        "uid": 0,
    }
    _, (listener, stdout, stderr) = await hostile.call("create", **spec, **more)
    await hostile.call("start", id=spec["id"])
    reader, transport = await stream(stdout)
    text = (await reader.read()).decode()
    transport.close()
    wire.close_all([listener, stderr])
    rows = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {rows[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert rows["NoNewPrivs"] == "1"
    assert "0" not in rows["Uid"].split()
    assert text.endswith("function\n")
    await hostile.call("delete", id=spec["id"])


async def test_only_what_was_prepared_can_be_run(hostile: Hostile) -> None:
    await hostile.prepared()
    for image in ("probe@sha256:" + "0" * 64, "/var/lib/faas/layers", "", "x" * 1000, None, 5):
        with pytest.raises((ImageUnusable, InvalidInput)):
            await hostile.call("create", **{**hostile.sandbox("probe"), "image": image})


async def test_an_id_is_one_sandboxs_however_often_it_is_asked_for(hostile: Hostile) -> None:
    spec = hostile.sandbox(await hostile.prepared(), "wait")
    answers = await asyncio.gather(*(hostile.call("create", **spec) for _ in range(10)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, tuple)]
    assert len(made) == 1
    assert {type(answer) for answer in answers} == {tuple, Conflict}
    wire.close_all(made[0][1])
    await hostile.call("start", id=spec["id"])
    with pytest.raises(Conflict):
        await hostile.call("start", id=spec["id"])
    assert (await hostile.call("ids"))[0] == [spec["id"]]
    await hostile.call("delete", id=spec["id"])
    await hostile.still_serves()


async def test_a_sandbox_that_is_deleted_while_it_is_made_leaves_nothing(hostile: Hostile) -> None:
    image = await hostile.prepared()
    for _ in range(5):
        spec = hostile.sandbox(image, "wait")
        calls = [hostile.call("create", **spec), hostile.call("delete", id=spec["id"])]
        calls += [hostile.call(verb, id=spec["id"], port=80) for verb in ("start", "listen", "kill", "delete")]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, tuple | FaasError | OSError)
            wire.close_all(answer[1] if isinstance(answer, tuple) else [])
        await hostile.call("delete", id=spec["id"])
    assert (await hostile.call("ids"))[0] == []
    await hostile.still_serves()


async def test_descriptors_that_come_unasked_are_closed(hostile: Hostile) -> None:
    reading, writing = os.pipe()
    await hostile.call("ids", [writing, os.open("/etc/passwd", os.O_RDONLY), os.open("/", os.O_RDONLY)])
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""  # the last writer's end is closed
    os.close(reading)
    assert not {"/etc/passwd", "/"} & files_of(hostile.launched.pid)


def files_of(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def shadow() -> bytes:
    return Path("/etc/shadow").read_bytes()


async def test_a_blob_of_another_content_is_no_layer_and_its_content_is_not_told(hostile: Hostile) -> None:
    wrong = program_layer({"bin/probe": Path("/bin/true")})
    reference = hostile.images.add("probe", [program_layer({"bin/probe": probe()})])
    honest = dict(hostile.images.blobs)
    layer = max(honest, key=lambda digest: len(honest[digest]))
    hostile.images.blobs[layer] = wrong
    with pytest.raises(ImageUnusable, match="digest"):
        await hostile.call("prepare", image=reference)
    hostile.images.blobs[layer] = shadow()
    with pytest.raises(ImageUnusable) as refused:
        await hostile.call("prepare", image=reference)
    assert "root:" not in str(refused.value)
    with pytest.raises(ImageUnusable, match="not prepared"):
        await hostile.call("create", **hostile.sandbox(reference, "exit", "0"))
    hostile.images.blobs.update(honest)
    await hostile.still_serves()
    unpacked = [path.name for path in (hostile.data / "layers").iterdir() if len(path.name) == 64]
    assert len(unpacked) == 1
    assert list((hostile.data / "layers" / "tmp").iterdir()) == []


async def test_a_blob_that_would_make_its_reader_wait_is_none(hostile: Hostile) -> None:
    reference = hostile.images.add("probe", [program_layer({"bin/probe": probe()})])
    reading, writing = os.pipe()

    async def pipe(*_: Any) -> Answer:
        return Answer(None, [os.dup(reading)])

    async def unsealed(*_: Any) -> Answer:
        return Answer({"media_type": "", "algorithm": "sha256"}, [os.memfd_create("x")])

    async def nothing(*_: Any) -> Answer:
        return Answer(["x"])

    honest = dict(hostile.verbs)
    for verb in ("open_blob", "manifest"):
        for lie in (pipe, unsealed, nothing):
            hostile.verbs[verb] = lie
            with pytest.raises((ImageUnusable, Unavailable)):
                await hostile.call("prepare", image=reference)
        hostile.verbs.update(honest)
    wire.close_all([reading, writing])
    await hostile.still_serves()


async def test_more_sandboxes_than_there_are_descriptors_for_are_refused(tmp_path: Path) -> None:
    with started(tmp_path) as (launched, server_id):
        resource.prlimit(
            launched.pid, resource.RLIMIT_NOFILE, (200, 200)
        )  # it is not looked at before Python has begun
        hostile = Hostile(launched, tmp_path, server_id)
        await hostile.call("open")
        image = await hostile.prepared()
        with pytest.raises(Unavailable, match="sandboxes are all"):
            await fill(hostile, image)
        assert len((await hostile.call("ids"))[0]) == 200 // DESCRIPTORS_EACH
        await hostile.call("close")
        await hostile.peer.close()


async def fill(hostile: Hostile, image: str) -> None:
    for _ in range(200):
        wire.close_all((await hostile.call("create", **hostile.sandbox(image, "wait")))[1])


async def test_ten_thousand_calls_whose_answers_nobody_reads_cost_it_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as (launched, _):
        end = launched.take()
        end.settimeout(DEADLINE_SECONDS)
        end.send(b'J{"verb":"open","n":1}')
        assert json.loads(end.recv(1000)[1:]) == {"n": 1, "value": None}
        before = _memory(launched.pid)
        end.setblocking(False)
        sent = 1
        deadline = time.monotonic() + 5
        while sent < 10_000 and time.monotonic() < deadline:
            try:
                end.send(b'J{"verb":"ids","n":%d,"x":"%s"}' % (sent + 1, b"y" * 4000))
                sent += 1
            except BlockingIOError:
                await asyncio.sleep(0.01)
        assert _memory(launched.pid) - before < 32 * MB
        end.settimeout(DEADLINE_SECONDS)
        answered = 1
        while answered < sent:
            assert json.loads((await asyncio.to_thread(end.recv, 70_000))[1:])["n"] <= sent
            answered += 1
        end.close()


def _memory(pid: int) -> int:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS"))


def _unsealed() -> int:
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b'{"verb":"ids","n":5}')
    return descriptor


def _vast() -> int:
    return wire.memory_file(b" " * (wire.MESSAGE_BYTES + 1))


GARBAGE: dict[str, Any] = {
    "nothing": lambda end: end.send(b""),
    "another kind": lambda end: end.send(b"X{}"),
    "no JSON": lambda end: end.send(b'J{"verb":'),
    "half a character": lambda end: end.send(b'J"\xff'),
    "no object": lambda end: end.send(b"J[1,2]"),
    "deep": lambda end: end.send(b"J" + b"[" * 60_000),
    "a vast number": lambda end: end.send(b'J{"n":' + b"9" * 60_000 + b"}"),
    "no number": lambda end: end.send(b'J{"verb":"ids"}'),
    "a number that is none": lambda end: end.send(b'J{"verb":"ids","n":"1"}'),
    "an answer to nothing": lambda end: end.send(b'J{"n":99,"value":1}'),
    "a large packet": lambda end: end.send(b"J" + b" " * 100_000),
    "a file that is none": lambda end: end.send(b"F"),
    "a pipe as a message": lambda end: socket.send_fds(end, [b"F"], os.pipe()),
    "an unsealed message": lambda end: socket.send_fds(end, [b"F"], [_unsealed()]),
    "a vast message": lambda end: socket.send_fds(end, [b"F"], [_vast()]),
    "a disk's file": lambda end: socket.send_fds(end, [b"F"], [os.open("/etc/shadow", os.O_RDONLY)]),
    "many descriptors": lambda end: socket.send_fds(end, [b'J{"verb":"ids","n":2}'], [2] * 200),
    "half of its end": lambda end: end.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_who_sends_what_is_no_message_is_left_alone_and_nothing_stays(kind: str, tmp_path: Path) -> None:
    """With a sandbox that runs, which goes too."""
    with started(tmp_path) as (launched, server_id):
        hostile = Hostile(launched, tmp_path, server_id)
        await hostile.call("open")
        spec = hostile.sandbox(await hostile.prepared(), "tasks", "3", "wait")
        wire.close_all((await hostile.call("create", **spec))[1])
        await hostile.call("start", id=spec["id"])
        assert [row for row in on_this_machine()["sandboxed processes"] if server_id in row]
        channel = hostile.peer._channel
        GARBAGE[kind](channel._socket)
        process_ended = asyncio.to_thread(launched._process.wait, DEADLINE_SECONDS)
        assert await process_ended == 0
        await hostile.peer.close()


async def test_signals_to_all_do_not_end_it_while_its_server_lives(hostile: Hostile) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(hostile.launched.pid, number)
    await hostile.still_serves()
    assert os.getsid(hostile.launched.pid) == hostile.launched.pid  # a terminal's signals do not come at all
    ignored = int(_status(hostile.launched.pid)["SigIgn"], 16)
    assert not ignored & (1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1))  # functions would inherit that


def _status(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


async def test_a_new_launcher_waits_for_the_end_of_the_one_before(tmp_path: Path) -> None:
    with started(tmp_path) as (first, server_id):
        hostile = Hostile(first, tmp_path, server_id)
        await hostile.call("open")
        spec = hostile.sandbox(await hostile.prepared(), "wait")
        wire.close_all((await hostile.call("create", **spec))[1])
        await hostile.call("start", id=spec["id"])
        second = Hostile(process.start(Options(str(tmp_path), server_id)), tmp_path, server_id)
        opening = asyncio.create_task(second.call("open"))
        await asyncio.sleep(0.5)
        assert not opening.done()
        assert (await hostile.call("ids"))[0] == [spec["id"]]  # untouched
        await hostile.peer.close()  # as kill -9 does
        await opening
        assert (await second.call("ids"))[0] == []
        await second.still_serves()
        await second.peer.close()
        await asyncio.to_thread(second.launched.wait)


@pytest.mark.parametrize("name", ["layers", "scratch"])
async def test_a_folder_that_is_not_roots_alone_is_not_used(name: str, tmp_path: Path) -> None:
    for spoil in (lambda folder: folder.chmod(0o777), lambda folder: os.chown(folder, 60910, 60910), _as_link):
        with started(tmp_path) as (launched, server_id):
            spoil(tmp_path / name)
            hostile = Hostile(launched, tmp_path, server_id)
            with pytest.raises(Unavailable, match=name):
                await hostile.call("open")
            await hostile.peer.close()
        _removed(tmp_path / name)


def _removed(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        folder.rmdir()


def _as_link(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to(tempfile.gettempdir())


async def test_lives_of_sandboxes_leave_no_descriptor_in_either_process(tmp_path: Path) -> None:
    async with workbench(tmp_path, kind="launched") as bench:
        assert isinstance(bench.driver, LaunchedDriver)
        pids = (os.getpid(), bench.driver._launched.pid)
        before: tuple[int, ...] = ()
        for number in range(12):
            sandbox = await bench.driver.create(bench.spec("serve", "8080"))
            if number % 2:
                await sandbox.listen(9001)
            await bench.driver.start(sandbox)
            assert await sandbox.stdout.readline() == b"listening\n"
            (await sandbox.connect(8080)).close()
            assert bench.driver.stats(sandbox).pids == 1
            await bench.driver.freeze(sandbox)
            if number % 3:
                await bench.driver.thaw(sandbox)
            await bench.driver.delete(sandbox.id)
            if number == 3:  # what is made at the first need is there
                before = await _settled(pids)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await _settled(pids) != before:
                pass


async def _settled(pids: tuple[int, ...]) -> tuple[int, ...]:
    """Descriptors of each process, once pools are full again."""
    looks = []
    for _ in range(20):
        looks.append([len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids])  # noqa: ASYNC240
        await asyncio.sleep(0.05)
    return tuple(map(statistics.mode, zip(*looks[10:], strict=True)))


async def test_a_caller_that_goes_while_its_sandbox_is_made_leaves_none(tmp_path: Path) -> None:
    async with workbench(tmp_path, kind="launched") as bench:
        for seconds in (0, 0.001, 0.003, 0.01, 0.02):
            making = asyncio.create_task(bench.driver.create(bench.spec("wait")))
            await asyncio.sleep(seconds)
            making.cancel()
            made = (await asyncio.gather(making, return_exceptions=True))[0]
            if not isinstance(made, asyncio.CancelledError):  # it was quicker than its caller's end
                assert not isinstance(made, BaseException), made
                await bench.driver.delete(made.id)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await bench.driver.ids():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await bench.run("env", "GREETING"))[1] == "hello\n"
