"""What was answered with success is there afterwards, whole: through kills at every step, collections, a full disk, and
clients that never finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.digest import Digest
from registry import space
from registry.errors import RegistryError
from registry.index import index as index_module
from registry.service import Registry
from registry.storage import filesystem
from registry.storage.base import UploadGone
from tests.conftest import SOAK
from tests.support.hasty_registry import HastyRegistry
from tests.support.registry import ROOT, RegistryProcess, registry_process

PUSHED = {"Content-Type": media_types.OCI_MANIFEST}
OF_A_BLOB = [
    "before pwrite upload", "after pwrite upload", "before fsync upload", "after fsync upload",
    "before rename upload to blob", "after rename upload to blob", "before fsync folder", "after fsync folder",
    "before commit", "after add_blob",
]  # fmt: skip
OF_A_PUSH = [*OF_A_BLOB, *OF_A_BLOB, "before commit", "after put_manifest"]


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.timeout(300)
def test_a_push_that_is_killed_at_any_step_leaves_nothing_torn(tmp_path: Path, dice: random.Random) -> None:
    """File → fsync → rename → fsync of the folder → row, and each of these steps as the last one."""
    steps = [] if SOAK else [str(number) for number in dice.sample(range(len(OF_A_PUSH)), 3)]
    command = [sys.executable, "-m", "tests.support.faults", str(tmp_path), *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    whole, *runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert whole["steps"] == OF_A_PUSH
    assert len(runs) == (len(OF_A_PUSH) if SOAK else 3)
    for run in runs:
        assert run["killed"], run
        assert run["wrong"] == [], run


@pytest.mark.timeout(900)
def test_pushes_survive_kill_9_with_a_collection_running_beside_them(tmp_path: Path, dice: random.Random) -> None:
    """Two clients push few layers again and again, asking first what is there, while tags move and a third collects."""
    wanted = 500 if SOAK else 10
    registry = HastyRegistry(tmp_path / "registry").start()
    layers = [dice.randbytes(dice.randint(1, 200_000)) for _ in range(8)]
    ledger = Ledger()
    kills = 0
    try:
        while ledger.answered < wanted or kills < 2:
            with beside(lambda: collect(registry)):
                pushers = [threading.Thread(target=push_on, args=(registry, ledger, n, layers)) for n in range(2)]
                for pusher in pushers:
                    pusher.start()
                time.sleep(dice.uniform(0.1, 1.0))
                os.kill(registry.process.pid, signal.SIGKILL)
                kills += 1
                for pusher in pushers:
                    pusher.join()
            restart(registry)
            ledger.check(registry)
            nothing_torn(registry)
        print(f"{ledger.answered} pushes, {kills} kills")
        time.sleep(1.1)
        assert registry.call("POST", "/v2/_faas/gc").status == 200
        ledger.check(registry)
        files = {f"{path.parent.parent.name}:{path.name}" for path in (registry.data / "blobs").glob("*/*/*")}
        assert files == {row[0] for row in rows(registry, "SELECT digest FROM blobs")}
    finally:
        registry.stop()


class Ledger:
    """What each tag may be: the last push that was answered, or one after it that was not."""

    def __init__(self) -> None:
        self.answered = 0
        self.tags: dict[str, list[tuple[bytes, bytes]]] = {}  # tag → (manifest, layer), the answered one first

    def check(self, registry: RegistryProcess) -> None:
        for tag, pushes in self.tags.items():
            reply = registry.call("GET", f"/v2/kept/manifests/{tag}")
            found = [layer for raw, layer in pushes if raw == reply.body]
            assert reply.status == 200, (tag, reply.body)
            assert found, tag
            assert registry.call("GET", f"/v2/kept/blobs/{Digest.of(found[0])}").body == found[0], tag


def push_on(registry: RegistryProcess, ledger: Ledger, pusher: int, layers: list[bytes]) -> None:
    """Until the registry is gone."""
    dice = random.Random(ledger.answered * 2 + pusher)
    while True:
        tag, layer = f"p{pusher}-{dice.randrange(3)}", dice.choice(layers)
        try:
            pushed(registry, ledger, tag, layer, str(dice.random()))
        except (OSError, subprocess.SubprocessError, ConnectionError):
            return
        except Exception as error:  # http.client's: the answer broke off
            if type(error).__module__ != "http.client":
                raise
            return


def pushed(registry: RegistryProcess, ledger: Ledger, tag: str, layer: bytes, note: str) -> None:
    """As clients push: what a HEAD says is here is not brought."""
    config = b"{}"
    for data in (config, layer):
        digest = Digest.of(data)
        if registry.call("HEAD", f"/v2/kept/blobs/{digest}").status != 200:
            reply = registry.call("POST", f"/v2/kept/blobs/uploads/?digest={digest}", data)
            assert reply.status == 201, reply.body
    descriptors = [
        {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}
        for kind, data in ((media_types.OCI_CONFIG, config), (media_types.OCI_LAYER, layer))
    ]
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": descriptors[0]}
    raw = json.dumps({**value, "layers": descriptors[1:], "annotations": {"note": note}}).encode()
    if tag in ledger.tags:
        ledger.tags[tag].append((raw, layer))
    reply = registry.call("PUT", f"/v2/kept/manifests/{tag}", raw, PUSHED)
    if reply.status == 201:
        ledger.tags[tag] = [(raw, layer)]
        ledger.answered += 1
    else:  # it took longer than the promise lasts
        assert reply.code == "MANIFEST_BLOB_UNKNOWN", reply.body
        if tag in ledger.tags:
            ledger.tags[tag].pop()


def collect(registry: RegistryProcess) -> None:
    try:
        assert registry.call("POST", "/v2/_faas/gc").status == 200
    except OSError:
        time.sleep(0.01)
    except Exception as error:
        if type(error).__module__ != "http.client":
            raise


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """`work` again and again in a thread, whose failure is the test's."""
    failed: list[BaseException] = []
    over = threading.Event()

    def loop() -> None:
        while not over.is_set():
            try:
                work()
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failed, failed


