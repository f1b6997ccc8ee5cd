"""`Backups`: what the server gives to whoever makes a backup: copies of both databases of one moment, the files beside
them, and the blobs that they name, which no collection takes meanwhile.

One backup at a time, and it ends when its client asks for nothing for a minute: a collection waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faas.background import Background, to_its_end
from faas.backup.manifest import DATABASES, FILES, KEY_SETS, SECRETS_KEY, Blob, Entry, Manifest, is_file_name
from faas.backup.port import StoredBlobs
from faas.errors import Conflict, FaasError, NotFound, StorageFull, Unavailable
from faas.oci.digest import Digest
from faas.state import snapshot
from faas.state.session import Database
from gateway.control.operations import stamp

log = logging.getLogger("faas.backup")

STAGING = "backup"  # of the data folder: copies, while somebody fetches them
IDLE_SECONDS = 60.0
LOOK_SECONDS = 5.0
FILE_BYTES = 16 << 20  # of a file beside the databases
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a backup ended. `failure`: why, "" where it was whole."""

    at: float  # Unix seconds
    failure: str = ""


@dataclass(eq=False)
class Backup:
    """One that is being fetched. `touched`: when its client last asked for something (monotonic seconds)."""

    id: str
    folder: Path
    manifest: Manifest
    blobs: dict[Digest, Blob]
    lease: contextlib.ExitStack
    touched: float = field(default_factory=time.monotonic)


class Backups:
    """`data` is the server's folder; `registry` has the images. Open it once, close it at the end."""

    def __init__(
        self, gateway: Database, registry: StoredBlobs, data: Path, version: str, *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._gateway = gateway
        self._registry = registry
        self._data = data
        self._version = version
        self._idle_seconds = idle_seconds
        self._turn = asyncio.Lock()
        self._current: Backup | None = None
        self.last: Outcome | None = None  # since the start
        self._background = Background()

    async def open(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._data / STAGING, ignore_errors=True)  # what a crash left
        self._background.start(self._watch(), "backups")

    async def close(self) -> None:
        await self._background.cancel()
        async with self._turn:
            await self._end()

    async def begin(self, *, secrets_key: bool = False) -> Backup:
        """Raises Conflict where another one is under way, StorageFull, Unavailable."""
        try:
            return await self._begin(secrets_key)
        except Conflict:
            raise
        except Exception as error:
            failure = error.message if isinstance(error, FaasError) else "it could not begin: see the server's log"
            self.last = Outcome(time.time(), failure)
            raise

    async def _begin(self, secrets_key: bool) -> Backup:
        async with self._turn:
            if self._current is not None:
                raise Conflict(
                    "another backup is under way", hint=f"it ends {self._idle_seconds:g} s after its client has gone"
                )
            with contextlib.ExitStack() as lease:
                lease.enter_context(self._registry.keeping())  # before the first row is read
                folder = self._data / STAGING
                lease.callback(shutil.rmtree, folder, ignore_errors=True)
                await asyncio.to_thread(folder.mkdir, 0o700)
                schemas = await snapshot.copy(dict(zip(DATABASES, self._databases, strict=True)), folder)
                manifest = await to_its_end(asyncio.to_thread(self._gathered, folder, schemas, secrets_key))
                blobs = {blob.digest: blob for blob in manifest.blobs}
                self._current = Backup(secrets.token_hex(16), folder, manifest, blobs, lease.pop_all())
            return self._current

    @property
    def _databases(self) -> tuple[Database, Database]:
        return self._gateway, self._registry.database

    def _gathered(self, folder: Path, schemas: dict[str, str], secrets_key: bool) -> Manifest:
        """Blocking. What is in it; files beside the databases are copied, so that they do not change either."""
        left_out: dict[str, str] = {}
        for name in self._beside():
            if name == SECRETS_KEY and not secrets_key:
                left_out[name] = "it was not asked for: without it nobody can read the stored secrets"
                continue
            try:
                _copy_file(self._data / name, folder / name)
            except (PermissionError, ValueError) as error:
                left_out[name] = str(error.args[-1] if isinstance(error, ValueError) else error.strerror)
        listed = self._registry.listed(folder / DATABASES[1])
        return Manifest(
            self._version,
            stamp(time.time()) or "",
            schemas,
            tuple(_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()),
            tuple(listed.blobs),
            left_out,
            tuple(listed.missing),
        )

    def _beside(self) -> Iterator[str]:
        """Names of the files that are there."""
        yield from (name for name in FILES if (self._data / name).exists())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            names = sorted(f"{KEY_SETS}/{entry.name}" for entry in os.scandir(self._data / KEY_SETS))
            yield from (name for name in names if is_file_name(name))

    def of(self, backup_id: str) -> Backup:
        """The one that is under way. Raises NotFound."""
        current = self._current
        if current is None or not secrets.compare_digest(current.id.encode(), backup_id.encode()):
            raise NotFound("there is no such backup, or its client was gone for too long", hint="begin it again")
        current.touched = time.monotonic()
        return current

    async def end(self, backup_id: str, *, failed: bool = False) -> None:
        """Its copies go, and the collector may work again. `failed`: its client lacks some. Raises NotFound."""
        async with self._turn:
            self.of(backup_id)
            self.last = Outcome(time.time(), "its client could not finish it" if failed else "")
            await self._end()

    async def _end(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            await to_its_end(asyncio.to_thread(current.lease.close))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._idle_seconds))
            async with self._turn:
                current = self._current
                if current is not None and time.monotonic() - current.touched > self._idle_seconds:
                    log.warning("a backup's client has gone: it is given up")
                    self.last = Outcome(time.time(), "its client has gone")
                    await self._end()

    def file(self, backup: Backup, name: str) -> Path:
        """Raises NotFound."""
        if name not in {entry.name for entry in backup.manifest.files}:
            raise NotFound(f"the backup has no file {name[:80]!r}")
        return backup.folder / name

    def blob(self, backup: Backup, digest: str) -> Path:
        """Raises NotFound."""
        with contextlib.suppress(ValueError):
            if (blob := backup.blobs.get(Digest.parse(digest))) is not None:
                return self._registry.path(blob)
        raise NotFound("the backup has no such blob")

    async def chunks(self, backup: Backup, path: Path) -> AsyncIterator[bytes]:
        """A file's bytes, as fast as they are taken. Raises NotFound, Unavailable."""
        opened = await to_its_end(_opening(path), undo=os.close)
        try:
            while data := await to_its_end(asyncio.to_thread(os.read, opened, CHUNK)):
                yield data
                self.of(backup.id)
        except OSError as error:
            raise Unavailable(f"a stored file cannot be read: {error.strerror}") from None
        finally:
            os.close(opened)


async def _opening(path: Path) -> int:
    try:
        return await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise NotFound("the file is not there any more: it may have been found damaged") from None


def _copy_file(source: Path, target: Path) -> None:
    """Blocking. Plain files alone: the folder is shared with root. Raises PermissionError, ValueError, StorageFull."""
    try:
        opened = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("it is a link") from None
        raise PermissionError(error.errno, "the server's account may not read it") from None
    with open(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ValueError("it is no plain file")
        content = file.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise ValueError(f"it has more than {FILE_BYTES >> 20} MB")
    try:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise StorageFull(f"the data folder's disk has no room for a backup's copies: {error.strerror}") from None


def _entry(folder: Path, path: Path) -> Entry:
    hasher = Digest("sha256", "").hasher()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return Entry(str(path.relative_to(folder)), path.stat().st_size, Digest("sha256", hasher.hexdigest()))
