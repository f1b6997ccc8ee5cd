"""`AccessLog`: one line per request, as JSON or in Apache's combined format, to a file that is bounded, or to stdout.

The loop puts records into a bounded queue; a thread makes lines of them and writes them in batches. What the queue
does not hold is dropped and counted: a slow disk never holds up a request.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORMATS = ("json", "combined")
QUEUED = 10_000  # records, of some hundred bytes each, a few KB at most
BATCH_SECONDS = 0.2
FILE_BYTES = 64 * 2**20
FILES = 4  # the one that is written, and three before it
PATH_CHARACTERS, AGENT_CHARACTERS, TEXT_CHARACTERS = 2048, 512, 256
_MODE = 0o640


@dataclass(slots=True)  # not frozen: that would make it four times as dear
class Record:
    """One request. `at`: Unix time of its end; texts as they came, of any characters (surrogates for stray bytes)."""

    at: float
    request_id: str
    listener: str
    method: str
    path: str
    version: str
    status: int
    bytes_in: int
    bytes_out: int
    seconds: float
    function: str = ""
    qualifier: str = ""
    revision: int = 0
    api: str = ""
    route: str = ""
    stage: str = ""
    caller: str = ""
    address: str = ""
    agent: str = ""
    referer: str = ""
    trace: str = ""
    cold: bool = False


def readable(text: str, most: int = TEXT_CHARACTERS) -> str:
    """What UTF-8 can hold: bytes that were none are written as `\\xff`."""
    text = text[:most]
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()


_KEY = re.compile(r"(faask?)(_|%5[Ff])[A-Za-z0-9_-]{20,}")


def without_keys(text: str) -> str:
    """`text` without keys and tokens of this server, wherever a client put them: a query is part of a line."""
    return _KEY.sub(r"\1\2***", text) if "faas" in text else text


def as_json(record: Record) -> str:
    """One JSON object in ASCII: no character of a request can end the line, colour a terminal or be no UTF-8."""
    entry: dict[str, object] = {
        "time": _stamp(record.at),
        "request_id": record.request_id,
        "listener": record.listener,
        "method": readable(record.method),
        "path": readable(record.path, PATH_CHARACTERS),
        "status": record.status,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "seconds": round(record.seconds, 6),
        "function": record.function,
        "qualifier": record.qualifier,
        "revision": record.revision or None,
        "api": record.api,
        "route": record.route,
        "stage": record.stage,
        "caller": readable(record.caller),
        "address": record.address,
        "user_agent": readable(record.agent, AGENT_CHARACTERS),
        "trace": readable(record.trace),
        "cold": record.cold,
    }
    return json.dumps({key: value for key, value in entry.items() if value not in ("", None)}, ensure_ascii=True)


def as_combined(record: Record) -> str:
    """Apache's `combined`: `%h - %u [%t] "%r" %>s %b "%{Referer}i" "%{User-agent}i"`."""
    path, referer = _quoted(record.path, PATH_CHARACTERS), _quoted(record.referer, AGENT_CHARACTERS) or "-"
    at = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(record.at))
    first = f"{_quoted(record.method)} {path} HTTP/{record.version}"
    caller = _quoted(record.caller).replace(" ", "\\x20") or "-"
    agent = _quoted(record.agent, AGENT_CHARACTERS) or "-"
    return (
        f"{record.address or '-'} - {caller} [{at}] "
        f'"{first}" {record.status} {record.bytes_out or "-"} "{referer}" "{agent}"'
    )


def _quoted(text: str, most: int = TEXT_CHARACTERS) -> str:
    """As Apache: `"` and `\\` behind a backslash, everything but printable ASCII as `\\xhh`."""
    text = text[:most]
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return "".join(
        f"\\{chr(b)}" if b in b'"\\' else chr(b) if 0x20 <= b < 0x7F else f"\\x{b:02x}" for b in raw
    )  # fmt: skip


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"


class AccessLog:
    """`start` it, `put` records, `close` it. `path` None is stdout; `dropped` is called with how many were."""

    def __init__(
        self,
        path: Path | None,
        written_as: str,
        *,
        dropped: Callable[[int], None] = lambda count: None,
        queued: int = QUEUED,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._path = path
        self._line = as_json if written_as == "json" else as_combined
        self._dropped = dropped
        self._queued = queued
        self._file_bytes = file_bytes
        self._records: deque[Record] = deque()
        self._wake = threading.Event()
        self._ending = False
        self._lost = self._told = 0  # of what the disk did not take, counted by the thread; and told of, by the loop
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, record: Record) -> None:
        """On the loop: costs an append."""
        if len(self._records) >= self._queued:
            self._dropped(1)
            return
        self._records.append(record)
        if not self._wake.is_set():
            self._wake.set()
        if (lost := self._lost - self._told) > 0:
            self._told += lost
            self._dropped(lost)

    def close(self, seconds: float = 2.0) -> None:
        """Blocking. Write what is queued, within `seconds`."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait()
            if not self._ending:
                time.sleep(BATCH_SECONDS)  # more come meanwhile: one write for all
            self._wake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        while self._records:
            batch = [self._records.popleft() for _ in range(min(len(self._records), 1000))]
            data = "".join(f"{self._line(record)}\n" for record in batch).encode()
            try:
                self._out(data)
            except OSError:
                self._lost += len(batch)  # a full disk: the requests go on

    def _out(self, data: bytes) -> None:
        if self._path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, _MODE)  # anew each time: whoever rotates it himself may
        try:
            if os.fstat(descriptor).st_size + len(data) > self._file_bytes and os.fstat(descriptor).st_size:
                os.close(descriptor)
                descriptor = -1
                self._rotate()
                descriptor = os.open(self._path, flags, _MODE)
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _rotate(self) -> None:
        """`access.log` → `.1` → `.2` → `.3`, which goes."""
        assert self._path is not None
        for number in range(FILES - 1, 0, -1):
            before = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                before.replace(self._path.with_name(f"{self._path.name}.{number}"))
