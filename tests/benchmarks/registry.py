"""The registry's data path beside Debian's docker-registry, nginx with the same files, and bare hashing and copying."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.client import free_port
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.benchmarks.nginx import started
from tests.benchmarks.partners import ran
from tests.support.registry import RegistryProcess, registry_process

ROUNDS = 5
LARGE = 256 << 20
SMALL, COUNT = 100 << 10, 200
PARALLEL = 4
CHUNK = 1 << 20
READY_SECONDS = 20.0
REPOSITORY = "bench/blobs"
METHOD = (
    f"one blob of {LARGE >> 20} MiB, and {COUNT} of {SMALL >> 10} KiB over one connection; new bytes each round, their"
    " digests known beforehand; a push is POST, then PUT with the whole body. No login, no TLS, loopback, page cache"
    " warm, fsync as each does it. Pulls are received and thrown away."
)
DISTRIBUTION = """
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {work}}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
"""
NGINX = """
user root; worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/errors;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


class Blobs:
    """Fresh bytes and their digests, in files of a folder so that every method has the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pattern = os.urandom(LARGE)

    def fresh(self, size: int, count: int) -> list[tuple[str, bytes]]:
        """(hex of the sha256, bytes): nobody has seen them before."""
        made = []
        for _ in range(count):
            start = secrets.randbelow(LARGE - size + 1)
            data = secrets.token_bytes(16) + self._pattern[start + 16 : start + size]
            made.append((hashlib.sha256(data).hexdigest(), data))
        return made

    def file(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def push(host: str, blobs: Sequence[tuple[str, bytes]]) -> float:
    """Milliseconds for all of them, one after the other over one connection."""
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began = time.perf_counter()
    for name, data in blobs:
        location = _asked(connection, "POST", f"/v2/{REPOSITORY}/blobs/uploads/", 202)
        location = location.removeprefix(f"http://{host}")
        joiner = "&" if "?" in location else "?"
        _asked(connection, "PUT", f"{location}{joiner}digest=sha256:{name}", 201, data)
    taken = time.perf_counter() - began
    connection.close()
    return taken * 1000


def _asked(connection: http.client.HTTPConnection, method: str, path: str, status: int, body: bytes = b"") -> str:
    connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != status:
        raise RuntimeError(f"{method} {path}: {answer.status} {said[:200]!r}")
    return answer.headers.get("Location", "")


def pull(host: str, paths: Sequence[str], size: int) -> float:
    """Milliseconds for all of them, one after the other over one connection."""
    connection = http.client.HTTPConnection(host, timeout=120)
    room = memoryview(bytearray(CHUNK))
    began = time.perf_counter()
    for path in paths:
        connection.request("GET", path)
        answer = connection.getresponse()
        left = size
        while left and (got := answer.readinto(room)):
            left -= got
        answer.read()
        if answer.status != 200 or left:
            raise RuntimeError(f"GET {path}: {answer.status}, {left} bytes are missing")
    taken = time.perf_counter() - began
    connection.close()
    return taken * 1000


def pull_parallel(host: str, path: str, size: int) -> float:
    """Milliseconds until all of `PARALLEL` processes have it."""
    words = ["curl", "-sf", "-o", "/dev/null", f"http://{host}{path}"]
    began = time.perf_counter()
    clients = [subprocess.Popen(words) for _ in range(PARALLEL)]
    if any(client.wait(120) for client in clients):
        raise RuntimeError(f"GET {path}: curl failed")
    return (time.perf_counter() - began) * 1000


def push_parallel(host: str, blobs: Sequence[tuple[str, bytes]]) -> float:
    """Milliseconds for all of them over `PARALLEL` connections."""
    with ThreadPoolExecutor(PARALLEL) as threads:
        began = time.perf_counter()
        list(threads.map(lambda n: push(host, blobs[n::PARALLEL]), range(PARALLEL)))
        return (time.perf_counter() - began) * 1000


def hash_and_copy(blobs: Blobs, folder: Path) -> float:
    """`openssl sha256` and `cp`, one after the other, flushed: the least that storing and checking costs."""
    [(_, data)] = blobs.fresh(LARGE, 1)
    source, target = blobs.file("source", data), folder / "target"
    began = time.perf_counter()
    ran("openssl", "sha256", str(source))
    ran("cp", str(source), str(target))
    taken = time.perf_counter() - began
    target.unlink()
    return taken * 1000


@contextmanager
def distribution(work: Path) -> Iterator[str]:
    """Debian's docker-registry; its host."""
    port = free_port()
    work.mkdir()
    (work / "config.yml").write_text(DISTRIBUTION.format(work=work, port=port))
    with started("docker-registry", "serve", work / "config.yml"):
        _ready(port)
        yield f"127.0.0.1:{port}"


