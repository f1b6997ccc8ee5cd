"""`Mark`: the platform's lines around an invocation that ended well, as figures: they become text where they are
written to the disk, many at a time, or where somebody follows the log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import NamedTuple

from faas.leases import Report
from faas.protocol import LogRecord

MARK_BYTES = 600  # at least what two lines of a mark have
MEGABYTE = 1_048_576

quoted = json.encoder.encode_basestring_ascii  # `json.dumps` of a text, at a fifth of its cost


class Origin(NamedTuple):
    """Whose lines these are."""

    revision: int
    instance: str


class Mark(NamedTuple):
    """START where there is no `report`, else END and REPORT."""

    time: float
    origin: Origin
    request_id: str
    report: Report | None


def encode(mark: Mark) -> str:
    """Its lines, as `worker.logs.encode` would have them."""
    time, origin, request_id, report = mark
    told = quoted(request_id)
    head = (
        f'{{"time":{time:.6f},"stream":"system","revision":{origin.revision},'
        f'"instance":"{origin.instance}","request_id":{told},"message":"'
    )
    told = told[1:-1]
    if report is None:
        return f'{head}START RequestId: {told} Version: {origin.revision}"}}\n'
    return f'{head}END RequestId: {told}"}}\n{head}REPORT RequestId: {told}\\t{figures(report, chr(92) + "t")}"}}\n'


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
    time, origin, request_id, report = mark
    if report is None:
        texts = [f"START RequestId: {request_id} Version: {origin.revision}"]
    else:
        texts = [f"END RequestId: {request_id}", f"REPORT RequestId: {request_id}\t{figures(report)}"]
    for text in texts:
        yield LogRecord(time, text, "system", origin.revision, origin.instance, request_id)
