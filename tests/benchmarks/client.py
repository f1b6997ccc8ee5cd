"""The clients: one blocking HTTP connection with as little of its own as can be, wrk for many, h2load at a rate."""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.steady import percentile

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.001
ATTEMPT_SECONDS = 0.1
WRK_SECONDS = 2


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Connection:
    """Keeps one connection; `get` returns the answer's body. Raises OSError where it broke, RuntimeError if not 200."""

    def __init__(self, address: tuple[str, int], path: str = "/", seconds: float = DEADLINE_SECONDS) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._socket = socket.create_connection(address, seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self) -> bytes:
        self._socket.sendall(self._request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head, body = data[:end].lower(), data[end + 4 :]
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        if head.split()[1] != b"200":
            raise RuntimeError(f"{head.splitlines()[0].decode()}: {body[:500]!r}")
        return body

    def _more(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionResetError("closed before the answer")
        return data

    def close(self) -> None:
        self._socket.close()


def first_answer(address: tuple[str, int], path: str = "/", seconds: float = DEADLINE_SECONDS) -> None:
    """Connect, ask once, and read the whole answer."""
    connection = Connection(address, path, seconds)
    try:
        connection.get()
    finally:
        connection.close()


def poll(address: tuple[str, int]) -> None:
    """Ask until it answers: every millisecond while nothing listens, or what listens closes.

    An attempt is given up after ATTEMPT_SECONDS: a lost SYN to a container that is not there yet costs a second.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            return first_answer(address, seconds=ATTEMPT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Load:
    """What a client saw: times in µs; `failed` counts socket errors and answers that are not 2xx."""

    rate: float
    p50: float
    p99: float
    requests: int
    failed: int


def wrk(url: str, connections: int) -> Load:
    """One thread, `connections` that are kept, WRK_SECONDS long, each asking again as soon as it is answered."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{WRK_SECONDS}s", "--timeout", "5s", "--latency", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return parsed(done.stdout)


def parsed(text: str) -> Load:
    """wrk's report."""

    def number(pattern: str) -> float:
        match = re.search(pattern, text)
        return float(match[1]) if match else 0.0

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = sum(map(int, errors.groups())) if errors else 0
    return Load(
        number(r"Requests/sec:\s+([\d.]+)"),
        _microseconds(text, "50%"),
        _microseconds(text, "99%"),
        int(number(r"(\d+) requests in")),
        failed + int(number(r"Non-2xx or 3xx responses: (\d+)")),
    )


def paced(url: str, connections: int, rate: float, seconds: float) -> Load:
    """One thread, `connections` that are kept, together `rate` requests a second, whatever the answers take."""
    count = round(rate * seconds)
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as folder:
        log = Path(folder) / "times"
        command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-n{count}", f"--rps={rate / connections:.1f}"]
        subprocess.run([*command, f"--log-file={log}", url], capture_output=True, timeout=seconds + 60, check=True)
        rows = [line.split() for line in log.read_text().splitlines()]  # begun at, status, µs
    times = [float(taken) for _, status, taken in rows if status == "200"]
    began = [int(at) for at, *_ in rows]
    spent = (max(began) - min(began)) / 1e6
    return Load(len(rows) / spent, percentile(times, 0.5), percentile(times, 0.99), len(rows), count - len(times))


def _microseconds(text: str, share: str) -> float:
    match = re.search(rf"{share}\s+([\d.]+)(us|ms|s)\b", text)
    if match is None:
        raise ValueError(f"wrk did not say its {share}: {text}")
    return float(match[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[match[2]]
