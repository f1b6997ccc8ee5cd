"""Pulling large blobs: every byte, at the client's own pace, over plain TCP and over TLS."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from registry.sendfile import READ, FileSender
from tests.support.control import until
from tests.support.registry import RegistryProcess, registry_process

LARGE = os.urandom(1 << 20) * 24


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def blob(registry: RegistryProcess) -> str:
    return f"/v2/large/blobs/{registry.push_blob('large', LARGE)}"


def descriptors(registry: RegistryProcess) -> int:
    return len(list(Path(f"/proc/{registry.process.pid}/fd").iterdir()))


def test_a_large_blob_comes_whole_and_its_connection_can_be_used_again(registry: RegistryProcess, blob: str) -> None:
    connection = http.client.HTTPConnection(registry.host, timeout=20)
    for _ in range(3):
        connection.request("GET", blob)
        assert connection.getresponse().read() == LARGE
        connection.request("GET", "/v2/")
        assert connection.getresponse().read() == b"{}"
    connection.close()


def test_pipelined_pulls_come_in_their_order(registry: RegistryProcess, blob: str) -> None:
    """What a thread sends must come behind what the loop has written, and before the next answer's head."""
    wanted = f"GET {blob} HTTP/1.1\r\nHost: r\r\n\r\n".encode()
    last = b"GET /v2/ HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"
    with socket.create_connection(registry.address, timeout=20) as client:
        client.sendall(wanted * 3 + last)
        got = bytearray()
        while chunk := client.recv(1 << 20):
            got += chunk
    rest = bytes(got)
    for _ in range(3):
        head, _, rest = rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert rest[: len(LARGE)] == LARGE
        rest = rest[len(LARGE) :]
    assert rest.startswith(b"HTTP/1.1 200")


def test_a_part_begins_and_ends_where_it_should(registry: RegistryProcess, blob: str) -> None:
    for start, end in ((1, READ), (READ, len(LARGE) - 2), (len(LARGE) - 1, len(LARGE) - 1)):
        reply = registry.call("GET", blob, headers={"Range": f"bytes={start}-{end}"})
        assert (reply.status, reply.body) == (206, LARGE[start : end + 1])
        assert reply.headers["Content-Range"] == f"bytes {start}-{end}/{len(LARGE)}"


def test_slow_readers_stop_nobody_and_those_who_leave_leave_nothing(registry: RegistryProcess, blob: str) -> None:
    before = descriptors(registry)
    slow = []
    for _ in range(20):  # more than there are threads
        client = socket.create_connection(registry.address, timeout=20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET {blob} HTTP/1.1\r\nHost: r\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        slow.append(client)
    began = time.monotonic()
    assert registry.call("GET", blob).body == LARGE
    assert time.monotonic() - began < 10
    for client in slow:
        client.close()
    deadline = time.monotonic() + 10
    while descriptors(registry) > before:
        assert time.monotonic() < deadline, (before, descriptors(registry))
        time.sleep(0.02)


def test_a_client_that_breaks_off_is_no_error(tmp_path: Path) -> None:
    """Nothing in the log, but the push's record: it happens at every Ctrl-C of a pull."""
    with registry_process(tmp_path / "data", log=tmp_path / "log") as running:
        path = f"/v2/large/blobs/{running.push_blob('large', LARGE)}"
        for _ in range(5):
            with socket.create_connection(running.address, timeout=20) as client:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: r\r\n\r\n".encode())
                assert client.recv(12) == b"HTTP/1.1 200"
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert running.call("GET", path).body == LARGE
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert f"faas.audit: blobs.push {path.partition('/blobs/')[0].removeprefix('/v2/')}@sha256:" in line


def test_pulls_beside_each_other_are_all_whole(registry: RegistryProcess, blob: str) -> None:
    wanted = hashlib.sha256(LARGE).digest()
    got: list[bytes] = []

    def one() -> None:
        got.append(hashlib.sha256(registry.call("GET", blob).body).digest())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [wanted] * 8


@asynccontextmanager
async def served(path: Path, size: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server of one file, of which it believes that it has `size` bytes."""
    sender = FileSender()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if not await sender.send(request, response, path, size, 0, size):
            raise web.HTTPNotFound
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
        sender.close()


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    certificate, key = tmp_path / "cert", tmp_path / "key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def test_over_tls_too(tmp_path: Path, tls: ssl.SSLContext) -> None:
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    async with (
        served(file, len(LARGE), tls) as url,
        aiohttp.ClientSession() as session,
        session.get(url, ssl=False) as reply,
    ):
        assert await reply.read() == LARGE


async def test_a_file_of_another_size_is_not_sent_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    async with aiohttp.ClientSession() as session:
        for path in (tmp_path / "file", tmp_path / "absent"):
            async with served(path, 6) as url, session.get(url) as reply:
                assert reply.status == 404


async def test_a_file_that_becomes_shorter_cuts_the_connection(tmp_path: Path) -> None:
    """The head has promised more: a client must not take what came for the whole."""
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    async with served(file, len(LARGE)) as url:
        host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
        writer.write(b"GET / HTTP/1.1\r\nHost: r\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"Content-Length: {len(LARGE)}".encode() in head
        os.truncate(file, 1 << 20)
        got = 0
        try:
            while chunk := await reader.read(1 << 20):
                got += len(chunk)
        except ConnectionError:
            pass
        assert got < len(LARGE)
        writer.close()


async def test_a_client_that_closes_with_the_last_byte_was_served(tmp_path: Path) -> None:
    """Its request is cancelled then; what was sent whole counts all the same."""
    file, sender, served_whole = tmp_path / "file", FileSender(), 0
    file.write_bytes(LARGE[: 2 << 20])

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal served_whole
        response = web.StreamResponse()
        await sender.send(request, response, file, 2 << 20, 0, 2 << 20)
        served_whole += 1
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = ("127.0.0.1", runner.addresses[0][1])

    def pull() -> None:
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: r\r\n\r\n")
            left = 2 << 20
            got = client.recv(1 << 20)
            left -= len(got.partition(b"\r\n\r\n")[2])
            while left:
                left -= len(client.recv(min(left, 1 << 20)))

    try:
        for _ in range(100):
            await asyncio.to_thread(pull)
        await until(lambda: served_whole == 100)
    finally:
        await runner.cleanup()
        sender.close()