def restart(registry: RegistryProcess) -> None:
    registry.process.wait(10)
    assert registry.process.stdout is not None
    registry.process.stdout.close()
    registry.start()


def rows(registry: RegistryProcess, query: str) -> list[tuple[str, ...]]:
    database = sqlite3.connect(registry.data / "registry.db")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def nothing_torn(registry: RegistryProcess) -> None:
    """Every file has its name's digest; every row that is not about to go has its file."""
    for path in (registry.data / "blobs").glob("*/*/*"):
        assert hashlib.new(path.parent.parent.name, path.read_bytes()).hexdigest() == path.name
    for (digest,) in rows(registry, "SELECT digest FROM blobs WHERE NOT leaving"):
        algorithm, _, name = digest.partition(":")
        assert (registry.data / "blobs" / algorithm / name[:2] / name).exists(), digest


def test_memory_stays_flat_whatever_the_layers_size(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry") as registry:
        status = Path(f"/proc/{registry.process.pid}/status")

        def peak() -> int:
            return int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1]) * 1024

        registry.push_blob("warm", b"x" * 1_000_000)
        before = peak()
        registry.push_blob("large", b"y" * 200_000_000)
        assert peak() - before < 40_000_000


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path) -> None:
    """To the last page of its file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(path.parent).free < 4096


@pytest.mark.root
def test_a_full_disk_refuses_before_it_takes_and_all_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64m"), registry_process(tmp_path / "data") as registry:
        kept, raw = registry.push_image("full", "v1", os.urandom(1000))
        location = registry.call("POST", "/v2/full/blobs/uploads/").headers["Location"]
        ballast, data = tmp_path / "ballast", os.urandom(10 << 20)
        ballast.write_bytes(bytes(shutil.disk_usage(tmp_path).free - (8 << 20)))
        for method, path in (
            ("PATCH", location),
            ("PUT", f"{location}?digest={Digest.of(data)}"),
            ("POST", f"/v2/full/blobs/uploads/?digest={Digest.of(data)}"),
        ):
            free = shutil.disk_usage(tmp_path).free
            refused = registry.call(method, path, data)
            assert (refused.status, refused.code) == (507, "DENIED")
            assert "no room on the registry's disk" in refused.json()["errors"][0]["message"]
            assert shutil.disk_usage(tmp_path).free == free
        small = registry.push_blob("full", os.urandom(1 << 20))  # what fits is taken

        with closing(sqlite3.connect(tmp_path / "data" / "registry.db", timeout=10)) as database, database:
            database.execute("UPDATE manifests SET leased_until = 0")  # as if a day had gone by
            database.execute("UPDATE repository_blobs SET leased_until = 0")

        fill(tmp_path / "rest")
        assert registry.call("POST", "/v2/full/blobs/uploads/").status == 507
        annotated = json.dumps({**json.loads(raw), "annotations": {"why": "x" * 3_000_000}}).encode()
        refused = registry.call("PUT", "/v2/full/manifests/v2", annotated, PUSHED)
        assert (refused.status, refused.code) == (507, "DENIED"), refused.body
        assert "full" in refused.json()["errors"][0]["message"]
        for path in (f"manifests/{kept}", "manifests/v1", f"blobs/{small}"):  # a pull works
            assert registry.call("HEAD", f"/v2/full/{path}").status == 200
        assert registry.call("GET", f"/v2/full/manifests/{kept}").body == raw
        assert registry.call("GET", "/v2/full/manifests/v2").status == 404

        ballast.unlink()
        (tmp_path / "rest").unlink()
        assert registry.call("PUT", "/v2/full/manifests/v2", annotated, PUSHED).status == 201
        assert registry.call("PUT", f"{location}?digest={Digest.of(data)}", data).status == 201
        assert registry.call("HEAD", f"/v2/full/blobs/{small}").status == 200
        assert registry.call("POST", "/v2/_faas/gc").status == 200


def test_chunks_that_do_not_follow_are_refused_and_the_session_goes_on(tmp_path: Path, dice: random.Random) -> None:
    """Out of order, overlapping, repeated; then in order, to the right digest."""
    with registry_process(tmp_path / "registry") as registry:
        data = dice.randbytes(10_000)
        location = registry.call("POST", "/v2/a/blobs/uploads/").headers["Location"]
        assert registry.call("PATCH", location, data[:4000], {"Content-Range": "0-3999"}).status == 202
        for _ in range(30):
            first = dice.choice([0, 1, 3999, 4001, 9000, dice.randrange(4001, 9000), dice.randrange(4000)])
            chunk = data[first : first + dice.randint(1, 999)]
            refused = registry.call("PATCH", location, chunk, {"Content-Range": f"{first}-{first + len(chunk) - 1}"})
            assert (refused.status, refused.code) == (416, "BLOB_UPLOAD_INVALID"), first
            assert refused.headers["Range"] == "0-3999"
        assert registry.call("PATCH", location, data[4000:], {"Content-Range": "4000-9999"}).status == 202
        assert registry.call("PUT", f"{location}?digest={Digest.of(data)}").status == 201


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[Registry]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}"
    registry = await Registry.open(tmp_path, url, accounts=None, metrics=Metrics("test"))
    yield registry
    await registry.close()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_what_is_acknowledged_is_on_the_disk(inside: Registry) -> None:
    """Every commit of the database is flushed."""
    async with inside.index.database.write() as tx:
        assert (await tx.exec_driver_sql("PRAGMA synchronous")).scalar() == 2
    assert await inside.index.database.change(lambda tx: tx.exec_driver_sql("PRAGMA synchronous").scalar()) == 2


async def test_uploads_that_nobody_finishes_are_bounded_and_their_bytes_come_back(inside: Registry) -> None:
    count = 5000 if SOAK else 100
    for number in range(count):
        upload = await inside.space.begin(f"n{number % 10}/app")
        async with upload.lock:
            await upload.append(once(bytes(1000)))
    assert len(inside.blobs.sessions()) == count
    folder = inside.blobs.path(Digest.of(b"")).parents[3] / "uploads"
    assert len(list(folder.iterdir())) == count
    assert await inside.blobs.sweep(3600) == 0
    assert await inside.blobs.sweep(-1) == count
    assert not list(folder.iterdir())
    assert not inside.blobs.sessions()


async def test_so_many_uploads_may_be_open_in_a_namespace_and_in_all(
    inside: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "NAMESPACE_SESSIONS", 3)
    monkeypatch.setattr(space, "SESSIONS", 5)
    uploads = [await inside.space.begin("a/app") for _ in range(3)]
    with pytest.raises(RegistryError) as refused:
        await inside.space.begin("a/other")
    assert (refused.value.status, refused.value.code) == (429, "TOOMANYREQUESTS")
    assert refused.value.headers["Retry-After"]
    for _ in range(2):
        await inside.space.begin("b/app")
    with pytest.raises(RegistryError):
        await inside.space.begin("c/app")
    await uploads[0].cancel()
    await inside.space.begin("a/app")


async def test_a_file_that_could_not_be_flushed_is_not_tried_again(
    inside: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets what it could not write, and the second fsync says that all is well."""
    data = b"lost by the disk"
    upload = await inside.blobs.begin("app")

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error")

    async with upload.lock:
        await upload.append(once(data))
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "_sync", fails)
            with pytest.raises(OSError, match="Input/output"):
                await upload.commit(Digest.of(data))
        with pytest.raises(UploadGone):
            await upload.commit(Digest.of(data))
    assert await inside.blobs.resume(upload.id, "app") is None
    assert await inside.blobs.size(Digest.of(data)) is None


