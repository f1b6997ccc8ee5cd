"""What functions wrote, on disk: JSON lines under `DIR/<namespace>/<function>/`, bounded by two files per function.

Appending costs the loop a list's append; one thread writes batches, so the order of lines is the order of calls.
Nothing here raises towards a function: what cannot be stored is counted and dropped. While a batch of a function is on
its way to the disk its next lines are only collected, and what is on its way counts as not yet written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from faas.protocol import LogQuery, LogRecord
from worker import marks
from worker.marks import MARK_BYTES, Mark, quoted

T = TypeVar("T")

log = logging.getLogger("worker.logs")

FILE_BYTES = 16 * 1_048_576  # then it becomes the previous one, and the one before that goes
BUFFER_BYTES = 8 * 1_048_576  # not yet written, per function: a disk that stands still costs lines, not memory
FLUSH_SECONDS = 0.1  # each time a thread asks for the interpreter in the midst of requests, some of them wait for it
FLUSH_BYTES = 1_048_576  # so many do not wait
FOLLOWER_LINES = 10_000  # a reader that falls behind further loses lines, and is told
CURRENT, PREVIOUS = "current.jsonl", "previous.jsonl"

Batch = list[bytes]


class FunctionLog:
    """One function's log."""

    __slots__ = (
        "_store", "batches", "buffer", "buffered", "dropped", "dropped_at", "folder", "followers", "is_whole", "sent",
    )  # fmt: skip

    def __init__(self, store: LogStore, folder: Path) -> None:
        self._store = store
        self.folder = folder
        self.buffer: Batch = []
        self.buffered = 0  # bytes of that
        self.sent = 0  # bytes that are on their way
        self.batches = 0  # on their way
        self.dropped = 0
        self.dropped_at = 0.0
        self.followers: set[Follower] = set()
        self.is_whole = False  # the writer's: the file ends with a line's end, as far as is known

    @property
    def size(self) -> int:
        """Bytes that are not written: of the buffer and of what is on its way."""
        return self.buffered + self.sent

    def append(self, record: LogRecord) -> None:
        line = encode(record)
        if not self._put(line, len(line), record.time):
            return
        for follower in self.followers:
            follower.put(record)

    def mark(self, mark: Mark) -> None:
        """The platform's lines around an invocation. They are encoded here: in the writer's thread that would hold up
        the loop, for as long as a thread keeps the interpreter."""
        if self.buffer and not self.followers and self.buffered + self.sent < BUFFER_BYTES - MARK_BYTES:
            self.buffer.append(marks.encode(mark))  # as nearly always; what is in the buffer, the store knows of
            self.buffered += MARK_BYTES
            return
        if not self._put(marks.encode(mark), MARK_BYTES, mark.time) or not self.followers:
            return
        for record in marks.records(mark):
            for follower in self.followers:
                follower.put(record)

    def mark_all(self, marked: Sequence[Mark]) -> None:
        """`mark` each."""
        size = len(marked) * MARK_BYTES
        if not self.followers and self.size + size <= BUFFER_BYTES:
            self.buffer += map(marks.encode, marked)
            self.buffered += size
            self._store.changed(self)
            return
        for mark in marked:
            self.mark(mark)

    def _put(self, line: bytes, size: int, now: float) -> bool:
        if self.size + size > BUFFER_BYTES:
            self.dropped += 1
            self.dropped_at = now
            return False
        self.buffer.append(line)
        self.buffered += size
        self._store.changed(self)
        return True


class Follower:
    """Lines for one reader that goes on reading. Bounded: what does not fit is counted and said."""

    def __init__(self) -> None:
        self._lines: deque[LogRecord] = deque()
        self._skipped = 0
        self._arrived = asyncio.Event()
        self._ended = False

    def put(self, record: LogRecord) -> None:
        if len(self._lines) >= FOLLOWER_LINES:
            self._skipped += 1
            return
        self._lines.append(record)
        self._arrived.set()

    def end(self) -> None:
        """Nothing will come any more."""
        self._ended = True
        self._arrived.set()

    async def get(self) -> LogRecord | None:
        """The next line; None at the end."""
        while not self._lines:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        record = self._lines.popleft()
        if self._skipped and not self._lines:
            self.put(LogRecord(record.time, f"{self._skipped} lines were skipped: read faster", "system"))
            self._skipped = 0
        return record


