"""Requests as no client should send them, made by chance; one in ten is as it should be, and must succeed.

Each has a mark of its own in its path, which the function that it reaches sends back: an answer with another one's mark
was meant for somebody else.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from tests.support.smuggling import FORMS

SEEDS = (
    b"GET /function/hello/MARK HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /function/web/MARK?x=1 HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\nX-A: b\r\nConnection: close\r\n\r\n",
    b"POST /function/hello/MARK HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"POST /function/web/MARK HTTP/1.0\r\nHost: a\r\nContent-Type: x/y\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /function/web/MARK HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"2\r\nhi\r\n0\r\n\r\n",
)
PIECES = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\r\n\r\n", b"+", b"-", b"0", b"5", b"\x7f", b"\xff", b"%", b"#",
    b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Transfer-Encoding: chunked\r\n", b"/../",
    b"Transfer-Encoding: identity\r\n", b"Connection: X-A\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n",
    b"GET /function/hello HTTP/1.1\r\n", b" HTTP/1.1", b"HTTP/1.0", b"http://b", b"X_A: 1\r\n", b" folded\r\n", b";",
)  # fmt: skip
KEPT = b"GET /function/hello/MARK HTTP/1.1\r\nHost: a\r\n\r\n"  # its connection stays
SMUGGLED = b"GET /function/hello/smuggledz HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
_CHUNKED = b"POST /function/web/MARK HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
_LAST = b"0\r\n\r\n"
_CHUNKS = (
    b"+2\r\nhi\r\n" + _LAST,
    b"0x2\r\nhi\r\n" + _LAST,
    b"-1\r\n\r\n",
    b"zz\r\n",
    b"2 \r\nhi\r\n" + _LAST,
    b"2\nhi\n0\n\n",
    b"2;" + b"e" * 70_000 + b"\r\nhi\r\n" + _LAST,
    b"f" * 17 + b"\r\nhi",
    b"7fffffffffffffff\r\nhi\r\n",
    b"2\r\nhello\r\n" + _LAST,
    b"2\r\nhi" + _LAST,
    b"5\r\nhi\r\n" + _LAST,
    b"2\r\nhi\r\n0",
    b"2\r\nhi\r\n0\r\nT: " + b"t" * 70_000 + b"\r\n\r\n",
    b"2\r\nhi\r\n0\r\nContent-Length: 5\r\nHost: b\r\n\r\n",
    b"1\r\na\r\n" * 2_000 + _LAST,
    b"\r\n\r\n",
)
_LENGTHS = (
    *(b"0", b"1", b"4", b"6", b"50", b"05", b""),
    *(b"-5", b"+5", b"5,5", b"5 5", b"0x5", b"1" * 30, b"\xb2", b"5\x00"),
)
_NOT_UTF8 = (
    *(b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80"),
    *(b"%ff%c0%af", b"%00", b"%ed%a0%80"),
)


@dataclass(frozen=True)
class Asked:
    """`pieces` go out with `pause` seconds between them. `good`: how many answers with 200 must come, in the order of
    `marks`, one each; 0 where anything may come that is no failure of ours."""

    marks: tuple[bytes, ...]
    pieces: tuple[bytes, ...]
    good: int = 0
    pause: float = 0.0
    is_one_refusal: bool = False  # it must be refused, once

    @property
    def request(self) -> bytes:
        return b"".join(self.pieces)


def mark_of(number: int) -> bytes:
    return b"mark%dz" % number


def mutated(chance: random.Random, request: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, end = sorted(chance.randrange(len(request) + 1) for _ in range(2))
        how = chance.randrange(5)
        if how == 0:
            request = request[:at] + chance.choice(PIECES) + request[at:]
        elif how == 1:
            request = request[:at] + request[at + chance.randrange(1, 4) :]
        elif how == 2:
            request = request[:at] + bytes([chance.randrange(256)]) + request[at + 1 :]
        elif how == 3:
            request = request[:end] + request[at:end] + request[end:]
        else:
            lines = request.split(b"\r\n")
            chance.shuffle(lines)
            request = b"\r\n".join(lines)
    return request


def asked(chance: random.Random, number: int) -> Asked:
    """One in ten good ones; half of the others are plain ones with a few bytes changed."""
    mark = mark_of(number)
    if number % 10 == 0:
        return _good(chance, number)
    if chance.random() < 0.5:
        return Asked((mark,), (mutated(chance, chance.choice(SEEDS).replace(b"MARK", mark)),))
    return chance.choice(_KINDS)(chance, mark)


def split(chance: random.Random, request: bytes) -> tuple[bytes, ...]:
    """In two to six pieces."""
    ends = sorted({0, len(request), *(chance.randrange(1, len(request)) for _ in range(chance.randrange(1, 6)))})
    return tuple(request[at:end] for at, end in itertools.pairwise(ends))


def _good(chance: random.Random, number: int) -> Asked:
    mark = mark_of(number)
    last = chance.choice(SEEDS)
    how = chance.randrange(3)
    if how == 0:
        return Asked((mark,), (last.replace(b"MARK", mark),), 1)
    if how == 1:
        return Asked((mark,), split(chance, last.replace(b"MARK", mark)), 1, 0.01)
    marks = tuple(mark[:-1] + b"-%dz" % place for place in range(chance.randrange(2, 6)))
    pipelined = b"".join(KEPT.replace(b"MARK", one) for one in marks[:-1]) + last.replace(b"MARK", marks[-1])
    return Asked(marks, (pipelined,), len(marks))


def _smuggled(chance: random.Random, mark: bytes) -> Asked:
    form = chance.choice(list(FORMS.values())).replace(b"/first", b"/" + mark)
    return Asked((mark,), (form + SMUGGLED,), is_one_refusal=True)


def _bad_chunks(chance: random.Random, mark: bytes) -> Asked:
    return Asked((mark,), split(chance, _CHUNKED.replace(b"MARK", mark) + chance.choice(_CHUNKS)), pause=0.002)


def _huge_head(chance: random.Random, mark: bytes) -> Asked:
    first, _, rest = chance.choice(SEEDS).replace(b"MARK", mark).partition(b"\r\n")
    size = chance.choice((7_900, 8_100, 20_000, 70_000, 300_000))
    fields = (
        b"X-A: " + b"a" * size,
        b"\r\n".join(b"X-%d: b" % number for number in range(size // 10)),
        b"Cookie: " + b"a=b; " * (size // 5),
        b"a" * size,
    )
    if chance.randrange(4) == 0:
        first = first.replace(mark, mark + b"/" + b"p" * size)
    return Asked((mark,), (first + b"\r\n" + chance.choice(fields) + b"\r\n" + rest,))


def _wrong_length(chance: random.Random, mark: bytes) -> Asked:
    length = chance.choice(_LENGTHS)
    head = b"POST /function/%b/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n"
    return Asked((mark,), (head % (chance.choice((b"hello", b"web")), mark, length) + b"hello",))


def _not_utf8(chance: random.Random, mark: bytes) -> Asked:
    odd, request = chance.choice(_NOT_UTF8), chance.choice(SEEDS).replace(b"MARK", mark)
    place = chance.choice((b" HTTP/1.", b"\r\nHost", b"a\r\n", b"?x=1", b"\r\n\r\n", b"/function/"))
    return Asked((mark,), (request.replace(place, odd + place, 1),))


def _pipelined(chance: random.Random, mark: bytes) -> Asked:
    """A bad one among good ones."""
    bad = mutated(chance, chance.choice(SEEDS).replace(b"MARK", mark))
    return Asked((mark,), (KEPT.replace(b"MARK", mark) + bad + KEPT.replace(b"MARK", mark),))


def _slow(chance: random.Random, mark: bytes) -> Asked:
    bad = mutated(chance, chance.choice(SEEDS).replace(b"MARK", mark))
    return Asked((mark,), split(chance, bad) if len(bad) > 1 else (bad,), pause=0.01)


_KINDS = (_smuggled, _bad_chunks, _huge_head, _wrong_length, _not_utf8, _pipelined, _slow)
