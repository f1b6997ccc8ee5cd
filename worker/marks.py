"""`Mark`: the platform's lines around an invocation that ended well, as figures: on the disk too. They become text
where somebody reads the log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from faas.leases import Report
from faas.protocol import LogRecord

MARK_BYTES = 600  # at least what one has in memory
MEGABYTE = 1_048_576
MICRO = 1_000_000
_START = b'[%d,%d,"%b",%b]\n'  # time (µs, Unix), revision, instance, request id
_END = b'[%d,%d,"%b",%b,%d,%d,%d,%d]\n'  # and duration (µs), billed (ms), memory, most memory (bytes)
_WHOLE = b'[%d,%d,"%b",%b,%d,%d,%d,%d,%d]\n'  # and when it began (µs, Unix)

quoted = json.encoder.encode_basestring_ascii  # `json.dumps` of a text, at a fifth of its cost


class Origin(NamedTuple):
    """Whose lines these are."""

    revision: int
    instance: str


class Mark(NamedTuple):
    """START where there is no `report`, else END and REPORT; with `began` (Unix time) its START too, of one that was as
    short as what is logged together."""

    time: float
    origin: Origin
    request_id: str
    report: Report | None
    began: float = 0.0


def encode(mark: Mark) -> bytes:
    """A line of JSON: a list of whole numbers, but for two texts. The lines of text, three for each invocation, would
    take three times the bytes and the time."""
    time, (revision, instance), request_id, report, began = mark
    if report is None:
        return _START % (time * MICRO, revision, instance.encode(), quoted(request_id).encode())
    duration, billed, memory, peak, _, _ = report
    said = (
        time * MICRO, revision, instance.encode(), quoted(request_id).encode(),
        duration * MICRO + 0.5, billed * 1000 + 0.5, memory, peak,
    )  # fmt: skip
    return _WHOLE % (*said, began * MICRO) if began else _END % said


def decode(values: list[Any]) -> Mark:
    """Raises ValueError, TypeError for what is none."""
    time, revision, instance, request_id, *figures = values
    report, began = None, 0.0
    if figures:
        duration, billed, memory, peak, *more = figures
        report = Report(duration / MICRO, billed / 1000, memory, peak)
        if more:
            [began] = more
    return Mark(time / MICRO, Origin(revision, instance), request_id, report, began / MICRO)


def figures(report: Report, tab: str = "\t") -> str:
    """What follows the request's id in a REPORT line, but for init and failures."""
    return (
        f"Duration: {report.duration_seconds * 1000:.2f} ms{tab}"
        f"Billed Duration: {round(report.billed_seconds * 1000)} ms{tab}"
        f"Memory Size: {report.memory_bytes // MEGABYTE} MB{tab}"
        f"Max Memory Used: {math.ceil(report.max_memory_bytes / MEGABYTE)} MB"
    )


def records(mark: Mark) -> Iterator[LogRecord]:
    """The same, for who follows."""
    time, origin, request_id, report, began = mark
    texts = list[tuple[float, str]]()
    if report is None or began:
        texts.append((began or time, f"START RequestId: {request_id} Version: {origin.revision}"))
    if report is not None:
        texts.append((time, f"END RequestId: {request_id}"))
        texts.append((time, f"REPORT RequestId: {request_id}\t{figures(report)}"))
    for at, text in texts:
        yield LogRecord(at, text, "system", origin.revision, origin.instance, request_id)
