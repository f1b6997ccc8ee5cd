"""Backups and what they restore: the same to the last row and byte, of one moment; what is hostile is refused."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import sqlite3
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.backup.archive import ArchiveTarget
from faas.backup.folder import FolderTarget, backups, read_manifest
from faas.backup.manifest import DATABASES, MANIFEST, Manifest, blob_name
from faas.backup.restoring import Restoring
from faas.backup.source import manifest_of, opened
from faas.errors import Conflict, FaasError, InvalidInput, NotFound, Unavailable
from faas.state import schema
from registry.index.index import MIGRATIONS
from tests.support.backup_server import BackedUp, backed_up
from tests.support.control import until
from worker.launcher.data_folder import SHARED

KNOWN = {"faas.db": schema.versions(), "registry.db": schema.versions(MIGRATIONS)}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BackedUp]:
    async with backed_up(tmp_path / "data") as running:
        await running.function("hello")
        await running.image("hello", "v1", b"first" * 1000)
        (running.data / "prices.toml").write_text("currency = 'EUR'\n")
        (running.data / "secrets-key").write_text("a key")
        (running.data / "admin-token").write_text("a token")
        yield running


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backup as a folder and as a file, for tests that change a copy of it."""
    place = tmp_path_factory.mktemp("made")

    async def make() -> None:
        async with backed_up(place / "data") as running:
            await running.image("hello", "v1", b"first")
            await asyncio.to_thread((place / "data" / "prices.toml").write_text, "currency = 'EUR'")
            await running.backup(FolderTarget(place / "kept"))
            await running.backup(ArchiveTarget(place / "kept.tar"))

    asyncio.run(make())
    return place


@pytest.fixture
def kept(made_once: Path, tmp_path: Path) -> Path:
    """One backup's folder, this test's own."""
    shutil.copytree(made_once / "kept", tmp_path / "kept")
    return tmp_path / "kept" / backups(tmp_path / "kept")[0]


def restore(source: Path, data: Path) -> Manifest:
    with opened(source) as backup:
        manifest = manifest_of(backup)
        work = Restoring(backup, manifest, data, KNOWN)
        work.check()
        work.verify(lambda _: None)
        work.run(lambda _: None)
        return manifest


