"""Idle WebSocket connections and slow clients, held at once: the memory of each, and what a steady load notices."""

from __future__ import annotations

import contextlib
import itertools
import resource
import select
import socket
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

from tests.benchmarks import machine
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.support.server import RunningServer
from tests.support.steady import GOOD, GOOD_TOML, Beside, Steady
from tests.support.websocket_client import handshake

COUNT = 2000  # of each kind, where so many descriptors are there
ROUNDS = 3
WINDOW_SECONDS = 8.0
SETTLE_SECONDS = 2.0
DRIBBLE_SECONDS = 10.0  # between two bytes of one slow client
BATCH = 50
PART, SPARE = 5, 50  # of a server's descriptors one of so many is for a listener's connections; for others'
HEAD = b"GET /function/steady/x HTTP/1.1\r\nHost: a\r\nX-Slow: "
BODY = b"POST /function/steady/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
METHOD = (
    f"One call each 20 ms to a Python function with 2 to 4 instances, open loop, for {WINDOW_SECONDS:g} s: alone, and"
    " beside idle connections of a WebSocket API and as many clients who send a byte each"
    f" {DRIBBLE_SECONDS:g} s, one half of them in a request's head, the other in its body. Memory is what the server's"
    " Pss grew by as they came, one kind after the other, ÷ their number; the most of all rounds, since later ones find"
    " memory that is free. Windows interleave; a ratio is one of medians."
)


class Window(NamedTuple):
    """Of the steady load, in ms; `cpu`: of the server, in ms a second."""

    p50: float
    p99: float
    cpu: float
    lost: list[str]


@dataclass(frozen=True, slots=True)
class Crowd:
    """`socket_kib`, `slow_kib`: memory of each; `kept`: slow clients that were there to the end of the window."""

    window: Window
    socket_kib: float
    slow_kib: float
    kept: int


class Dribble(Beside):
    """One byte of each client, all within `DRIBBLE_SECONDS`, again and again."""

    def __init__(self, clients: list[socket.socket]) -> None:
        super().__init__()
        self._clients = clients

    def run(self) -> None:
        for client in itertools.cycle(self._clients):
            if self._enough.wait(DRIBBLE_SECONDS / len(self._clients)):
                return
            with contextlib.suppress(OSError):  # it was cut
                client.send(b"a")


def measure(rounds: int | None) -> Report:
    count = _count()
    with machine.work_folder() as work, machine.server("--driver", "oci") as running:
        running.push_code(work, "steady", GOOD, GOOD_TOML)
        running.faas("websocket", "put", "idle", "--public", "--route=$default=steady", f"--connections={count}")
        machine.ready(running, "steady", 2)
        crowds: list[Crowd] = []  # the first round's too

        def beside() -> Window:
            crowds.append(crowd(running, count))
            return crowds[-1].window

        found = interleaved({"alone": lambda: window(running), "beside": beside}, rounds or ROUNDS)
    rows = [
        Row(f"{name}, {where}", [getattr(one, name) for one in windows], "ms/s" if name == "cpu" else "ms")
        for where, windows in found.items()
        for name in ("p50", "p99", "cpu")
    ]
    lost = sum(len(one.lost) for windows in found.values() for one in windows)
    return Report(
        "websockets", METHOD, rows, [*_ratios(rows), *_costs(crowds, count), Figure("lost", lost, 0, unit="")]
    )


def _count() -> int:
    """So many of each kind; all descriptors that may be had are this process's, and the server's that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(COUNT, (hard // PART - SPARE) // 2)


def _ratios(rows: list[Row]) -> list[Figure]:
    p50, p99, cpu, p50_beside, p99_beside, cpu_beside = rows
    return [
        ratio("p50, beside all ÷ alone", p50_beside, p50),
        ratio("p99, beside all ÷ alone", p99_beside, p99, 2),
        ratio("CPU of the server, beside all ÷ alone", cpu_beside, cpu),
    ]


def _costs(crowds: list[Crowd], count: int) -> list[Figure]:
    return [
        Figure(f"memory of each of {count} idle WebSockets", max(one.socket_kib for one in crowds), unit="KiB"),
        Figure(f"memory of each of {count} slow clients", max(one.slow_kib for one in crowds), unit="KiB"),
        Figure("slow clients kept through the window", min(one.kept for one in crowds), unit=""),
    ]


def window(running: RunningServer) -> Window:
    before, began = machine.cpu_seconds(running.pid), time.monotonic()
    with Steady(running.public, "/function/steady") as steady:
        time.sleep(WINDOW_SECONDS)
    cpu = (machine.cpu_seconds(running.pid) - before) / (time.monotonic() - began)
    return Window(statistics.median(steady.taken) * 1000, steady.p99_ms(), cpu * 1000, steady.lost)


def crowd(running: RunningServer, count: int) -> Crowd:
    with contextlib.ExitStack() as held:
        empty = machine.memory_mib(running.pid)
        for client in opened(running, count, [handshake("/ws/idle")], held):
            answer = client.recv(4096)
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(f"refused: {answer[:200]!r}")
        time.sleep(SETTLE_SECONDS)
        sockets = machine.memory_mib(running.pid)
        slow = opened(running, count, [HEAD, BODY], held)
        with Dribble(slow):
            time.sleep(SETTLE_SECONDS)
            both = machine.memory_mib(running.pid)
            seen = window(running)
        kept = count - sum(_is_answered(client) for client in slow)
    time.sleep(SETTLE_SECONDS)
    return Crowd(seen, (sockets - empty) * 1024 / count, (both - sockets) * 1024 / count, kept)


def _is_answered(client: socket.socket) -> bool:
    """Or cut."""
    look = select.poll()
    look.register(client, select.POLLIN)
    return bool(look.poll(0))


def opened(running: RunningServer, count: int, firsts: list[bytes], held: contextlib.ExitStack) -> list[socket.socket]:
    """Connections on which one of `firsts` has been sent, in turn."""
    host, _, port = running.public.removeprefix("http://").rpartition(":")
    clients: list[socket.socket] = []
    for number in range(count):
        client = held.enter_context(socket.create_connection((host, int(port)), 30))
        client.sendall(firsts[number % len(firsts)])
        clients.append(client)
        if number % BATCH == 0:
            time.sleep(0.02)  # what the server takes at once lies in its queue
    return clients
