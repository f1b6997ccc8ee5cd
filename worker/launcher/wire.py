"""`Channel`: one end of the socket between server and launcher. A packet is a message, and carries descriptors.

The socket is a pair that the child inherits: it has no name anywhere. The kernel keeps packets whole (SOCK_SEQPACKET),
so there is no half a message; what is larger than a packet travels as a sealed memory file (memfd_create(2)), whose
writer cannot change it any more while it is read.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

PACKET_BYTES = 65_536
MESSAGE_BYTES = 16 * 1024 * 1024  # in a memory file: all arguments and variables of one sandbox, escaped
DESCRIPTORS = 4  # in one packet
QUEUED = 256  # messages that the other end has not taken; beyond them nothing more is read from it
SO_SNDBUFFORCE = 32
SEND_BYTES = 1 << 20
PLAIN, FILED = b"J", b"F"  # the first byte: the message follows, or is the first descriptor's content
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
ROOM = socket.CMSG_SPACE((DESCRIPTORS + 1) * array.array("i").itemsize)
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
GONE = "it has gone"  # the plain end

Message = dict[str, Any]


class Garbage(Exception):
    """What came is no message: whoever sent it does not keep to the rules."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, as root makes them: with room for a burst of packets."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
    return ends


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Received:
    """A message with its descriptors; those that nobody takes are closed."""

    def __init__(self, message: Message, descriptors: list[int]) -> None:
        self.message = message
        self._descriptors = descriptors

    def take(self) -> list[int]:
        """From here on they are the caller's."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def close(self) -> None:
        close_all(self.take())


class Channel:
    """`on_message` is called with each message, `on_end` once, when the other end is gone or sent garbage (its words).

    Both on the loop. Nothing is read as long as the other end does not read what it is sent.
    """

    def __init__(
        self, end: socket.socket, on_message: Callable[[Received], None], on_end: Callable[[str], None]
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._is_reading = self.is_open = True
        self._loop.add_reader(end, self._readable)

    def close(self) -> None:
        """Quick. What is queued is lost."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        for _, descriptors in self._queue:
            close_all(descriptors)
        self._queue.clear()
        self._socket.close()

    # Sending

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send, or queue. The descriptors are the channel's from here on, which closes its copies."""
        text = _encode(message).encode()
        if not self.is_open:
            close_all(descriptors)
            return
        if len(text) < PACKET_BYTES:
            packet, sent = PLAIN + text, list(descriptors)
        else:
            packet, sent = FILED, [memory_file(text), *descriptors]
        if self._queue or not self._try(packet, sent):
            if not self._queue:
                self._loop.add_writer(self._socket, self._writable)
            self._queue.append((packet, sent))
            self._set_reading(len(self._queue) < QUEUED)

    def _try(self, packet: bytes, descriptors: list[int]) -> bool:
        """Whether it has gone; the copies are closed then."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass  # the other end is gone: reading says so
        close_all(descriptors)
        return True

    def _writable(self) -> None:
        while self._queue and self._try(*self._queue[0]):
            self._queue.popleft()
        if not self._queue:
            self._loop.remove_writer(self._socket)
        self._set_reading(len(self._queue) < QUEUED)

    def _set_reading(self, wanted: bool) -> None:
        if wanted != self._is_reading:
            self._is_reading = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._readable)
            else:
                self._loop.remove_reader(self._socket)

    # Receiving

    def _readable(self) -> None:
        """One packet in each turn of the loop: who waits for it goes on before the next one is looked at."""
        try:
            received = _receive(self._socket)
        except (BlockingIOError, InterruptedError):
            return
        except Garbage as error:
            self._end(str(error))
            return
        except OSError as error:
            self._end(error.strerror or "it cannot be read")
            return
        if received is None:
            self._end(GONE)
            return
        try:
            self._on_message(received)
        except Garbage as error:
            self._end(str(error))
        finally:
            received.close()

    def _end(self, why: str) -> None:
        if self.is_open:
            self.close()
            self._on_end(why)


def _receive(end: socket.socket) -> Received | None:
    """The next message; None at the end. Raises BlockingIOError, Garbage, OSError."""
    packet, ancillary, flags, _ = end.recvmsg(PACKET_BYTES + 1, ROOM, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    found = list(descriptors)
    try:
        if not packet and not flags & socket.MSG_CTRUNC:
            close_all(found)
            return None
        if flags & CUT or len(found) > DESCRIPTORS + 1:
            raise Garbage("a packet is too large")
        return Received(_message(packet, found), found)
    except Garbage:
        close_all(found)
        raise


def _message(packet: bytes, descriptors: list[int]) -> Message:
    """A memory file is taken off the list. Raises Garbage."""
    kind, text = packet[:1], packet[1:]
    if kind == FILED and not text and descriptors:
        descriptor = descriptors.pop(0)
        try:
            text = sealed(descriptor, MESSAGE_BYTES)
        finally:
            os.close(descriptor)
    elif kind != PLAIN:
        raise Garbage("a packet is of no kind that is known")
    try:
        message = _decode(text.decode())
    except (ValueError, RecursionError):
        raise Garbage("a packet is no JSON") from None
    if not isinstance(message, dict):
        raise Garbage("a message is no object")
    return message


def memory_file(content: bytes) -> int:
    """A file in memory with this content, which nobody can change."""
    descriptor = os.memfd_create("faas-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(descriptor, len(content))
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sealed(descriptor: int, most: int) -> bytes:
    """What is in a memory file of at most so many bytes. Anything else, which could make its reader wait or see it
    change, is Garbage."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        if seals & SEALS != SEALS or size > most:
            raise Garbage("a file is not sealed, or too large")
        return os.pread(descriptor, size, 0)
    except OSError:
        raise Garbage("a file is no memory file") from None