class LogStore:
    """All functions' logs below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs: dict[tuple[str, str], FunctionLog] = {}
        self._changed: dict[FunctionLog, None] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="logs")  # one: batches stay in order
        self._complained = False

    def of(self, namespace: str, function: str) -> FunctionLog:
        found = self._logs.get((namespace, function))
        if found is None:
            found = self._logs[namespace, function] = FunctionLog(self, self._folder / namespace / function)
        return found

    def changed(self, function: FunctionLog) -> None:
        """It has lines that are to be written."""
        self._changed[function] = None
        if function.buffered >= FLUSH_BYTES and not function.batches:
            self._submit(function, self._write)
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._write_all)

    def _write_all(self) -> None:
        self._flush = None
        for function in [function for function in self._changed if not function.batches]:
            self._submit(function, self._write)

    def _submit(self, function: FunctionLog, write: Callable[[FunctionLog, Batch], T]) -> asyncio.Future[T]:
        """Have `write` called, in the writer's thread, with all that was appended so far."""
        self._changed.pop(function, None)
        if function.dropped:
            lost = LogRecord(function.dropped_at, f"{function.dropped} lines could not be stored", "system")
            function.buffer.append(encode(lost))
            function.dropped = 0
        batch, function.buffer = function.buffer, []
        size, function.buffered = function.buffered, 0
        function.sent += size
        function.batches += 1
        writing = asyncio.get_running_loop().run_in_executor(self._writer, write, function, batch)
        writing.add_done_callback(lambda done: self._written(function, size, done))
        return writing

    def _written(self, function: FunctionLog, size: int, done: asyncio.Future[T]) -> None:
        function.batches -= 1
        function.sent -= size
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("a function's log could not be written", exc_info=error)
        if function in self._changed:
            self.changed(function)

    def _write(self, function: FunctionLog, lines: Batch) -> None:
        """In the writer's thread."""
        if not lines:
            return
        try:
            _append(function, b"".join(lines))
            self._complained = False
        except OSError as error:
            function.is_whole = False
            if not self._complained:
                self._complained = True  # once: a full disk must not fill the server's own log too
                log.error("cannot write a function's log: %s", error)

    def _snapshot(self, function: FunctionLog, batch: Batch) -> list[tuple[BinaryIO, int]]:
        """In the writer's thread: the files as they are after `batch`, with their sizes, oldest first."""
        self._write(function, batch)
        files: list[tuple[BinaryIO, int]] = []
        for name in (PREVIOUS, CURRENT):
            with contextlib.suppress(OSError):
                file = open(function.folder / name, "rb")  # noqa: SIM115 - closed by the reader
                files.append((file, os.fstat(file.fileno()).st_size))
        return files

    async def query(self, query: LogQuery) -> AsyncGenerator[LogRecord, None]:
        """The newest `limit` lines that match, in order; with `follow` all that come after them, without a gap."""
        function = self.of(query.namespace, query.function)
        follower = Follower() if query.follow else None
        if follower is not None:
            function.followers.add(follower)  # together with taking the buffer: no line is missed, none comes twice
        try:
            snapshot = self._submit(function, self._snapshot)
            try:
                files = await asyncio.shield(snapshot)
            except asyncio.CancelledError:  # the lines that it took along are written all the same
                snapshot.add_done_callback(_close_files)
                raise
            reading = asyncio.create_task(asyncio.to_thread(_newest, files, query))
            for record in await asyncio.shield(reading):  # who goes leaves files that are read and closed all the same
                yield record
            while follower is not None and (line := await follower.get()) is not None:
                if matches(line, query):
                    yield line
        finally:
            if follower is not None:
                function.followers.discard(follower)

    def forget(self, namespace: str, function: str) -> None:
        """Remove a deleted function's log; lines that still come begin a new one."""
        known = self._logs.pop((namespace, function), None)
        if known is not None:
            self._changed.pop(known, None)
            for follower in known.followers:
                follower.end()
        self._writer.submit(shutil.rmtree, self._folder / namespace / function, True)

    async def written(self) -> None:
        """What was appended so far is in its files: a crash of the server does not lose it any more."""
        self._submit_all()
        await asyncio.get_running_loop().run_in_executor(self._writer, bool)

    async def close(self) -> None:
        self._submit_all()
        await asyncio.to_thread(self._writer.shutdown)

    def _submit_all(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for function in list(self._changed):
            self._submit(function, self._write)


def _append(function: FunctionLog, batch: bytes) -> None:
    """Write all of it, in as few system calls as will do: after each the thread asks for the interpreter anew. Raises
    OSError."""
    current = function.folder / CURRENT
    file = _opened(current)
    try:
        size = os.fstat(file).st_size
        if size + len(batch) > FILE_BYTES:
            current.replace(function.folder / PREVIOUS)
            full, file, size = file, _opened(current), 0
            os.close(full)
        if size and not function.is_whole and os.pread(file, 1, size - 1) != b"\n":
            # A crash or a full disk has cut the last line off; what is glued to that could not be read either.
            os.write(file, b"\n")
        left = memoryview(batch)
        while left:
            left = left[os.write(file, left) :]
        function.is_whole = True
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def encode(record: LogRecord) -> bytes:
    """One line of JSON, ASCII: no byte that a function wrote can end it or reach a terminal."""
    return (
        f'{{"time":{record.time:.6f},"stream":"{record.stream}","revision":{record.revision},'
        f'"instance":"{record.instance}","request_id":{quoted(record.request_id)},'
        f'"message":{quoted(record.message)}}}\n'
    ).encode()


def decode(line: bytes) -> Iterable[LogRecord]:
    """None of a line that a crash cut off; of a mark all its lines."""
    try:
        value = json.loads(line)
        if isinstance(value, list):
            return list(marks.records(marks.decode(value)))
        record = LogRecord(
            value["time"],
            value["message"],
            value["stream"],
            value["revision"],
            value["instance"],
            value["request_id"],
        )
    except (ValueError, KeyError, TypeError):
        return ()
    return (record,)


def matches(record: LogRecord, query: LogQuery) -> bool:
    if query.since is not None and record.time < query.since:
        return False
    if query.until is not None and record.time >= query.until:
        return False
    if query.request_id and record.request_id != query.request_id:
        return False
    if not record.instance.startswith(query.instance) or query.stream not in ("", record.stream):
        return False
    return query.contains in record.message


def _close_files(snapshot: asyncio.Future[list[tuple[BinaryIO, int]]]) -> None:
    if not snapshot.cancelled() and snapshot.exception() is None:
        for file, _ in snapshot.result():
            file.close()


def _newest(files: list[tuple[BinaryIO, int]], query: LogQuery) -> list[LogRecord]:
    """In a thread: read snapshots; closes them."""
    found: deque[LogRecord] = deque(maxlen=max(0, query.limit))
    wanted = json.dumps(query.request_id).encode() if query.request_id else b""
    with contextlib.ExitStack() as stack:
        for file, _ in files:
            stack.enter_context(file)
        for file, size in files:
            for line in _lines(file, size):
                if wanted in line:
                    found.extend(record for record in decode(line) if matches(record, query))
    return list(found)


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Whole lines within the first `size` bytes."""
    while (left := size - file.tell()) > 0:
        line = file.readline(left)
        if line.endswith(b"\n"):
            yield line
