"""`read`: a request's head by a grammar that leaves nothing to interpret. What it does not match is somebody else's.

Every form in which two readers could see different requests (two lengths, a length and a coding, folded lines, bare
line feeds, `+5`, a second Host) is outside of it, and so is all that plain requests do without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.headers import NOT_PASSED
from gateway.trace import NAMES as TRACE_NAMES

MOST_BYTES = 8_000  # of a head; longer ones are rare
MOST_FIELDS = 100
MOST_BODY = 65_536

_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}:[\t\x20-\x7e\x80-\xff]*\r\n"
_LINE = rb"(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) (/[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*) HTTP/1\.([01])\r\n"
_HEAD = re.compile(_LINE + rb"((?:" + _FIELD + rb"){1,%d})\r\n" % MOST_FIELDS)
_BEGUN = re.compile(_LINE + rb"(?:" + _FIELD + rb")*[^\x00\r\n]*\r?")
_HOST = re.compile(rb"[A-Za-z0-9._~-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,4}")
# With one of these a request is not plain; `close`: a Connection field may name it, and then it is not passed on.
_OTHERS = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"close"})
_REPEATABLE = frozenset(
    {b"cookie", b"accept", b"accept-encoding", b"cache-control", b"forwarded", b"x-forwarded-for", b"via"}
)
_CLAIMS = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto"})
_TRACES = frozenset(name.encode() for name in TRACE_NAMES)
_NOT_PASSED = frozenset(name.encode() for name in NOT_PASSED)


@dataclass(frozen=True, slots=True)
class Head:
    """`fields`: those that go on to the function, names in lower case, values as latin-1; `claims`: what the client
    says of who is behind it; `traces`: to what its request belongs."""

    method: str
    target: str
    is_1_1: bool
    keeps: bool  # the connection stays for the next request
    length: int  # of the body
    host: str
    fields: list[tuple[str, str]]
    claims: list[tuple[str, str]]
    traces: list[tuple[str, str]]

    def claimed(self, name: str) -> list[str]:
        return [value for known, value in self.claims if known == name]


def begins_well(data: bytes) -> bool:
    """Whether `data` may become a head that `read` knows: its line is there, and what follows is framed like fields."""
    return _BEGUN.fullmatch(data) is not None


def read(data: bytes) -> Head | None:
    """The head that `data` is, to its empty line; None where it is not one of a plain request."""
    match = _HEAD.fullmatch(data)
    if match is None:
        return None
    method, target, minor, lines = match.groups()
    fields: list[tuple[str, str]] = []
    claims: list[tuple[str, str]] = []
    traces: list[tuple[str, str]] = []
    seen: set[bytes] = set()
    host = length = connection = None
    for line in lines[:-2].split(b"\r\n"):
        written, _, value = line.partition(b":")
        name, value = written.lower(), value.strip(b" \t")
        if name in seen and name not in _REPEATABLE:
            return None
        seen.add(name)
        if name == b"host":
            host = value
        elif name == b"content-length":
            length = value
        elif name == b"connection":
            connection = value.lower()
        elif name in _OTHERS:
            return None
        if name in _CLAIMS:
            claims.append((name.decode(), value.decode("latin-1")))
        elif name in _TRACES:
            traces.append((name.decode(), value.decode("latin-1")))
        elif name not in _NOT_PASSED and b"_" not in name:
            fields.append((name.decode(), value.decode("latin-1")))
    if host is None or not _HOST.fullmatch(host) or connection not in (None, b"keep-alive", b"close"):
        return None
    if length is not None and (not _LENGTH.fullmatch(length) or int(length) > MOST_BODY):
        return None
    is_1_1 = minor == b"1"
    keeps = connection != b"close" if is_1_1 else connection == b"keep-alive"
    size = int(length) if length is not None else 0
    return Head(method.decode(), target.decode(), is_1_1, keeps, size, host.decode(), fields, claims, traces)
