"""The two requests that nearly every read of a Runtime API's connection consists of, as this server's own runtime
clients write them: an answer, the poll for the next event, or both in one. Whatever is written otherwise is for the
general parser. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_ANSWER = re.compile(
    rb"POST /2018-06-01/runtime/invocation/([!-.0-~]{1,128})/response HTTP/1\.1\r\n"
    rb"Host: [!-~]{0,255}\r\nContent-Length: ([0-9]{1,7})\r\n\r\n"
)
_NEXT = re.compile(
    rb"GET /2018-06-01/runtime/invocation/next HTTP/1\.1\r\nHost: [!-~]{0,255}\r\n(?:Content-Length: 0\r\n)?\r\n"
)


class Known(NamedTuple):
    """`body` answers the invocation `request_id`, None where none is answered; `polls`: it asks for the next event."""

    request_id: bytes
    body: bytes | None
    polls: bool


POLL = Known(b"", None, True)


def known(data: memoryview) -> Known | None:
    """What `data` says where it is that and nothing else, to its last byte; None where it is not."""
    answer = _ANSWER.match(data)
    if answer is None:
        poll = _NEXT.fullmatch(data)
        return POLL if poll is not None else None
    begin = answer.end()
    end = begin + int(answer.group(2))
    if end == len(data):
        polls = False
    elif end < len(data) and _NEXT.fullmatch(data, end) is not None:
        polls = True
    else:
        return None
    return Known(bytes(answer.group(1)), bytes(data[begin:end]), polls)
