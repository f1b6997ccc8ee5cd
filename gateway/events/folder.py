"""Folder triggers: a file that comes to rest in a watched folder becomes one S3-shaped event: its size and time have
not changed for a moment, and no program has it open for writing.

What has been dealt with is in the database (`trigger_files`), in the same transaction as the event: a file that came
while the server was down is found by the listing at start, and none runs twice. The file system's notices only wake
the listing, which also runs by itself now and then. Files that lay there when the trigger was made are no events, as
in S3; nor are files that a function wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from watchfiles import awatch

from faas.background import Background
from faas.errors import FaasError, NotFound
from faas.leases import Trigger
from faas.spec import TriggerSpec
from faas.state.session import Database, Transaction, Tx
from faas.web import new_request_id
from gateway.dispatcher import Dispatcher
from gateway.events import files
from gateway.events.roots import TriggerRoots
from gateway.store import triggers
from gateway.store.invocations import Kind, QueuedEvent
from gateway.store.triggers import SeenFile, TriggerRow

log = logging.getLogger("faas.folder")

SETTLE_SECONDS = 0.5  # a file is whole when size and time have not changed for so long, and nobody is writing
UNLEASED_SETTLE_SECONDS = 2.0  # where nobody can tell who is writing
LOOK_SECONDS = 10.0  # listings without a notice: for what notices miss (network file systems, a folder made anew)
RECHECK_SECONDS = 1.0
BATCH = 500  # files per transaction
NAMED = 3  # files that a problem names


class FolderTriggers:
    """Watches the folders of all functions. `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        roots: TriggerRoots,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._roots = roots
        self._settle = settle_seconds
        self._look = look_seconds
        self._clock = clock
        self._watched: dict[TriggerRow, asyncio.Task[None]] = {}
        self._problems: dict[TriggerRow, str] = {}
        self._too_large: dict[TriggerRow, str] = {}
        self._background = Background()
        self._started = False

    async def start(self) -> None:
        self._started = True
        await self.changed()

    async def stop(self) -> None:
        self._started = False
        self._watched.clear()
        await self._background.cancel()

    async def changed(self) -> None:
        """Triggers were made or removed: watch what there is now."""
        if not self._started:
            return
        try:
            async with self._database.read() as tx:
                rows = set(await tx.run_sync(triggers.every))
        except FaasError as error:
            log.error("the triggers cannot be read: %s", error.message)
            self._background.start(self._changed_later(), "triggers")
            return
        for row in set(self._watched) - rows:
            self._watched.pop(row).cancel()
            self._problems.pop(row, None)
            self._too_large.pop(row, None)
        for row in rows - set(self._watched):
            self._watched[row] = self._background.start(self._watch(row), f"folder {row.spec.watch}")

    async def _changed_later(self) -> None:
        await asyncio.sleep(RECHECK_SECONDS)
        await self.changed()

    def problems(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Why folders, or files in them, cannot be dealt with now, by namespace and function."""
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for row in self._problems | self._too_large:
            where = (row.namespace, row.function)
            if row in self._watched and (text := self.problem(row)):
                found[where] = (*found.get(where, ()), text)
        return found

    def problem(self, row: TriggerRow) -> str:
        """Why this folder, or files in it, cannot be dealt with now; "" where all is well."""
        return self._problems.get(row) or self._too_large.get(row, "")

    async def check(self, specs: tuple[TriggerSpec, ...]) -> tuple[list[str], dict[TriggerSpec, set[SeenFile]]]:
        """Before a deploy: warnings, and the files that lie there already. Raises InvalidInput for a forbidden one."""
        warnings, present = [], {}
        for spec in specs:
            await asyncio.to_thread(self._roots.check, spec.watch)
            try:
                present[spec] = await asyncio.to_thread(files.listing, spec.watch, spec.pattern)
            except NotFound as error:
                warnings.append(f"{error.message}; it will be watched once it can be")
        return warnings, present

    @staticmethod
    async def baseline(tx: Transaction, row: TriggerRow, present: set[SeenFile]) -> None:
        """Files that lie there when the trigger is made are no events."""
        await tx.run_sync(triggers.see, row, present)

    async def _watch(self, row: TriggerRow) -> None:
        """One trigger's loop: it goes on whatever happens to the folder."""
        notice = asyncio.Event()
        notices = Background()
        missed: dict[SeenFile, float] = {}
        try:
            while True:
                notice.clear()
                wait = RECHECK_SECONDS
                try:
                    at_rest = await self._look_at(row, missed)
                    if self._problems.pop(row, None):
                        log.info("the folder %s can be read again", row.spec.watch)
                    if not len(notices):
                        notices.start(self._notices(row, notice), "notices")
                    elif at_rest:  # what came before the notices began is seen by the second look
                        wait = self._look
                except FaasError as error:
                    if self._problems.get(row) != error.message:
                        log.warning("folder %s: %s", row.spec.watch, error.message)
                    self._problems[row] = error.message
                    if isinstance(error, NotFound):
                        await notices.cancel()  # they may be of a folder that has gone
                except Exception:
                    log.exception("folder %s", row.spec.watch)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, self._look)):
                        await notice.wait()
        finally:
            await notices.cancel()

    async def _notices(self, row: TriggerRow, notice: asyncio.Event) -> None:
        """Pass on the file system's notices; where there are none to have, the looks alone find what comes."""
        try:
            async for _ in awatch(row.spec.watch, recursive=False, step=50, debounce=200):
                notice.set()
        except (OSError, RuntimeError) as error:  # no folder, or inotify's limits
            log.debug("no notices from %s: %s", row.spec.watch, error)

    async def _look_at(self, row: TriggerRow, missed: dict[SeenFile, float]) -> bool:
        """List, wait until the new files have come to rest, queue them. Whether all have. Raises NotFound.

        `missed`: files that the looks before have missed, and since when.
        """
        listing = partial(files.listing, row.spec.watch, row.spec.pattern)
        await asyncio.to_thread(self._roots.check, row.spec.watch)
        async with self._database.read() as tx:
            seen = await tx.run_sync(triggers.seen, row)
        present, held = await asyncio.to_thread(listing), set[SeenFile]()
        while restless := present - seen - held:
            told = await asyncio.to_thread(files.being_written, row.spec.watch, [next(iter(restless))]) is not None
            await asyncio.sleep(self._settle if told else max(self._settle, UNLEASED_SETTLE_SECONDS))
            present = await asyncio.to_thread(listing)
            busy = await asyncio.to_thread(files.being_written, row.spec.watch, present - seen)
            held = busy or set()
            settled = sorted((restless & present) - held, key=lambda file: (file.mtime_ns, file.name))
            for begin in range(0, len(settled), BATCH):
                await self._queue(row, settled[begin : begin + BATCH])
            seen |= set(settled)
        self._note_large(row, present)
        await self._forget(row, seen - present, missed)
        return not held

    def _note_large(self, row: TriggerRow, present: set[SeenFile]) -> None:
        large = sorted(file.name for file in present if file.size > files.CONTENT_BYTES)
        self._too_large.pop(row, None)
        if large:
            names = ", ".join(large[:NAMED]) + (", …" if len(large) > NAMED else "")
            most = f"{files.CONTENT_BYTES:,} bytes"
            self._too_large[row] = f"in {row.spec.watch}, too large for an event, which holds {most}: {names}"

    async def _forget(self, row: TriggerRow, gone: set[SeenFile], missed: dict[SeenFile, float]) -> None:
        """Forget what has been missed for a while: a function's output is remembered before it takes its name."""
        now = time.monotonic()
        for file in missed.keys() - gone:
            del missed[file]
        old = [file for file in gone if now - missed.setdefault(file, now) >= self._look]
        for begin in range(0, len(old), BATCH):
            async with self._database.write() as tx:
                await tx.run_sync(triggers.forget, row, old[begin : begin + BATCH])
        for file in old:
            del missed[file]

    async def _queue(self, row: TriggerRow, found: list[SeenFile]) -> None:
        """One transaction: the files are dealt with, and their events are queued."""

        def queued(tx: Tx) -> list[QueuedEvent]:
            new = triggers.see(tx, row, found)  # the others have been seen meanwhile: a function wrote them
            return [self._event(row, file) for file in found if file in new]

        await self._dispatcher.commit(queued)

    def _event(self, row: TriggerRow, file: SeenFile) -> QueuedEvent:
        return QueuedEvent(
            id=new_request_id(),
            namespace=row.namespace,
            function=row.function,
            trigger=Trigger.FOLDER,
            kind=Kind.FILE,
            payload=b"",
            meta={
                "watch": row.spec.watch,
                "pattern": row.spec.pattern,
                "name": file.name,
                "mtime_ns": file.mtime_ns,
                "size": file.size,
            },
            created_at=self._clock(),
        )
