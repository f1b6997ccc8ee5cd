"""Idle WebSocket connections: what each costs in memory, and what a steady load beside them notices.

    python -m tests.benchmarks.websockets [CONNECTIONS]

One server; the steady load alone, then beside the connections, then alone again, in turns. Memory is the server's Pss.
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.machine import memory_mib
from tests.support.server import RunningServer
from tests.support.steady import GOOD, GOOD_TOML, Steady
from tests.support.websocket_client import handshake

SECONDS = 8.0
ROUNDS = 3
BATCH = 50


def opened(server: RunningServer, path: str, count: int) -> list[socket.socket]:
    host, _, port = server.public.removeprefix("http://").rpartition(":")
    clients: list[socket.socket] = []
    while len(clients) < count:
        batch = [socket.create_connection((host, int(port)), 30) for _ in range(min(BATCH, count - len(clients)))]
        for client in batch:
            client.sendall(handshake(path))
        for client in batch:
            head = client.recv(4096)
            if not head.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(f"refused: {head[:200]!r}")
        clients += batch
    return clients


def window(server: RunningServer) -> tuple[float, float]:
    """(p50, p99) in ms of the steady load."""
    with Steady(server.public, "/function/steady") as steady:
        time.sleep(SECONDS)
    if steady.lost:
        raise RuntimeError(f"lost: {steady.lost[:3]}")
    return statistics.median(steady.taken) * 1000, steady.p99_ms()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.websockets")
    parser.add_argument("connections", nargs="?", type=int, default=2000)
    count = parser.parse_args().connections
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder, RunningServer(Path(folder) / "data", "--driver", "oci") as server:
        server.push_code(Path(folder), "steady", GOOD, GOOD_TOML)
        server.faas("websocket", "put", "idle", "--public", "--route=$default=steady", f"--connections={count}")
        window(server)  # thrown away: the first round warms up
        alone, beside, costs = [], [], []
        for number in range(ROUNDS):
            alone.append(window(server))
            before = memory_mib(server.pid)
            began = time.monotonic()
            clients = opened(server, "/ws/idle", count)
            took = time.monotonic() - began
            time.sleep(2)
            costs.append((memory_mib(server.pid) - before) * 1024 / count)
            beside.append(window(server))
            for client in clients:
                client.close()
            time.sleep(2)
            print(
                f"round {number + 1}: {count} opened in {took:.1f} s; {costs[-1]:.1f} KB each; p50, p99 in ms "
                f"alone {alone[-1][0]:.2f}, {alone[-1][1]:.2f}; beside {beside[-1][0]:.2f}, {beside[-1][1]:.2f}"
            )
        print(f"memory per connection, the first round's: {costs[0]:.1f} KB")
        for place, name in enumerate(("p50", "p99")):
            ratio = statistics.median(b[place] for b in beside) / statistics.median(a[place] for a in alone)
            print(f"{name} beside {count} idle connections ÷ alone: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