@contextmanager
def nginx(work: Path, root: Path) -> Iterator[str]:
    port = free_port()
    work.mkdir()
    (work / "nginx.conf").write_text(NGINX.format(work=work, port=port, root=root))
    with started("nginx", "-e", work / "errors", "-c", work / "nginx.conf"):
        _ready(port)
        yield f"127.0.0.1:{port}"


def _ready(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        ours = stack.enter_context(registry_process(work / "ours"))
        theirs = stack.enter_context(distribution(work / "theirs"))
        static = stack.enter_context(nginx(work / "nginx", work / "static"))
        blobs = Blobs(work)
        paths = _stored(blobs, work / "static", (ours.host, theirs))
        servers = {"faas": ours.host, "docker-registry": theirs}
        methods: dict[str, Callable[[], float]] = {"push large: openssl + cp": partial(hash_and_copy, blobs, work)}
        for name, host in servers.items():
            methods[f"push large: {name}"] = lambda host=host: push(host, blobs.fresh(LARGE, 1))  # type: ignore[misc]
            methods[f"push small: {name}"] = lambda host=host: push(host, blobs.fresh(SMALL, COUNT))  # type: ignore[misc]
            methods[f"push small, 4 connections: {name}"] = lambda host=host: push_parallel(  # type: ignore[misc]
                host, blobs.fresh(SMALL, COUNT)
            )
        for name, host in {**servers, "nginx": static}.items():
            large, small = paths[name == "nginx"]
            methods[f"pull large: {name}"] = partial(pull, host, [large], LARGE)
            methods[f"pull large, 4 at once: {name}"] = partial(pull_parallel, host, large, LARGE)
            methods[f"pull small: {name}"] = partial(pull, host, small, SMALL)
        found = interleaved(methods, rounds or ROUNDS)
        peak = _peak_mib(ours)
    return _report(found, peak)


def _stored(blobs: Blobs, static: Path, registries: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The blobs that are pulled, put everywhere. Paths of the large one and the small ones: in registries, in nginx."""
    static.mkdir()
    large, small = blobs.fresh(LARGE, 1), blobs.fresh(SMALL, COUNT)
    for host in registries:
        push(host, large + small)
    for name, data in large + small:
        (static / name).write_bytes(data)
    return [
        (f"{base}{large[0][0]}", [f"{base}{name}" for name, _ in small])
        for base in (f"/v2/{REPOSITORY}/blobs/sha256:", "/")
    ]


def _peak_mib(registry: RegistryProcess) -> float:
    status = Path(f"/proc/{registry.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def _report(found: dict[str, list[float]], peak: float) -> Report:
    rows = {name: Row(name, values) for name, values in found.items()}

    def compared(what: str, partner: str, must: float | None, goal: float | None) -> Figure:
        return ratio(f"{what}: faas ÷ {partner}", rows[f"{what}: faas"], rows[f"{what}: {partner}"], must, goal)

    figures = [
        compared("pull large", "nginx", 1.2, 1.0),
        compared("pull large, 4 at once", "nginx", 1.2, 1.0),
        compared("push large", "docker-registry", 1.0, None),
        compared("push large", "openssl + cp", None, 1.5),
        compared("push small", "docker-registry", 0.5, 0.25),
        compared("push small, 4 connections", "docker-registry", 0.5, 0.25),
        compared("pull small", "docker-registry", 0.5, 0.25),
        compared("pull small", "nginx", None, None),
    ]
    rows["peak"] = Row("faas: peak memory", [peak], "MiB")
    return Report("registry", METHOD, list(rows.values()), figures)
