"""Heads that were seen before: what is taken for known, and that it makes no difference to whoever asked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from faas.leases import KnownHead
from worker.http_connection import BrokenConnection, HttpConnection
from worker.known_heads import MOST, MOST_BYTES, KnownHeads

OK = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"
FIELDS = ((b"X-A", b"1"), (b"Content-Length", b"2"))


class Answer:
    """What a connection tells. Implements `worker.http_connection.Sink`."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.body = b""
        self.was_known = False

    def whole(self, head: KnownHead, body: bytes) -> None:
        self.was_known = True
        self.head(head.status, head.fields)
        self.data(body)
        self.end(None)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.told += [status, tuple(headers)]

    def data(self, piece: bytes) -> None:
        self.body += piece

    def end(self, error: BaseException | None) -> None:
        self.told.append(error and type(error))


class Wire(asyncio.Transport):
    """Nobody's socket."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_cut = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def abort(self) -> None:
        self.is_cut = True


def connected(heads: KnownHeads) -> HttpConnection:
    connection = HttpConnection(heads)
    connection.connection_made(Wire())
    return connection


def asked(connection: HttpConnection, *pieces: bytes, method: str = "GET") -> Answer:
    answer = Answer()
    connection.send(method, b"?", answer)
    for piece in pieces:
        connection.data_received(piece)
    return answer


async def test_the_second_answer_with_the_same_head_is_known_and_tells_the_same() -> None:
    connection = connected(KnownHeads())
    first, second = asked(connection, OK + b"ab"), asked(connection, OK + b"cd")
    assert (first.was_known, second.was_known) == (False, True)
    assert first.told == second.told == [200, FIELDS, None]
    assert (first.body, second.body) == (b"ab", b"cd")
    assert connection.is_reusable


async def test_what_was_learned_on_one_connection_holds_on_the_function_s_others() -> None:
    heads = KnownHeads()
    asked(connected(heads), OK + b"ab")
    assert asked(connected(heads), OK + b"cd").was_known


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(1, len(OK) + 2, 7), 2)))
async def test_a_known_head_in_pieces_is_parsed_and_tells_the_same(cuts: tuple[int, int]) -> None:
    connection = connected(KnownHeads())
    asked(connection, OK + b"ab")
    answer, (at, then) = OK + b"cd", cuts
    found = asked(connection, answer[:at], answer[at:then], answer[then:])
    assert not found.was_known
    assert (found.told, found.body) == ([200, FIELDS, None], b"cd")
    assert connection.is_reusable
    assert asked(connection, OK + b"ef").was_known


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab", "GET"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", "GET"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "GET"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", "GET"),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * MOST_BYTES + b"\r\nContent-Length: 2\r\n\r\nab", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\nab", "GET"),
    ],
)
async def test_what_says_more_than_its_length_is_parsed_each_time(data: bytes, method: str) -> None:
    heads = KnownHeads()
    first = asked(connected(heads), data, method=method)
    second = asked(connected(heads), data, method=method)
    assert not second.was_known
    assert (first.told, first.body) == (second.told, second.body)


async def test_a_known_head_answers_no_head_request() -> None:
    connection = connected(KnownHeads())
    asked(connection, OK + b"ab")
    found = asked(connection, OK, method="HEAD")
    assert (found.was_known, found.told, found.body) == (False, [200, FIELDS, None], b"")
    assert asked(connected(KnownHeads()), OK + b"ab").body == b"ab"


async def test_more_than_the_known_length_is_no_answer_to_the_next_request() -> None:
    connection = connected(KnownHeads())
    asked(connection, OK + b"ab")
    found = asked(connection, OK + b"cd" + OK + b"no")
    assert (found.was_known, found.body) == (False, b"cd")
    assert not connection.is_reusable


async def test_a_known_head_that_nobody_asked_for_ends_the_connection() -> None:
    connection = connected(KnownHeads())
    asked(connection, OK + b"ab")
    connection.data_received(OK + b"cd")
    assert not connection.is_open


async def test_less_than_the_known_length_breaks_off_where_the_connection_ends() -> None:
    connection = connected(KnownHeads())
    asked(connection, OK + b"ab")
    found = asked(connection, OK + b"c")
    connection.connection_lost(None)
    assert found.told == [200, FIELDS, BrokenConnection]


async def test_heads_that_are_new_each_time_fill_no_memory_and_are_not_learned_for_a_while() -> None:
    heads = KnownHeads()
    connection = connected(heads)
    for number in range(3 * MOST):
        asked(connection, b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 0\r\n\r\n" % number)
    assert len(heads._known) <= MOST
    assert heads._pause
