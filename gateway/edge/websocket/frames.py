"""RFC 6455's frames as a server sees them: bytes in, messages and control frames out. No I/O, no clock.

Strict where the RFC says MUST: masked frames, no reserved bits or opcodes, whole and small control frames, lengths in
their shortest form, text that is UTF-8, close codes that exist. Extensions are never agreed to: nothing is compressed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

CONTROL_BYTES = 125
FRAGMENTS = 1024  # of one message: empty ones cost work and count on no limit
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_STATUS, ABNORMAL = 1000, 1001, 1002, 1005, 1006
INVALID_TEXT, POLICY, TOO_BIG, INTERNAL, TRY_AGAIN = 1007, 1008, 1009, 1011, 1013
_TOLD = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


class Opcode(enum.IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_KNOWN = frozenset(Opcode)


class Broken(Exception):
    """The client does not speak the protocol, or says more than it may: close with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Piece:
    """A whole message (TEXT, BINARY) or a control frame; of CLOSE, `payload` is the reason and `code` says why."""

    opcode: Opcode
    payload: bytes
    code: int = 0


class Frames:
    """One connection's bytes from the client. `feed` them, and take `next` until it is None."""

    __slots__ = ("_bytes", "_fragments", "_kind", "_max_frame", "_max_message", "_message", "_size")

    def __init__(self, max_message: int, max_frame: int) -> None:
        self._max_message = max_message
        self._max_frame = max_frame
        self._bytes = bytearray()
        self._message: list[bytes] = []
        self._fragments = 0  # of the message that is not whole yet
        self._size = 0  # of it
        self._kind: Opcode | None = None  # of it

    def feed(self, data: bytes) -> None:
        self._bytes += data

    @property
    def held(self) -> int:
        """Bytes that lie here."""
        return len(self._bytes) + self._size

    def next(self) -> Piece | None:
        """What comes next, or None where it is not whole yet. Raises Broken."""
        while (frame := self._frame()) is not None:
            fin, opcode, payload = frame
            if opcode >= Opcode.CLOSE:
                return _closing(payload) if opcode is Opcode.CLOSE else Piece(opcode, payload)
            if (piece := self._joined(fin, opcode, payload)) is not None:
                return piece
        return None

    def _frame(self) -> tuple[bool, Opcode, bytes] | None:
        held = self._bytes
        if len(held) < 2:
            return None
        first, second = held[0], held[1]
        opcode = _opcode(first)
        fin = bool(first & 0x80)
        if not second & 0x80:
            raise Broken(PROTOCOL_ERROR, "a client's frames are masked")
        length, begin = second & 0x7F, 2
        if opcode >= Opcode.CLOSE and (not fin or length > CONTROL_BYTES):
            raise Broken(PROTOCOL_ERROR, "a control frame is whole and has 125 bytes at most")
        if length >= 126:
            width = 2 if length == 126 else 8
            if len(held) < 2 + width:
                return None
            length, begin = int.from_bytes(held[2 : 2 + width], "big"), 2 + width
            if length < (126 if width == 2 else 65_536):
                raise Broken(PROTOCOL_ERROR, "a frame's length is not in its shortest form")
        if length > self._max_frame and opcode < Opcode.CLOSE:
            raise Broken(TOO_BIG, f"a frame has {self._max_frame} bytes at most")
        if self._size + length > self._max_message and opcode < Opcode.CLOSE:
            raise Broken(TOO_BIG, f"a message has {self._max_message} bytes at most")
        if len(held) < begin + 4 + length:
            return None
        payload = _unmasked(held[begin : begin + 4], held[begin + 4 : begin + 4 + length])
        del held[: begin + 4 + length]
        if not held:
            self._bytes = bytearray()  # what a large frame needed is not kept for an idle connection
        return fin, opcode, payload

    def _joined(self, fin: bool, opcode: Opcode, payload: bytes) -> Piece | None:
        if (opcode is Opcode.CONTINUATION) is (self._kind is None):
            raise Broken(PROTOCOL_ERROR, "frames of a message out of order")
        if opcode is not Opcode.CONTINUATION:
            self._kind = opcode
        self._fragments += 1
        if payload:
            self._message.append(payload)
            self._size += len(payload)
        if not fin:
            if self._fragments >= FRAGMENTS:
                raise Broken(POLICY, f"a message has {FRAGMENTS} frames at most")
            return None
        whole, kind = b"".join(self._message), self._kind
        self._message, self._fragments, self._size, self._kind = [], 0, 0, None
        assert kind is not None
        if kind is Opcode.TEXT:
            _utf8(whole)
        return Piece(kind, whole)


