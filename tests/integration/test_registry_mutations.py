"""Mutated requests: whatever comes, the registry answers, says what was wrong, keeps its memory, and goes on serving.

One request in ten is valid and bound to succeed, so that a registry that refuses everything would not pass.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess, registry_process

SOAK = bool(os.environ.get("FAAS_SOAK"))
REQUESTS = 100_000 if SOAK else 2_000
VALID = 0.1
CLIENTS = 4
ANSWER_SECONDS = 20.0
PATIENCE = 0.3  # seconds
GROWTH = 64 << 20  # bytes that the process may grow by
CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip
BLOB = bytes(range(256)) * 64
STRANGE = (
    "", "..", "%2e%2e", "%2f", "%00", "\x00", "*", "A", "\u00e9", "sha256:", "sha256:" + "0" * 63, "sha256:" + "G" * 64,
    "sha512:" + "0" * 64, "md5:" + "0" * 32, "x" * 300, "-1", "0", "99999999999999999999", "1e3", "nan", "null", "true",
    "'", '"', "<script>", "${x}", "blobs", "uploads", "manifests", "_faas", "tags", "/", "//", "?", "#", "&", "=", ";",
    "%ff", "%", "+", " ", "\t", "application/json", media_types.DOCKER_SCHEMA1, "text/plain; charset=x", "bytes=-",
    "bytes=0-0,2-3", "0-", "5-2", "0-18446744073709551616", "chunked", "gzip", "100-continue", "websocket",
)  # fmt: skip
METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", "BREW", "get", "")
HEADERS = (
    "Range", "Content-Range", "Content-Type", "Accept", "Authorization", "If-None-Match", "If-Range", "Expect", "Host",
    "Upgrade", "Cookie", "X-Forwarded-For", "Docker-Content-Digest", "Transfer-Encoding", "Content-Encoding",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A request as it is written, and the status that it must get; 0: whatever is no fault of ours."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    status: int = 0
    tail: bytes = field(default=b"", repr=False)
    session: str = ""  # an upload that was begun for it

    def raw(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: registry", *(f"{k}: {v}" for k, v in self.headers)]
        if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in self.headers):
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "Connection: close", "", ""])
        return head.encode("utf-8", "surrogateescape") + self.body + self.tail


class Scene:
    """What is in one repository, and the valid requests that can be made of it."""

    def __init__(self, registry: RegistryProcess, repository: str) -> None:
        self.registry = registry
        self.base = f"/v2/{repository}"
        self.repository = repository
        self.layer = f"layer of {repository}".encode() + BLOB
        self.blob = str(Digest.of(self.layer))
        self.digest, self.manifest = registry.push_image(repository, "v1", self.layer)
        self.kinds: tuple[Callable[[random.Random], Asked], ...] = (
            lambda _: Asked("GET", f"{self.base}/blobs/{self.blob}", status=200),
            lambda _: Asked("HEAD", f"{self.base}/blobs/{self.blob}", status=200),
            lambda _: Asked("GET", f"{self.base}/blobs/{self.blob}", (("Range", "bytes=5-99"),), status=206),
            lambda _: Asked("GET", f"{self.base}/manifests/v1", (("Accept", media_types.OCI_MANIFEST),), status=200),
            lambda _: Asked("HEAD", f"{self.base}/manifests/{self.digest}", status=200),
            lambda _: Asked("GET", f"{self.base}/tags/list?n=5&last=a", status=200),
            lambda _: Asked("GET", f"{self.base}/referrers/{self.digest}?artifactType=x", status=200),
            lambda _: Asked("GET", "/v2/_catalog?n=3", status=200),
            lambda _: Asked("POST", f"{self.base}/m/blobs/uploads/?mount={self.blob}&from={repository}", status=201),
            self._manifest,
            self._single,
            self._begun,
            self._finished,
        )

    def _manifest(self, dice: random.Random) -> Asked:
        kind = (("Content-Type", media_types.OCI_MANIFEST),)
        return Asked("PUT", f"{self.base}/manifests/t{dice.randrange(50)}", kind, self.manifest, 201)

    def _single(self, dice: random.Random) -> Asked:
        data = dice.randbytes(dice.randrange(2000))
        path = f"{self.base}/blobs/uploads/?digest={Digest.of(data)}"
        return Asked("POST", path, (("Content-Type", "application/octet-stream"),), data, 201)

    def _begun(self, dice: random.Random) -> Asked:
        data = dice.randbytes(1 + dice.randrange(2000))
        ranged = (("Content-Range", f"0-{len(data) - 1}"), ("Content-Type", "application/octet-stream"))
        location = self._location()
        return Asked("PATCH", location, ranged, data, 202, session=location)

    def _finished(self, dice: random.Random) -> Asked:
        data = dice.randbytes(dice.randrange(2000))
        location = self._location()
        return Asked("PUT", f"{location}?digest={Digest.of(data)}", (), data, 201, session=location)

    def _location(self) -> str:
        """Nowhere in particular, once mutated requests have begun as many uploads as a namespace may have."""
        begun = self.registry.call("POST", f"{self.base}/blobs/uploads/")
        return begun.headers.get("Location", f"{self.base}/blobs/uploads/none")

    def intact(self) -> None:
        assert self.registry.call("GET", f"{self.base}/blobs/{self.blob}").body == self.layer
        assert self.registry.call("GET", f"{self.base}/manifests/{self.digest}").body == self.manifest


def mutated(asked: Asked, dice: random.Random) -> Asked:
    """One to three things about it are changed."""
    for _ in range(dice.randint(1, 3)):
        asked = dice.choice((_method, _path, _header, _more, _body, _length, _framing))(asked, dice)
    return replace(asked, status=0)


def _method(asked: Asked, dice: random.Random) -> Asked:
    return replace(asked, method=dice.choice(METHODS))


def _path(asked: Asked, dice: random.Random) -> Asked:
    start = dice.randrange(len(asked.path))
    end = min(len(asked.path), start + dice.choice((0, 1, 1, 5, 64)))
    return replace(asked, path=asked.path[:start] + dice.choice(STRANGE) + asked.path[end:])


def _header(asked: Asked, dice: random.Random) -> Asked:
    if not asked.headers:
        return _more(asked, dice)
    headers = list(asked.headers)
    place = dice.randrange(len(headers))
    headers[place] = (headers[place][0], dice.choice(STRANGE))
    return replace(asked, headers=tuple(headers))


def _more(asked: Asked, dice: random.Random) -> Asked:
    return replace(asked, headers=(*asked.headers, (dice.choice(HEADERS), dice.choice(STRANGE))))


def _body(asked: Asked, dice: random.Random) -> Asked:
    body = bytearray(asked.body or b"{}")
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(body) + 1)
        body[place : place + dice.randrange(3)] = dice.choice((b"\x00", b"{", b"[" * 50, b'"', b"\xff", b"9" * 30, b""))
    return replace(asked, body=bytes(body))


def _length(asked: Asked, dice: random.Random) -> Asked:
    lie = dice.choice((0, 1, len(asked.body) // 2, len(asked.body) + 7, 1 << 40, -1))
    return replace(asked, headers=(*asked.headers, ("Content-Length", str(lie))))


def _framing(asked: Asked, dice: random.Random) -> Asked:
    """A body in chunks, some of them wrong; or bytes behind the end."""
    if dice.random() < 0.3:
        return replace(asked, tail=dice.randbytes(dice.randrange(100)))
    size = dice.choice((f"{len(asked.body):x}", "0", "zz", "ffffffffffffffffff", f"{len(asked.body) + 5:x}"))
    body = size.encode() + b"\r\n" + asked.body + dice.choice((b"\r\n0\r\n\r\n", b"", b"\n", b"\r\n0\r\nX: y\r\n\r\n"))
    return replace(asked, headers=(*asked.headers, ("Transfer-Encoding", "chunked")), body=body)


def answered(registry: RegistryProcess, asked: Asked) -> tuple[int, str, bytes]:
    """(status, content type, body) of the first answer; status 0 where the connection was closed without one."""
    with socket.create_connection(registry.address, timeout=ANSWER_SECONDS) as client:
        with contextlib.suppress(OSError):  # answered and closed before it had all of it
            client.sendall(asked.raw())
            if not asked.status and _waits(client):
                client.shutdown(socket.SHUT_WR)
        reply = http.client.HTTPResponse(client, method=asked.method)
        try:
            reply.begin()
            return reply.status, reply.headers.get("Content-Type", ""), reply.read()
        except (http.client.HTTPException, ConnectionError):
            return 0, "", b""


def _waits(client: socket.socket) -> bool:
    """Whether the registry waits for more than there is: no word from it, or none but that it wants the body."""
    if not select.select([client], [], [], PATIENCE)[0]:
        return True
    return client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 100"


def judged(asked: Asked, status: int, kind: str, body: bytes) -> str:
    """What is wrong with this answer; empty where nothing is."""
    if asked.status:
        return "" if status == asked.status else f"is {status}, not {asked.status}: {body[:300]!r}"
    if status >= 500 and status not in (505, 507):  # of another HTTP; a body larger than the disk
        return f"is {status}: {body[:300]!r}"
    if status >= 400 and kind.startswith("application/json"):
        errors = json.loads(body or b"{}").get("errors", [{}]) if asked.method != "HEAD" else [{"code": "DENIED"}]
        if errors[0].get("code") not in CODES:
            return f"has no code of the spec: {body[:300]!r}"
    if b"Traceback" in body:
        return f"tells of our insides: {body[:300]!r}"
    return ""


@pytest.mark.timeout(1800 if SOAK else 120)
def test_mutated_requests_are_answered_and_valid_ones_among_them_succeed(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    wrong: list[str] = []
    seen: Counter[int] = Counter()
    with registry_process(tmp_path / "data", log=tmp_path / "log") as registry:
        kept, played_with = Scene(registry, "kept"), Scene(registry, "fuzz/base")
        status = Path(f"/proc/{registry.process.pid}/status")

        def resident() -> int:
            return int(next(line.split()[1] for line in status.read_text().splitlines() if "VmRSS" in line)) * 1024

        def client(number: int, requests: int) -> None:
            dice = random.Random(seed + number)
            for _ in range(requests):
                if dice.random() < VALID:
                    asked = dice.choice(kept.kinds)(dice)
                else:
                    asked = mutated(dice.choice(played_with.kinds)(dice), dice)
                try:
                    said = answered(registry, asked)
                except TimeoutError:
                    wrong.append(f"no answer within {ANSWER_SECONDS} s: {asked}")
                    continue
                seen[said[0]] += 1
                if fault := judged(asked, *said):
                    wrong.append(f"{asked.raw()[:600]!r} {fault}")
                if asked.session:
                    registry.call("DELETE", asked.session)

        def all_clients(requests: int) -> None:
            threads = [threading.Thread(target=client, args=(n, requests // CLIENTS)) for n in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_clients(200)
        before = resident()
        began = time.monotonic()
        all_clients(REQUESTS)
        print(f"{sum(seen.values())} answers in {time.monotonic() - began:.0f} s: {sorted(seen.items())}")
        assert not wrong, "\n".join(wrong[:10])
        assert resident() - before < GROWTH
        kept.intact()
        assert registry.stop() == 0
        registry.start()
        kept.intact()
