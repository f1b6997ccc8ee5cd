"""RFC 6455's frames: what a client may send, and what is the end of its connection."""

from __future__ import annotations

import random

import pytest

from gateway.edge.websocket.frames import (
    FRAGMENTS,
    NO_STATUS,
    Broken,
    FrameMeter,
    Frames,
    Opcode,
    Piece,
    close_frame,
    frame,
)
from tests.support.websocket_client import masked


def read(data: bytes, *, message: int = 1000, one: int = 1000, step: int = 0) -> list[Piece]:
    """All pieces of `data`, fed whole or `step` bytes at a time."""
    frames, found = Frames(message, one), []
    for begin in range(0, len(data), step or len(data)):
        frames.feed(data[begin : begin + (step or len(data))])
        while (piece := frames.next()) is not None:
            found.append(piece)
    return found


def broken(data: bytes, **limits: int) -> int:
    with pytest.raises(Broken) as caught:
        read(data, **limits)
    return caught.value.code


@pytest.mark.parametrize("step", [0, 1, 3])
def test_messages_of_every_length_and_in_pieces_come_out_whole(step: int) -> None:
    texts = [b"", b"a", b"x" * 125, b"y" * 126, b"z" * 900]
    sent = b"".join(masked(Opcode.TEXT, text) for text in texts)
    sent += masked(Opcode.TEXT, "grü".encode()[:3], fin=False) + masked(Opcode.PING, b"?")
    sent += masked(Opcode.CONTINUATION, b"", fin=False) + masked(Opcode.CONTINUATION, "grü".encode()[3:])
    sent += masked(Opcode.BINARY, b"\xff\x00") + masked(Opcode.CLOSE, b"\x03\xe8bye")
    assert read(sent, step=step) == [
        *(Piece(Opcode.TEXT, text) for text in texts),
        Piece(Opcode.PING, b"?"),
        Piece(Opcode.TEXT, "grü".encode()),
        Piece(Opcode.BINARY, b"\xff\x00"),
        Piece(Opcode.CLOSE, b"bye", 1000),
    ]


def test_a_long_frame_has_a_length_of_eight_bytes_both_ways() -> None:
    content = random.Random(1).randbytes(70_000)
    assert read(masked(Opcode.BINARY, content), message=70_000, one=70_000)[0].payload == content
    assert frame(Opcode.BINARY, content)[:10] == b"\x82\x7f" + (70_000).to_bytes(8, "big")
    assert frame(Opcode.TEXT, b"a" * 126)[:4] == b"\x81\x7e\x00\x7e"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(Opcode.TEXT, b"not masked"), 1002),
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x8b\x80\0\0\0\0", 1002),
        (masked(Opcode.PING, b"a" * 126), 1002),
        (masked(Opcode.PING, b"", fin=False), 1002),
        (masked(Opcode.CLOSE, b"\x03"), 1002),
        (masked(Opcode.CLOSE, (1005).to_bytes(2, "big")), 1002),
        (masked(Opcode.CLOSE, (2999).to_bytes(2, "big")), 1002),
        (masked(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
        (masked(Opcode.CONTINUATION, b"a"), 1002),
        (masked(Opcode.TEXT, b"", fin=False) + masked(Opcode.TEXT, b""), 1002),
        (b"\x81\xfe\x00\x05" + b"\0" * 9, 1002),  # a length that is not the shortest
        (b"\x81\xff" + (65_535).to_bytes(8, "big"), 1002),
        (masked(Opcode.TEXT, b"\xff"), 1007),
        (masked(Opcode.TEXT, b"\xed\xa0\x80"), 1007),  # a surrogate
        (masked(Opcode.TEXT, "ü".encode()[:1]), 1007),
        (b"\x82\xfe\x03\xe9", 1009),  # refused by its head
        (b"\x82\xff" + b"\xff" * 8, 1009),
        (masked(Opcode.TEXT, b"", fin=False) + masked(Opcode.CONTINUATION, b"", fin=False) * FRAGMENTS, 1008),
    ],
)
def test_what_the_protocol_forbids_ends_the_connection_with_its_code(data: bytes, code: int) -> None:
    assert broken(data) == code


def test_a_message_is_bounded_whatever_its_frames_are() -> None:
    pieces = masked(Opcode.BINARY, b"a" * 400, fin=False) + masked(Opcode.CONTINUATION, b"a" * 400, fin=False)
    assert read(pieces + masked(Opcode.CONTINUATION, b"a" * 200)) == [Piece(Opcode.BINARY, b"a" * 1000)]
    assert broken(pieces + masked(Opcode.CONTINUATION, b"a" * 201)) == 1009
    assert broken(masked(Opcode.BINARY, b"a" * 401), one=400) == 1009


def test_what_is_held_of_a_message_is_counted_and_then_given_back() -> None:
    frames = Frames(1000, 1000)
    frames.feed(masked(Opcode.TEXT, b"a" * 300, fin=False) + masked(Opcode.CONTINUATION, b"b" * 300)[:50])
    assert frames.next() is None
    assert frames.held == 350
    frames.feed(masked(Opcode.CONTINUATION, b"b" * 300)[50:])
    assert frames.next() == Piece(Opcode.TEXT, b"a" * 300 + b"b" * 300)
    assert frames.held == 0


def test_a_close_frame_is_never_longer_than_it_may_be() -> None:
    assert close_frame(1001, "ü" * 100)[:2] == bytes((0x88, 2 + 122))
    close_frame(1001, "ü" * 100)[4:].decode()
    assert close_frame(NO_STATUS) == b"\x88\x00"


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_meter_sees_frames_and_messages_that_are_too_large_however_they_come(step: int) -> None:
    fine = masked(Opcode.TEXT, b"a" * 500, fin=False) + masked(Opcode.PING, b"?" * 100)
    fine += masked(Opcode.CONTINUATION, b"a" * 500) + masked(Opcode.BINARY, b"a" * 800) + masked(Opcode.TEXT, b"")
    too_long = masked(Opcode.TEXT, b"a" * 801)
    no_control = masked(Opcode.PING, b"?" * 126)
    too_many = masked(Opcode.TEXT, b"a" * 600, fin=False) + masked(Opcode.CONTINUATION, b"a" * 401)

    def within(data: bytes) -> bool:
        meter = FrameMeter(1000, 800)
        return all(meter.within(data[begin : begin + step]) for begin in range(0, len(data), step))

    assert within(fine)
    assert not within(fine + too_long)
    assert not within(fine + too_many)
    assert not within(fine + no_control), "as a message that counts on no limit"
