"""What one instance writes, from its pipes to its function's log.

The pipes are always drained, whatever is done with the lines: a function never waits for its log. A line holds
256 KB, an invocation's log 10 MB, a line's own cost included; what is cut is counted and said in the log. Lines are
logged in slices, between which others have their turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import time

from faas.leases import Report
from faas.protocol import LogRecord
from worker.logs import FunctionLog
from worker.marks import Mark, Origin

LINE_BYTES = 262_144
INVOCATION_BYTES = 10 * 1_048_576
READ_BYTES = 65_536
LINE_COST = 100  # what each line costs of an invocation's log beside its own bytes: empty ones are not free
SLICE_LINES = 256  # logged at a time
SLICES_NOW = 8  # at most, where somebody cannot wait
FLOOD_LINES = 4096  # of an invocation; more are taken slowly
FLOOD_SECONDS = 0.005  # pause per slice of a flood, and per read of what is dropped: it must not cost the server a core
TAIL_LINES = 50
TAIL_CHARACTERS = 8192
_mark = tuple.__new__  # `Mark` itself would call a function written in Python


class Output:
    """Pumps stdout and stderr. `request_id` is whose lines these are, where the instance runs one at a time."""

    def __init__(self, log: FunctionLog, revision: int, instance_id: str) -> None:
        self._log = log
        self._revision = revision
        self._instance = instance_id
        self._origin = Origin(revision, instance_id)
        self._pipes: list[_Pipe] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._used = 0  # of what an invocation may log
        self._lines = 0
        self._cut = 0
        self._begun = 0.0  # Unix time of the START that is owed
        self.request_id = ""

    def open(self, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._pipes = [_Pipe(self, stdout, "stdout"), _Pipe(self, stderr, "stderr")]
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(pipe.pump(), name=f"log of {self._instance}") for pipe in self._pipes]

    def begin(self, request_id: str) -> None:
        """An invocation begins: what may be logged starts anew, and what is written is its own. Its START is logged
        before anything else, at `say_start`, or with its end."""
        self.say_start()
        if self._cut:
            self._say_cut()
        self.request_id = request_id
        self._used = self._lines = 0
        self._begun = time()

    def say_start(self) -> None:
        """Log the START that is owed, if one is."""
        if self._begun:
            begun, self._begun = self._begun, 0.0
            self._log.mark(_mark(Mark, (begun, self._origin, self.request_id, None, 0.0)))

    @property
    def owes_start(self) -> bool:
        return self._begun > 0

    def goes_on(self, ended: Sequence[tuple[str, Report | list[str]]], request_id: str) -> bool:
        """`end` of the one that has ended, and `begin`, in one; False, and nothing is logged, where there is more to
        log."""
        (ended_id, report), *others = ended
        if others or self._cut or type(report) is not Report:
            return False
        for pipe in self._pipes:
            if pipe.data or pipe.line or pipe.arrived:
                return False
        self.end(ended_id, report)
        self.request_id = request_id
        self._used = self._lines = 0
        self._begun = time()
        return True

    def begin_several(self, begun: Sequence[tuple[str, float]]) -> None:
        """The same of several at once (id, Unix time): nobody knows whose it is what is written."""
        origin = self._origin
        self._used = self._lines = 0
        self._log.mark_all([_mark(Mark, (since, origin, request_id, None, 0.0)) for request_id, since in begun])

    def end_several(self, ended: Sequence[tuple[str, Report, float]]) -> None:
        """END and REPORT of several (id, report, and Unix time of a START that was not logged before, else 0)."""
        now, origin = time(), self._origin
        self._log.mark_all([_mark(Mark, (now, origin, one, report, began)) for one, report, began in ended])

    def end(self, request_id: str, report: Report) -> None:
        """Its END and REPORT, where it ended well."""
        begun, self._begun = self._begun, 0.0
        self._log.mark(_mark(Mark, (time(), self._origin, request_id, report, begun)))

    def take_slice(self, *, begun: bool = True) -> bool:
        """Log some of what has arrived by now, with `begun` the beginning of a line too; whether there is more."""
        more = False
        for pipe in self._pipes:
            if (pipe.data or pipe.line or pipe.arrived) and pipe.take_slice(begun=begun):
                more = True
        return more

    def take_now(self, *, begun: bool = True) -> None:
        """Log what has arrived by now. Of a flood only so much: the rest comes later."""
        for _ in range(SLICES_NOW):
            if not self.take_slice(begun=begun):
                break
        if self._cut:
            self._say_cut()

    def _say_cut(self) -> None:
        if self._cut:
            self.system(f"{self._cut} bytes of output were cut", self.request_id)
            self._cut = 0

    def system(self, message: str, request_id: str = "") -> None:
        """A line of the platform's own."""
        self.say_start()
        self._log.append(LogRecord(time(), message, "system", self._revision, self._instance, request_id))

    def tail(self) -> str:
        """The last lines, for a diagnosis."""
        return "\n".join(self._tail)[-TAIL_CHARACTERS:]

    async def drained(self, seconds: float) -> None:
        """Wait until both pipes have ended, `seconds` at most: a process left behind may hold them open."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.take_now()
        for pipe in self._pipes:
            pipe.drop()
        self._say_cut()

    # Called by pipes

    def room(self, size: int, lines: int) -> bool:
        """Count so much output; False where the invocation's log is full."""
        cost = size + lines * LINE_COST
        if self._used + cost > INVOCATION_BYTES:
            self._cut += size
            return False
        self._used += cost
        self._lines += lines
        return True

    def cut(self, size: int) -> None:
        self._cut += size

    @property
    def is_full(self) -> bool:
        return self._used + READ_BYTES > INVOCATION_BYTES

    @property
    def pause_seconds(self) -> float:
        """After each slice."""
        return FLOOD_SECONDS if self._lines > FLOOD_LINES or self.is_full else 0.0

    def line(self, line: bytes, stream: str, request_id: str) -> None:
        self.say_start()
        message = line.decode("utf-8", "replace")
        self._tail.append(message[:1024])
        self._log.append(LogRecord(time(), message, stream, self._revision, self._instance, request_id))