def rows(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


def blobs(data: Path) -> dict[str, bytes]:
    return {str(p.relative_to(data)): p.read_bytes() for p in (data / "blobs").rglob("*") if p.is_file()}


async def test_what_is_restored_can_be_read_by_the_servers_account_also_in_a_folder_that_was_emptied(
    server: BackedUp, tmp_path: Path
) -> None:
    (server.data / "jwks").mkdir()
    (server.data / "jwks" / "issuer").write_text("{}")
    made, _, _ = await server.backup(ArchiveTarget(tmp_path / "kept.tar"))
    data = tmp_path / "restored"
    data.mkdir()
    data.chmod(SHARED)  # so it would not be walked through again
    restore(made, data)
    modes = {name: stat.S_IMODE((data / name).stat().st_mode) for name in ("", "prices.toml", "jwks", "jwks/issuer")}
    assert modes == {"": 0o700, "prices.toml": 0o644, "jwks": 0o755, "jwks/issuer": 0o644}
    assert stat.S_IMODE((data / DATABASES[0]).stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["folder", "archive"])
async def test_what_is_restored_has_every_row_and_every_byte_of_what_was_backed_up(
    server: BackedUp, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / ("kept" if kind == "folder" else "kept.tar")
    made, manifest, came = await server.backup(FolderTarget(place) if kind == "folder" else ArchiveTarget(place))
    assert (came, manifest.missing) == (2, ())
    restore(made, tmp_path / "restored")
    assert [rows(tmp_path / "restored" / name) for name in DATABASES] == [
        rows(server.data / name) for name in DATABASES
    ]
    assert blobs(tmp_path / "restored") == blobs(server.data)
    assert (tmp_path / "restored" / "prices.toml").read_text() == "currency = 'EUR'\n"
    assert not (tmp_path / "restored" / "secrets-key").exists()
    assert not (tmp_path / "restored" / "admin-token").exists()
    assert "secrets-key" in manifest.left_out
    async with backed_up(tmp_path / "restored") as again:
        assert await again.registry.index.manifest("hello", "v1") is not None


async def test_a_further_backup_brings_new_blobs_alone_and_what_is_pruned_takes_only_its_own_with_it(
    server: BackedUp, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    await server.backup(FolderTarget(kept))
    assert await server.registry.index.remove_tag("hello", "v1")
    old = await server.registry.index.manifest("hello", "v1")
    assert old is None
    await server.image("hello", "v2", b"second" * 1000)
    second, _, came = await server.backup(FolderTarget(kept))
    assert came == 1
    target = FolderTarget(kept)
    try:
        gone = target.prune(1)
    finally:
        target.close()
    assert (len(gone), backups(kept)) == (1, [second.name])
    restore(kept, tmp_path / "restored")
    needed = {blob_name(blob.digest) for blob in read_manifest(second).blobs}
    assert set(blobs(kept)) == needed


async def test_a_backup_that_was_broken_off_is_none_and_goes_on_with_the_blobs_that_came(
    server: BackedUp, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    target = FolderTarget(kept)
    backup = await server.backups.begin()
    await server.fetch(backup, target, most=1)
    await server.backups.end(backup.id)
    assert backups(kept) == []
    with pytest.raises(InvalidInput, match="holds no backup"):
        restore(kept, tmp_path / "restored")
    with pytest.raises(Conflict, match="under way"):
        FolderTarget(kept)
    target.close()
    made, _, came = await server.backup(FolderTarget(kept))
    assert came == 1
    restore(made, tmp_path / "restored")


async def test_no_collection_takes_a_blob_while_a_backup_is_fetched_and_the_next_one_does(server: BackedUp) -> None:
    image = await server.image("gone", "v1", b"to be collected")
    path = server.registry.blobs.path(image.layers[0].digest)
    backup = await server.backups.begin()
    await server.registry.index.remove_manifest("gone", image.digest)
    with contextlib.closing(sqlite3.connect(server.data / "registry.db")) as database, database:
        database.execute("UPDATE repository_blobs SET leased_until = 0")
    await server.registry.collect()
    chunks = server.backups.chunks(backup, server.backups.blob(backup, str(image.layers[0].digest)))
    assert b"".join([chunk async for chunk in chunks]) == b"to be collected"
    await server.backups.end(backup.id)
    assert path.exists()
    await server.registry.collect()
    assert not path.exists()


async def test_both_databases_are_of_one_moment_while_others_write(server: BackedUp) -> None:
    """Each function is written before the image of its name: a copy has as many functions as images, or one more."""
    enough = asyncio.Event()

    async def write() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            await server.function(f"f{number}")
            await server.image(f"f{number}", "v1", b"layer")

    writing = asyncio.create_task(write())
    for _ in range(5):
        await asyncio.sleep(0.02)
        backup = await server.backups.begin()
        counts = []
        for name, table in (("faas.db", "functions"), ("registry.db", "tags")):
            with contextlib.closing(sqlite3.connect(backup.folder / name)) as database:
                counts.append(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        assert counts[0] - counts[1] in (0, 1)
        await server.backups.end(backup.id)
    enough.set()
    await writing
    assert counts[0] > 1


async def test_one_backup_at_a_time_and_one_whose_client_has_gone_ends(tmp_path: Path) -> None:
    async with backed_up(tmp_path / "data", idle_seconds=0.1) as server:
        backup = await server.backups.begin()
        with pytest.raises(Conflict):
            await server.backups.begin()
        await until(lambda: not server.registry.keeping.is_held)
        with pytest.raises(NotFound):
            server.backups.of(backup.id)
        assert not backup.folder.exists()


async def test_how_the_last_backup_ended_is_known(server: BackedUp) -> None:
    assert server.backups.last is None
    for failed, failure in ((True, "its client could not finish it"), (False, "")):
        backup = await server.backups.begin()
        await server.backups.end(backup.id, failed=failed)
        assert server.backups.last is not None
        assert server.backups.last.failure == failure


async def test_bytes_that_do_not_come_as_they_were_named_are_refused(server: BackedUp, tmp_path: Path) -> None:
    backup = await server.backups.begin()
    blob = backup.manifest.blobs[0]
    path = server.registry.blobs.path(blob.digest)
    path.write_bytes(b"x" * blob.size)
    target = FolderTarget(tmp_path / "kept")
    with pytest.raises(Unavailable, match="did not come as the server said"):
        await server.fetch(backup, target)
    target.close()
    assert not (tmp_path / "kept" / blob_name(blob.digest)).exists()


async def test_a_blob_that_the_server_has_lost_is_named(server: BackedUp, tmp_path: Path) -> None:
    image = await server.image("lost", "v1", b"lost")
    server.registry.blobs.path(image.layers[0].digest).unlink()
    _, manifest, _ = await server.backup(FolderTarget(tmp_path / "kept"))
    assert manifest.missing == (str(image.layers[0].digest),)


async def test_a_damaged_byte_is_found_before_anything_is_written_and_verify_brings_it_again(
    server: BackedUp, tmp_path: Path
) -> None:
    kept, data = tmp_path / "kept", tmp_path / "restored"
    made, manifest, _ = await server.backup(FolderTarget(kept))
    victim = kept / blob_name(manifest.blobs[0].digest)
    victim.write_bytes(b"y" * manifest.blobs[0].size)
    with pytest.raises(InvalidInput, match="is damaged"):
        restore(made, data)
    assert list(data.iterdir()) == []
    target = FolderTarget(kept)
    assert target.verify(lambda _: None) == [victim.name]
    target.close()
    _, _, came = await server.backup(FolderTarget(kept))
    assert came == 1
    restore(kept, data)


async def test_a_folder_that_is_not_empty_and_a_newer_schema_are_refused(server: BackedUp, tmp_path: Path) -> None:
    made, _, _ = await server.backup(FolderTarget(tmp_path / "kept"))
    with pytest.raises(Conflict, match="is not empty: it holds"):
        restore(made, server.data)
    written = json.loads((made / MANIFEST).read_text())
    written["schemas"]["faas.db"], written["version"] = "0999", "9.9"
    (made / MANIFEST).write_text(json.dumps(written))
    with pytest.raises(InvalidInput, match=r"9\.9.*faas\.db has the schema 0999") as refused:
        restore(made, tmp_path / "restored")
    assert max(schema.versions()) in refused.value.message
    assert not (tmp_path / "restored").exists()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    head = tarfile.TarInfo(name)
    head.type, head.linkname = kind, link
    return head


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("/etc/cron.d/evil"),
        member("blobs/sha256/../../outside"),
        member("jwks/../../outside"),
        member("faas.db-wal"),
        member("prices.toml", tarfile.SYMTYPE, "/etc/shadow"),
        member("prices.toml", tarfile.LNKTYPE, "faas.db"),
        member("prices.toml", tarfile.FIFOTYPE),
        member("blobs", tarfile.DIRTYPE),
        member("faas.db"),
    ],
    ids=lambda head: f"{head.type.decode()} {head.name}",
)
def test_an_archive_with_anything_that_no_backup_holds_is_refused(
    made_once: Path, tmp_path: Path, hostile: tarfile.TarInfo
) -> None:
    made = Path(shutil.copy(made_once / "kept.tar", tmp_path))
    with tarfile.open(made, "a") as archive:
        archive.addfile(hostile, io.BytesIO())
    with pytest.raises(InvalidInput, match="the archive holds"):
        restore(made, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "jwks/../x", "lock", "faas.db/x", ""])
def test_a_manifest_that_names_another_file_is_refused(kept: Path, tmp_path: Path, name: str) -> None:
    written = json.loads((kept / MANIFEST).read_text())
    written["files"].append({**written["files"][0], "name": name})
    (kept / MANIFEST).write_text(json.dumps(written))
    with pytest.raises(InvalidInput, match="is no manifest of a backup"):
        restore(kept, tmp_path / "restored")


@pytest.mark.parametrize("what", ["prices.toml", "blobs", "a blob"])
def test_a_link_in_a_folder_is_not_followed(kept: Path, tmp_path: Path, what: str) -> None:
    blob = kept.parent / blob_name(read_manifest(kept).blobs[0].digest)
    victim = {"blobs": kept.parent / "blobs", "a blob": blob}.get(what, kept / what)
    elsewhere = Path(shutil.move(victim, tmp_path / "elsewhere"))
    victim.symlink_to(elsewhere)
    with pytest.raises(InvalidInput, match="is a link"):
        restore(kept, tmp_path / "restored")


async def test_a_folder_of_something_else_is_not_mixed_with_backups(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(FaasError, match=r"holds holiday\.jpg, which is no backup"):
        FolderTarget(tmp_path)


async def test_what_a_crash_left_of_a_restoration_or_a_backup_is_in_nobodys_way(
    server: BackedUp, tmp_path: Path
) -> None:
    made, _, _ = await server.backup(FolderTarget(tmp_path / "kept"))
    work = tmp_path / "restored" / ".restoring"
    work.mkdir(parents=True)
    (work / "faas.db").write_text("half of it")
    restore(made, tmp_path / "restored")
    assert not work.exists()
    (server.data / "backup").mkdir()
    (server.data / "backup" / "faas.db").write_text("half of it")
    await server.backups.open()
    await server.backup(FolderTarget(tmp_path / "kept"))
