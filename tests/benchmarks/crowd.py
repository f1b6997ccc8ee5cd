"""A crowd of clients in one thread: all ask at the same moment, each once."""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.client import DEADLINE_SECONDS


@dataclass(frozen=True, slots=True)
class Answered:
    """`seconds` from the moment when all had been told to ask; `status` is 0 where there was no answer."""

    seconds: float
    status: int


def all_at_once(address: tuple[str, int], paths: Sequence[str], deadline: float = DEADLINE_SECONDS) -> list[Answered]:
    """One connection for each path, all connected before the first asks."""
    answers: dict[int, Answered] = {}
    with selectors.DefaultSelector() as selector:
        sockets = [socket.create_connection(address, deadline) for _ in paths]
        try:
            heads = dict.fromkeys(range(len(paths)), b"")
            for number, (client, path) in enumerate(zip(sockets, paths, strict=True)):
                client.setblocking(False)
                selector.register(client, selectors.EVENT_READ, number)
                request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                client.send(request.encode())
            began = time.perf_counter()
            while len(answers) < len(paths) and (left := deadline - (time.perf_counter() - began)) > 0:
                for key, _ in selector.select(left):
                    number = key.data
                    data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                    heads[number] += data
                    if not data:  # the answer is whole: the server closes behind it
                        selector.unregister(key.fileobj)
                        words = heads[number].split(b" ", 2)
                        status = int(words[1]) if len(words) > 2 else 0
                        answers[number] = Answered(time.perf_counter() - began, status)
        finally:
            for client in sockets:
                client.close()
    return [answers.get(number, Answered(deadline, 0)) for number in range(len(paths))]


def ideal_seconds(calls: int, call_seconds: float, most: int, start_seconds: float, cores: int) -> float:
    """The least time in which `calls` at once, each of `call_seconds`, can be served by up to `most` instances, where
    each start takes a core for `start_seconds` and instances serve one call at a time."""
    ready = [math.ceil((n + 1) / cores) * start_seconds for n in range(min(most, calls))]
    ends = sorted(begin + (k + 1) * call_seconds for begin in ready for k in range(calls))
    return ends[calls - 1]