class _Pipe:
    """One stream, cut into lines. Something can be logged at once where it holds `data`, a `line` or what has
    `arrived`."""

    def __init__(self, output: Output, reader: asyncio.StreamReader, stream: str) -> None:
        self._output = output
        self._reader = reader
        self._stream = stream
        self.data = b""  # read, not yet cut into lines
        self._request_id = ""  # whose it is
        self.line = bytearray()
        self.arrived: bytearray = reader._buffer  # type: ignore[attr-defined]  # the reader's own; there is no other way

    async def pump(self) -> None:
        logged = 0  # since others had their turn
        while True:
            while self.data:
                logged += self._log_slice()
                if logged >= SLICE_LINES or self._output.is_full:
                    logged = 0
                    await asyncio.sleep(self._output.pause_seconds)
            data = await self._reader.read(READ_BYTES)
            if data:
                self._read(data)
            elif self._reader.at_eof() and not self.data:  # else `take_slice` was quicker
                break
        self._end_line()

    def take_slice(self, *, begun: bool) -> bool:
        """Log some of what the stream holds, without waiting for more; whether there is more."""
        if not self.data:
            self._read_now()
        self._log_slice()
        if begun and not self.data:
            self._end_line()
        return bool(self.data)

    def _read_now(self) -> None:
        """`read` returns at once where there is something."""
        step = self._reader.read(READ_BYTES)
        try:
            step.send(None)
        except StopIteration as done:
            self._read(done.value)
        except (RuntimeError, OSError):
            pass  # the pump waits: there is nothing; or the pipe has broken: the pump sees to it
        else:
            step.close()

    def _read(self, data: bytes) -> None:
        self.data += data
        self._request_id = self._output.request_id

    def _log_slice(self) -> int:
        """Log the next lines of what was read; how many."""
        output = self._output
        if output.is_full:  # not even looked at
            self._end_line()
            self.drop()
            return 0
        *lines, rest = self.data.split(b"\n", SLICE_LINES)
        if len(lines) < SLICE_LINES:  # `rest` is the beginning of a line
            self.data, begun = b"", rest
        else:
            self.data, begun = rest, b""
        if not output.room(sum(map(len, lines)) + len(lines) + len(begun), len(lines)):
            self._end_line()
            return len(lines)
        for line in lines:
            self._extend(line)
            output.line(bytes(self.line).rstrip(b"\r"), self._stream, self._request_id)
            self.line.clear()
        self._extend(begun)
        return len(lines)

    def drop(self) -> None:
        """What was read and not logged is cut."""
        self._output.cut(len(self.data))
        self.data = b""

    def _extend(self, piece: bytes) -> None:
        room = LINE_BYTES - len(self.line)
        self.line += piece[:room]
        if len(piece) > room:
            self._output.cut(len(piece) - max(0, room))

    def _end_line(self) -> None:
        if self.line:
            self._output.line(bytes(self.line), self._stream, self._request_id)
            self.line.clear()