def _opcode(first: int) -> Opcode:
    if first & 0x70:
        raise Broken(PROTOCOL_ERROR, "no extension was agreed to")
    if first & 0x0F not in _KNOWN:
        raise Broken(PROTOCOL_ERROR, "an opcode that is none")
    return Opcode(first & 0x0F)


def _unmasked(mask: bytearray, payload: bytearray) -> bytes:
    """One operation on a large number: a loop over bytes would take thousands of times as long."""
    size = len(payload)
    if mask == b"\0\0\0\0" or not size:
        return bytes(payload)
    pattern = bytes(mask) * (size // 4 + 1)
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pattern[:size], "little")).to_bytes(size, "little")


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Broken(INVALID_TEXT, "text must be UTF-8") from None


def _closing(payload: bytes) -> Piece:
    if not payload:
        return Piece(Opcode.CLOSE, b"", NO_STATUS)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in _TOLD or 3000 <= code <= 4999):
        raise Broken(PROTOCOL_ERROR, "a close code that is none")
    _utf8(payload[2:])
    return Piece(Opcode.CLOSE, payload[2:], code)


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """A whole frame to the client."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """The frame that ends a connection; without a code where `code` is one that is never sent."""
    if code in (NO_STATUS, ABNORMAL):
        return frame(Opcode.CLOSE, b"")
    cut = reason.encode()[: CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return frame(Opcode.CLOSE, code.to_bytes(2, "big") + cut)


class FrameMeter:
    """Measures a client's frames on their way to somebody else who reads them; what is in them is not looked at."""

    __slots__ = ("_head", "_left", "_max_frame", "_max_message", "_message")

    def __init__(self, max_message: int, max_frame: int) -> None:
        """Bytes as they come over the wire; 0: no limit."""
        self._max_message = max_message
        self._max_frame = max_frame
        self._head = b""
        self._left = 0  # bytes of the frame that is passing
        self._message = 0  # bytes of the message so far

    def within(self, data: bytes) -> bool:
        """Whether all frames that have begun by the end of `data` are within the limits."""
        place = min(self._left, len(data))
        self._left -= place
        while place < len(data) or self._head:
            head = self._head + data[place : place + 14 - len(self._head)]
            whole = _head_bytes(head)
            if len(head) < whole:
                self._head = head
                return True
            place += whole - len(self._head)
            self._head = b""
            length = _length(head)
            if head[0] & 0x08 == 0:
                self._message = length + (self._message if head[0] & 0x0F == Opcode.CONTINUATION else 0)
                if 0 < self._max_frame < length or 0 < self._max_message < self._message:
                    return False
            elif length > CONTROL_BYTES:
                return False  # no control frame is so long
            passing = min(length, len(data) - place)
            self._left, place = length - passing, place + passing
        return True


def _head_bytes(head: bytes) -> int:
    """How long a frame's head is, by what is there of it."""
    if len(head) < 2:
        return 2
    return 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0) + (4 if head[1] & 0x80 else 0)


def _length(head: bytes) -> int:
    short = head[1] & 0x7F
    return short if short < 126 else int.from_bytes(head[2 : 4 if short == 126 else 10], "big")