async def test_a_large_commit_holds_up_nobody_who_only_looks(inside: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = filesystem._sync

    def slow(path: Path) -> None:
        assert release.wait(20)
        real(path)

    monkeypatch.setattr(filesystem, "_sync", slow)
    commits = []
    for number in range(6):
        upload = await inside.blobs.begin("app")
        await upload.append(once(bytes([number])))
        commits.append(asyncio.create_task(upload.commit(Digest.of(bytes([number])))))
    async with asyncio.timeout(5):
        assert await inside.blobs.size(Digest.of(b"x")) is None
    release.set()
    await asyncio.gather(*commits)


async def test_two_uploads_of_one_digest_and_a_collection_take_turns(inside: Registry) -> None:
    data = os.urandom(100_000)
    digest = Digest.of(data)

    async def upload(repository: str) -> None:
        session = await inside.space.begin(repository)
        async with session.lock, inside.index.turns.of(digest):
            await session.append(once(data))
            size = await session.commit(digest)
            async with inside.space.writing(repository, session) as promised:
                await inside.index.add_blob(repository, digest, size, promised)

    for _ in range(5):
        await asyncio.gather(*(upload(name) for name in ("a", "b", "c")), inside.collect(), inside.collect())
        for name in ("a", "b", "c"):
            assert await inside.index.blob_size(name, digest) == len(data)
            assert await inside.index.remove_blob(name, digest)
        assert not inside.blobs.sessions()
    await inside.collect()
    assert await inside.blobs.size(digest) is None


async def test_a_head_answers_no_where_a_collection_was_faster(
    inside: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a blob and of a manifest: what is told to be here is leased, or it is not told."""
    data = b"about to go"
    digest = Digest.of(data)
    monkeypatch.setattr(index_module, "LEASE_SECONDS", -1.0)
    upload = await inside.blobs.begin("app")
    await upload.append(once(data))
    await inside.index.add_blob("a", digest, await upload.commit(digest))
    upload.end()
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    assert await inside.index.lease("a", digest)
    await inside.collect()
    assert await inside.index.blob_size("a", digest) == len(data)
    assert await inside.index.remove_blob("a", digest)
    assert not await inside.index.lease("a", digest)
    assert not await inside.index.lease_manifest("a", digest)
