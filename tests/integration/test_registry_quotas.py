"""Quotas of namespaces: what is too much is refused before its bytes are taken, and a delete counts at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.digest import Digest
from registry.app import create_app
from registry.index import quotas
from registry.index.quotas import Quota, Usage
from registry.service import Registry
from registry.space import reserve, short
from registry.storage.base import Disk
from tests.support.registry import RegistryProcess, Reply, registry_process

KB, MB = 1000, 1_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path / "registry") as running:
        yield running


def limit(registry: RegistryProcess, namespace: str, **limits: int | None) -> None:
    body = json.dumps(limits).encode()
    reply = registry.call("PUT", f"/v2/_faas/quotas/{namespace}", body)
    assert reply.status == 204, reply.body


def used(registry: RegistryProcess, namespace: str = "team") -> tuple[int, int]:
    entries = registry.call("GET", "/v2/_faas/quotas").json()["quotas"]
    usage = next((e["used"] for e in entries if e["namespace"] == namespace), {})
    return usage.get("logical_bytes", 0), usage.get("physical_bytes", 0)


def begin(registry: RegistryProcess, repository: str) -> str:
    reply = registry.call("POST", f"/v2/{repository}/blobs/uploads/")
    assert reply.status == 202, reply.body
    return reply.headers["Location"]


def uploads(registry: RegistryProcess) -> list[Path]:
    return list((registry.data / "uploads").iterdir())


class Slow:
    """A request whose body is sent when the test says so."""

    def __init__(self, registry: RegistryProcess, method: str, path: str, length: int, **headers: str) -> None:
        self.socket = socket.create_connection(registry.address, timeout=10)
        lines = [f"{method} {path} HTTP/1.1", "Host: registry", f"Content-Length: {length}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def status(self) -> int:
        with self.socket:
            return int(self.socket.makefile("rb").readline().split()[1])


def denied(reply: Reply) -> None:
    assert (reply.status, reply.code) == (403, "DENIED"), reply.body
    assert "the namespace team may hold" in reply.json()["errors"][0]["message"]


def test_a_quota_is_set_listed_and_taken_away(registry: RegistryProcess) -> None:
    limit(registry, "team", logical_bytes=10 * MB)
    registry.push_blob("team/app", bytes(KB))
    registry.push_blob("plain", bytes(10))
    usage = {"logical_bytes": KB, "physical_bytes": KB}
    small = {"logical_bytes": 10, "physical_bytes": 10}
    assert registry.call("GET", "/v2/_faas/quotas").json()["quotas"] == [
        {"namespace": "default", "logical_bytes": None, "physical_bytes": None, "used": small},
        {"namespace": "team", "logical_bytes": 10 * MB, "physical_bytes": None, "used": usage},
    ]
    assert registry.call("DELETE", "/v2/_faas/quotas/team").status == 204
    assert registry.call("DELETE", "/v2/_faas/quotas/team").code == "NAME_UNKNOWN"


def test_what_is_no_quota_is_refused(registry: RegistryProcess) -> None:
    bodies = (
        b"{}", b"[]", b"x", b'{"logical_bytes": null}', b'{"logical_bytes": -1}', b'{"logical_bytes": true}',
        b'{"logical_bytes": "10G"}', b'{"logical_bytes": 1.5}', b'{"physical_bytes": 99999999999999999999}',
        b'{"bytes": 1}',
    )  # fmt: skip
    for body in bodies:
        assert registry.call("PUT", "/v2/_faas/quotas/team", body).status == 400, body
    for name in ("Not%20one", "team%2Fapp"):
        assert registry.call("PUT", f"/v2/_faas/quotas/{name}", b'{"logical_bytes": 1}').code == "NAME_INVALID"
    assert registry.call("GET", "/v2/_faas/quotas").json() == {"quotas": []}


def test_a_quota_survives_a_restart_and_is_for_administrators(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry", "basic") as registry:
        limit(registry, "team", physical_bytes=10)
        for method in ("GET", "PUT", "DELETE"):
            path = "/v2/_faas/quotas" + ("" if method == "GET" else "/team")
            assert registry.call(method, path, login=False).status == 401
        registry.stop()
        registry.start()
        denied(registry.call("POST", f"/v2/team/a/blobs/uploads/?digest={Digest.of(bytes(11))}", bytes(11)))


def test_what_has_a_length_is_refused_before_a_byte_of_it_is_taken(registry: RegistryProcess) -> None:
    limit(registry, "team", logical_bytes=MB)
    registry.push_blob("team/a", os.urandom(900 * KB))
    location, digest = begin(registry, "team/a"), Digest.of(bytes(200 * KB))
    assert registry.call("PATCH", location, bytes(50 * KB)).status == 202
    for method, path, headers in (
        ("POST", f"/v2/team/b/blobs/uploads/?digest={digest}", {}),
        ("PATCH", location, {}),
        ("PATCH", location, {"Content_Range": f"{50 * KB}-{250 * KB - 1}"}),
        ("PUT", f"{location}?digest={digest}", {}),
    ):
        assert Slow(registry, method, path, 200 * KB, **headers).status() == 403, (method, headers)
    assert registry.call("GET", location).headers["Range"] == f"0-{50 * KB - 1}"  # it stays as it was
    rest = registry.call("PUT", f"{location}?digest={Digest.of(bytes(100 * KB))}", bytes(50 * KB))
    assert rest.status == 201  # to the last byte
    denied(registry.call("POST", "/v2/team/b/blobs/uploads/"))
    assert used(registry) == (MB, MB)
    assert not uploads(registry)


def test_without_a_length_the_upload_ends_where_it_crosses_the_quota(registry: RegistryProcess) -> None:
    limit(registry, "team", physical_bytes=3 * MB)
    location = begin(registry, "team/a")
    assert registry.call("PATCH", location, bytes(2 * MB), chunked=True).status == 202
    denied(registry.call("PATCH", location, bytes(1001 * KB), chunked=True))
    assert registry.call("GET", location).code == "BLOB_UPLOAD_UNKNOWN"
    assert not uploads(registry)
    location, data = begin(registry, "team/a"), os.urandom(3 * MB)
    assert registry.call("PATCH", location, data, chunked=True).status == 202
    assert registry.call("PUT", f"{location}?digest={Digest.of(data)}").status == 201


def test_uploads_side_by_side_do_not_each_take_the_same_room(registry: RegistryProcess) -> None:
    size = 3 * MB  # more than is gathered before a session has a file
    limit(registry, "team", logical_bytes=5 * size)
    blobs = [os.urandom(size) for _ in range(10)]
    coming = []
    for number, data in enumerate(blobs):
        path = f"/v2/team/r{number}/blobs/uploads/?digest={Digest.of(data)}"
        request = Slow(registry, "POST", path, size)
        if number < 5:
            request.send(data[: size // 2])
            wait_for_sessions(registry, number + 1)
        coming.append(request)
    assert [request.status() for request in coming[5:]] == [403] * 5
    for request, data in zip(coming[:5], blobs, strict=False):
        request.send(data[size // 2 :])
    assert [request.status() for request in coming[:5]] == [201] * 5
    assert used(registry) == (5 * size, 5 * size)


def wait_for_sessions(registry: RegistryProcess, count: int) -> None:
    """Until the registry has begun with so many uploads."""
    deadline = time.monotonic() + 30
    while len(uploads(registry)) < count:
        assert time.monotonic() < deadline, "an upload did not begin"
        time.sleep(0.01)


def test_an_abandoned_upload_gives_its_room_back(registry: RegistryProcess) -> None:
    limit(registry, "team", logical_bytes=MB)
    location = begin(registry, "team/a")
    assert registry.call("PATCH", location, bytes(MB)).status == 202
    denied(registry.call("POST", "/v2/team/b/blobs/uploads/"))
    assert registry.call("DELETE", location).status == 204
    registry.push_blob("team/b", bytes(MB))


def test_an_upload_ends_only_where_it_began(registry: RegistryProcess) -> None:
    """Else it would come in through a namespace without a quota."""
    limit(registry, "team", logical_bytes=MB)
    location, data = begin(registry, "free/a"), bytes(MB + 1)
    assert registry.call("PATCH", location, data).status == 202
    moved = location.replace("free/a", "team/a")
    assert registry.call("PUT", f"{moved}?digest={Digest.of(data)}").code == "BLOB_UPLOAD_UNKNOWN"
    assert used(registry) == (0, 0)
    denied(registry.call("POST", f"/v2/team/a/blobs/uploads/?digest={Digest.of(data)}", data))
    assert registry.call("PUT", f"{location}?digest={Digest.of(data)}").status == 201


def test_a_blob_counts_once_physically_and_in_each_repository_logically(registry: RegistryProcess) -> None:
    data = os.urandom(600 * KB)
    digest = registry.push_blob("team/a", data)
    limit(registry, "team", logical_bytes=MB, physical_bytes=MB)
    denied(registry.call("POST", f"/v2/team/b/blobs/uploads/?mount={digest}&from=team/a"))
    assert registry.call("GET", f"/v2/team/b/blobs/{digest}").status == 404
    limit(registry, "team", physical_bytes=MB)
    assert registry.call("POST", f"/v2/team/b/blobs/uploads/?mount={digest}&from=team/a").status == 201
    assert used(registry) == (1200 * KB, 600 * KB)
    other = registry.push_blob("elsewhere/a", os.urandom(500 * KB))
    denied(registry.call("POST", f"/v2/team/b/blobs/uploads/?mount={other}&from=elsewhere/a"))


def test_a_manifest_counts(registry: RegistryProcess) -> None:
    _, raw = registry.push_image("team/a", "v1", os.urandom(KB))
    before = used(registry)
    limit(registry, "team", logical_bytes=before[0] + len(raw) - 1)
    again = json.dumps({**json.loads(raw), "annotations": {}}, indent=3).encode()
    assert len(again) >= len(raw)
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    denied(registry.call("PUT", "/v2/team/a/manifests/v2", again, headers))
    assert registry.call("GET", "/v2/team/a/manifests/v2").status == 404
    assert registry.call("PUT", "/v2/team/a/manifests/v2", raw, headers).status == 201  # the one that is there
    assert used(registry) == before


def test_a_delete_frees_at_once(registry: RegistryProcess) -> None:
    """Also what the collector will take only later, when nobody can count on it any more."""
    limit(registry, "team", logical_bytes=MB)
    digest, _ = registry.push_image("team/a", "v1", os.urandom(900 * KB))
    denied(registry.call("POST", f"/v2/team/b/blobs/uploads/?digest={Digest.of(bytes(MB // 2))}", bytes(MB // 2)))
    assert registry.call("DELETE", f"/v2/team/a/manifests/{digest}").status == 202
    assert used(registry) == (0, 0)
    blob = registry.push_blob("team/b", bytes(MB))
    assert registry.call("DELETE", f"/v2/team/b/blobs/{blob}").status == 202
    assert used(registry) == (0, 0)


def test_what_was_deleted_counts_again_with_the_manifest_that_needs_it(registry: RegistryProcess) -> None:
    digest, raw = registry.push_image("team/a", "v1", os.urandom(900 * KB))
    assert registry.call("DELETE", f"/v2/team/a/manifests/{digest}").status == 202
    limit(registry, "team", logical_bytes=MB)
    registry.push_blob("team/b", bytes(500 * KB))
    denied(registry.call("PUT", "/v2/team/a/manifests/v1", raw, {"Content-Type": media_types.OCI_MANIFEST}))


def test_a_quota_below_what_is_there_takes_nothing_away(registry: RegistryProcess) -> None:
    digest, raw = registry.push_image("team/a", "v1", os.urandom(100 * KB))
    limit(registry, "team", logical_bytes=0)
    assert registry.call("GET", f"/v2/team/a/manifests/{digest}").body == raw
    denied(registry.call("POST", "/v2/team/a/blobs/uploads/"))


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}"
    registry = await Registry.open(tmp_path, url, accounts=None, metrics=Metrics("test"))
    async with TestClient(TestServer(create_app(registry))) as client:
        yield client
    await registry.close()


async def test_where_there_is_no_quota_nothing_is_added_up(
    inside: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(quotas, "usage", lambda *_: asked.append(1) or {})

    async def push(repository: str) -> None:
        data = os.urandom(10)
        path = f"/v2/{repository}/blobs/uploads/"
        async with inside.post(path, params={"digest": str(Digest.of(data))}, data=data) as reply:
            assert reply.status == 201

    async with inside.put("/v2/_faas/quotas/other", json={"logical_bytes": 10}) as reply:
        assert reply.status == 204
    await push("team/a")
    assert not asked
    await push("other/a")
    assert asked


def test_the_first_limit_that_is_crossed_is_told() -> None:
    assert Quota(10, 5).full(Usage(10, 5)) is None
    assert Quota(10, 5).full(Usage(11, 6)) == ("logical", 10, 11)
    assert Quota(None, 5).full(Usage(11, 6)) == ("physical", 5, 6)
    assert Quota(10, 5).room(Usage(1, 1)) == 4
    assert Quota(10, 5).room(Usage(1, 6)) == -1


def test_a_disk_keeps_a_reserve_that_fits_it() -> None:
    giga = 1 << 30
    assert reserve(1000 * giga) == 10 * giga
    assert reserve(2 * giga) == 64 << 20
    assert reserve(32 << 20) == (32 << 20) // 20
    disk = Disk(free=100 << 20, total=2 * giga)
    assert short(disk, 0, 36 << 20) == 0
    assert short(disk, 1, 36 << 20) == 1
    assert short(Disk(0, 2 * giga), 0, 0) == 64 << 20
