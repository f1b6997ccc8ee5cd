"""Folder triggers: a file that comes to rest in a watched folder becomes one S3-shaped event.

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
from pathlib import Path

from watchfiles import awatch

from faas.background import Background
from faas.errors import FaasError, NotFound
from faas.protocol import Trigger
from faas.spec import TriggerSpec
from faas.state.session import Database, Transaction
from faas.web import new_request_id
from gateway.dispatcher import Dispatcher
from gateway.events import files
from gateway.store import triggers
from gateway.store.invocations import Kind, QueuedEvent
from gateway.store.triggers import SeenFile, TriggerRow

log = logging.getLogger("faas.folder")

SETTLE_SECONDS = 0.5  # a file is whole when size and time have not changed for so long
LOOK_SECONDS = 10.0  # listings without a notice: for what notices miss (network file systems, a folder made anew)
RECHECK_SECONDS = 1.0
BATCH = 500  # files per transaction


class FolderTriggers:
    """Watches the folders of all functions. `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        data: Path,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._data = data
        self._settle = settle_seconds
        self._look = look_seconds
        self._clock = clock
        self._watched: dict[TriggerRow, asyncio.Task[None]] = {}
        self._problems: dict[TriggerRow, str] = {}
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
        async with self._database.read() as tx:
            rows = set(await triggers.every(tx))
        for row in set(self._watched) - rows:
            self._watched.pop(row).cancel()
            self._problems.pop(row, None)
        for row in rows - set(self._watched):
            self._watched[row] = self._background.start(self._watch(row), f"folder {row.spec.watch}")

    def problems(self, namespace: str, function: str) -> list[str]:
        """Why a function's folders cannot be watched now."""
        rows = self._problems.items()
        return [text for row, text in rows if (row.namespace, row.function) == (namespace, function)]

    def problem(self, row: TriggerRow) -> str:
        """Why this folder cannot be watched now; "" where it can."""
        return self._problems.get(row, "")

    async def check(self, specs: tuple[TriggerSpec, ...]) -> tuple[list[str], dict[TriggerSpec, set[SeenFile]]]:
        """Before a deploy: warnings, and the files that lie there already. Raises InvalidInput for a forbidden one."""
        warnings, present = [], {}
        for spec in specs:
            await asyncio.to_thread(files.check_folder, spec.watch, self._data)
            try:
                present[spec] = await asyncio.to_thread(files.listing, spec.watch, spec.pattern)
            except NotFound as error:
                warnings.append(f"{error.message}; it will be watched once it can be")
        return warnings, present

    @staticmethod
    async def baseline(tx: Transaction, row: TriggerRow, present: set[SeenFile]) -> None:
        """Files that lie there when the trigger is made are no events."""
        for file in present:
            await triggers.see(tx, row, file)

    async def _watch(self, row: TriggerRow) -> None:
        """One trigger's loop: it goes on whatever happens to the folder."""
        notice = asyncio.Event()
        notices = Background()
        try:
            while True:
                notice.clear()
                wait = self._look
                try:
                    await self._look_at(row)
                    if self._problems.pop(row, None):
                        log.info("the folder %s can be read again", row.spec.watch)
                    if not len(notices):
                        notices.start(self._notices(row, notice), "notices")
                        wait = RECHECK_SECONDS  # what came before the notices begin is seen by the next look
                except NotFound as error:
                    if self._problems.get(row) != error.message:
                        log.warning("%s", error.message)
                    self._problems[row] = error.message
                    await notices.cancel()  # they may be of a folder that has gone
                    wait = RECHECK_SECONDS
                except FaasError as error:
                    log.warning("folder %s: %s", row.spec.watch, error.message)
                    wait = RECHECK_SECONDS
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

    async def _look_at(self, row: TriggerRow) -> None:
        """List, wait until the new files have come to rest, queue them. Raises NotFound."""
        folder = partial(asyncio.to_thread, files.listing, row.spec.watch, row.spec.pattern)
        await asyncio.to_thread(files.check_folder, row.spec.watch, self._data)
        async with self._database.read() as tx:
            seen = await triggers.seen(tx, row)
        present = await folder()
        while restless := present - seen:
            await asyncio.sleep(self._settle)
            now = await folder()
            settled = sorted(restless & now, key=lambda file: (file.mtime_ns, file.name))
            for begin in range(0, len(settled), BATCH):
                await self._queue(row, settled[begin : begin + BATCH])
            seen |= set(settled)
            present = now
        names = {file.name for file in present}
        if gone := [file for file in seen if file.name not in names]:
            async with self._database.write() as tx:
                await triggers.forget(tx, row, gone)

    async def _queue(self, row: TriggerRow, found: list[SeenFile]) -> None:
        """One transaction: the file is dealt with, and its event is queued."""
        queued = []
        async with self._database.write() as tx:
            for file in found:
                if not await triggers.see(tx, row, file):
                    continue  # seen meanwhile: a function wrote it
                meta = {
                    "watch": row.spec.watch,
                    "pattern": row.spec.pattern,
                    "name": file.name,
                    "mtime_ns": file.mtime_ns,
                    "size": file.size,
                }
                queued.append(
                    QueuedEvent(
                        id=new_request_id(),
                        namespace=row.namespace,
                        function=row.function,
                        trigger=Trigger.FOLDER,
                        kind=Kind.FILE,
                        payload=b"",
                        meta=meta,
                        created_at=self._clock(),
                    )
                )
            await self._dispatcher.add(tx, queued)
        self._dispatcher.added(queued)
