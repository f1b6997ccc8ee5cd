"""The two requests that nearly every read of a Runtime API's connection consists of, as this server's own runtime
clients write them: an answer, the poll for the next event, or both in one. Whatever is written otherwise is for the
general parser. Pure.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

_ANSWER = re.compile(
    rb"POST /2018-06-01/runtime/invocation/([!-.0-~]{1,128})/response HTTP/1\.1\r\n"
    rb"Host: [!-~]{0,255}\r\nContent-Length: ([0-9]{1,7})\r\n\r\n"
)
_NEXT = re.compile(
    rb"GET /2018-06-01/runtime/invocation/next HTTP/1\.1\r\nHost: [!-~]{0,255}\r\n(?:Content-Length: 0\r\n)?\r\n"
)


POLL_BYTES = 512  # the longest that is known
_known = tuple.__new__  # `Known` itself would call a function written in Python


class Known(NamedTuple):
    """`body` answers the invocation `request_id`, None where none is answered; `polls`: it asks for the next event."""

    request_id: bytes
    body: bytes | None
    polls: bool


POLL = Known(b"", None, True)


def known(data: bytes) -> Known | None:
    """What `data` says where it is that and nothing else, to its last byte; None where it is not."""
    answer = _ANSWER.match(data)
    if answer is None:
        return POLL if len(data) <= POLL_BYTES and _polls(data) else None
    request_id, length = answer.groups()
    begin = answer.end()
    end = begin + int(length)
    if end == len(data):
        return _known(Known, (request_id, data[begin:], False))
    if end < len(data) <= end + POLL_BYTES and _polls(data[end:]):
        return _known(Known, (request_id, data[begin:end], True))
    return None


@functools.lru_cache(maxsize=64)
def _polls(data: bytes) -> bool:
    """Whether it is a poll and nothing else: a runtime client writes the same each time."""
    return _NEXT.fullmatch(data) is not None
