"""What one instance writes, from its pipes to its function's log.

The pipes are always drained, whatever is done with the lines: a function never waits for its log. A line holds
256 KB, an invocation's log 10 MB; what is cut is counted and said in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from faas.protocol import LogRecord
from worker.logs import FunctionLog

LINE_BYTES = 262_144
INVOCATION_BYTES = 10 * 1_048_576
READ_BYTES = 65_536
FLOOD_SECONDS = 0.002  # pause per read of what is dropped: a flood must not cost the server a core
TAIL_LINES = 50
TAIL_CHARACTERS = 8192


class Output:
    """Pumps stdout and stderr. `request_id` is whose lines these are, where the instance runs one at a time."""

    def __init__(self, log: FunctionLog, revision: int, instance_id: str) -> None:
        self._log = log
        self._revision = revision
        self._instance = instance_id
        self._pipes: list[_Pipe] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._bytes = 0
        self._cut = 0
        self.request_id = ""

    def open(self, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._pipes = [_Pipe(self, stdout, "stdout"), _Pipe(self, stderr, "stderr")]
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(pipe.pump(), name=f"log of {self._instance}") for pipe in self._pipes]

    def begin(self, request_id: str) -> None:
        """An invocation begins; its share of the log starts anew."""
        self.request_id = request_id
        self._bytes = self._cut = 0

    def take_now(self) -> None:
        """Log what has arrived by now, the beginning of a line too."""
        for pipe in self._pipes:
            pipe.take_now()
        if self._cut:
            self.system(f"{self._cut} bytes of output were cut", self.request_id)
            self._cut = 0

    def system(self, message: str, request_id: str = "") -> None:
        """A line of the platform's own."""
        self._log.append(LogRecord(time.time(), message, "system", self._revision, self._instance, request_id))

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

    # Called by pipes

    def room(self, size: int) -> bool:
        """Count `size` bytes of output; False where the invocation's log is full."""
        if self._bytes + size > INVOCATION_BYTES:
            self._cut += size
            return False
        self._bytes += size
        return True

    def cut(self, size: int) -> None:
        self._cut += size

    @property
    def full(self) -> bool:
        return self._bytes + READ_BYTES > INVOCATION_BYTES

    def line(self, line: bytes, stream: str) -> None:
        message = line.decode("utf-8", "replace")
        self._tail.append(message[:1024])
        self._log.append(LogRecord(time.time(), message, stream, self._revision, self._instance, self.request_id))


class _Pipe:
    """One stream, cut into lines."""

    def __init__(self, output: Output, reader: asyncio.StreamReader, stream: str) -> None:
        self._output = output
        self._reader = reader
        self._stream = stream
        self._line = bytearray()
        self._ended = False

    async def pump(self) -> None:
        while True:
            data = await self._reader.read(READ_BYTES)
            if data:
                self._feed(data)
            elif self._reader.at_eof():  # else `take_now` was quicker
                break
            if self._output.full:
                await asyncio.sleep(FLOOD_SECONDS)
        self._ended = True
        self._end_line()

    def take_now(self) -> None:
        """Log what the stream holds, without waiting for more: `read` returns at once where there is something."""
        step = self._reader.read(READ_BYTES)
        try:
            step.send(None)
        except StopIteration as done:
            if done.value:
                self._feed(done.value)
        except (RuntimeError, OSError):
            pass  # the pump waits: there is nothing; or the pipe has broken: the pump sees to it
        else:
            step.close()
        self._end_line()

    def _feed(self, data: bytes) -> None:
        if not self._output.room(len(data)):
            self._end_line()
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._extend(line)
            self._output.line(bytes(self._line).rstrip(b"\r"), self._stream)
            self._line.clear()
        self._extend(rest)

    def _extend(self, piece: bytes) -> None:
        room = LINE_BYTES - len(self._line)
        self._line += piece[:room]
        if len(piece) > room:
            self._output.cut(len(piece) - max(0, room))

    def _end_line(self) -> None:
        if self._line:
            self._output.line(bytes(self._line), self._stream)
            self._line.clear()
