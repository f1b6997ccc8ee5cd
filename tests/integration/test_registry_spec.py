"""The registry's door against the distribution-spec (1.1 and what is merged after it), over real HTTP: which path and
method gives which status and code, to whom. What each noun does is in the files beside this one.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.conftest import SOAK
from tests.support.registry import RegistryProcess, registry_process

UNKNOWN = f"sha256:{'0' * 64}"
BLOB = bytes(range(256)) * 40
DIGEST = str(Digest.of(BLOB))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        running.push_blob("base", BLOB)
        running.push_image("base", "v1")
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/", 200, None),
        ("GET", "/v2", 200, None),
        ("GET", "/v1/", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/base/_oci/tag-history/v1", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_faas/nothing", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/base/blobs/{DIGEST}", 200, None),
        ("HEAD", f"/v2/base/blobs/{DIGEST}", 200, None),
        ("GET", f"/v2/base/blobs/{UNKNOWN}", 404, "BLOB_UNKNOWN"),
        ("GET", f"/v2/other/blobs/{DIGEST}", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/base/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/base/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        ("GET", f"/v2/base/blobs/md5:{'0' * 32}", 400, "DIGEST_INVALID"),
        ("GET", "/v2/base/manifests/v1", 200, None),
        ("HEAD", "/v2/base/manifests/v1", 200, None),
        ("GET", "/v2/base/manifests/nope", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/base/manifests/{UNKNOWN}", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/base/manifests/sha256:zz", 400, "DIGEST_INVALID"),
        ("GET", "/v2/base/manifests/-bad", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/base/tags/list", 200, None),
        ("GET", "/v2/nobody/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/base/tags/list?n=x", 400, "UNSUPPORTED"),
        ("GET", "/v2/base/tags/list?n=-1", 400, "UNSUPPORTED"),
        ("GET", "/v2/base/tags/list?n=99999999999999999999", 400, "UNSUPPORTED"),
        ("GET", f"/v2/base/referrers/{UNKNOWN}", 200, None),
        ("GET", "/v2/base/referrers/nonsense", 400, "DIGEST_INVALID"),
        ("GET", "/v2/_catalog", 200, None),
        ("GET", "/v2/UPPER/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a..b/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/../../etc/passwd", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/%2e%2e/%2e%2e/tags/list", 400, "NAME_INVALID"),
        ("GET", "/v2/a%00b/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/base/blobs/uploads/00000000000000000000000000000000", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "/v2/base/blobs/uploads/nonsense", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", f"/v2/base/blobs/uploads/nonsense?digest={DIGEST}", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("DELETE", "/v2/base/blobs/uploads/nonsense", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("DELETE", f"/v2/base/blobs/{UNKNOWN}", 404, "BLOB_UNKNOWN"),
        ("DELETE", "/v2/base/manifests/nope", 404, "MANIFEST_UNKNOWN"),
        ("POST", "/v2/base/manifests/v1", 405, "UNSUPPORTED"),
        ("GET", "/v2/base/nothing/here", 404, "NAME_UNKNOWN"),
        ("GET", f"/v2/{'a' * 300}/tags/list", 400, "NAME_INVALID"),
    ],
)
def test_an_endpoint_answers_with_its_status_and_code(
    registry: RegistryProcess, method: str, path: str, status: int, code: str | None
) -> None:
    reply = registry.call(method, path)
    assert reply.status == status, reply.body
    if code is not None:
        assert reply.code == code


@pytest.mark.parametrize(
    "name", ["manifests/x", "a/blobs/uploads", "tags/list", "x/referrers/y", "v2/v2", "blobs/blobs"]
)
def test_repositories_may_be_called_like_routes(registry: RegistryProcess, name: str) -> None:
    digest, raw = registry.push_image(name, "v1", b"of a route")
    assert registry.call("GET", f"/v2/{name}/manifests/{digest}").body == raw
    assert registry.call("GET", f"/v2/{name}/tags/list").json() == {"name": name, "tags": ["v1"]}
    assert registry.call("GET", f"/v2/{name}/blobs/{Digest.of(b'of a route')}").body == b"of a route"
    assert registry.call("GET", f"/v2/{name}/referrers/{digest}").json()["manifests"] == []


PATHS = {
    "/v2/": "GET, HEAD",
    "/v2/_catalog": "GET, HEAD",
    "/v2/_oci/ext/discover": "GET, HEAD",
    "/v2/_faas/gc": "POST",
    "/v2/base/tags/list": "GET",
    f"/v2/base/referrers/{UNKNOWN}": "GET",
    "/v2/base/manifests/v1": "GET, HEAD, PUT, DELETE",
    f"/v2/base/blobs/{UNKNOWN}": "GET, HEAD, DELETE",
    "/v2/base/blobs/uploads/": "POST",
    f"/v2/base/blobs/uploads/{'0' * 32}": "GET, PATCH, PUT, DELETE",
}
LINE = 8000  # bytes of a path that is read at all
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(m, path, allowed) for path, allowed in PATHS.items() for m in METHODS if m not in allowed.split(", ")],
)
def test_another_method_is_405_and_told_which_there_are(
    registry: RegistryProcess, method: str, path: str, allowed: str
) -> None:
    reply = registry.call(method, path)
    assert (reply.status, reply.headers["Allow"]) == (405, allowed)
    assert method == "HEAD" or reply.code == "UNSUPPORTED"


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "/v2/_catalog",
        "/v2/base/manifests/v1",
        f"/v2/base/blobs/{DIGEST}",
        f"/v2/base/blobs/{UNKNOWN}",
        "/v2/base/manifests/nope",
        "/v2/base/manifests/sha256:zz",
        "/v2/UPPER/manifests/v1",
        "/v2/nothing",
        "/v2/base/tags/list",
    ],
)
def test_an_answer_to_head_has_no_body(registry: RegistryProcess, path: str) -> None:
    """Read to the end of the connection: a client that keeps it would take a body for its next answer."""
    with socket.create_connection(registry.address, timeout=10) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert body == b""


def test_extensions_are_listed(registry: RegistryProcess) -> None:
    (listed,) = registry.call("GET", "/v2/_oci/ext/discover").json()["extensions"]
    assert set(listed) == {"name", "description", "url", "endpoints"}
    assert listed["name"] == "_faas"
    assert {"_faas/gc", "_faas/policies", "_faas/policies/<pattern>"} <= set(listed["endpoints"])


@pytest.fixture(scope="module", params=["basic", "token"])
def closed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("closed"), request.param) as running:
        running.push_image("base", "v1")
        yield running


@pytest.mark.parametrize(
    "path", [*PATHS, "/v2/base/manifests/nope", "/v2/UPPER/manifests/v1", "/v2/base/blobs/sha256:short", "/v2/no/such"]
)
def test_a_stranger_hears_only_how_to_log_in(closed: RegistryProcess, path: str) -> None:
    for method in METHODS:
        is_refused(closed, method, path)


@pytest.mark.parametrize("credentials", ["Basic nonsense", "Basic YQ==", "Bearer", "Digest x", "x"])
@pytest.mark.parametrize("path", ["/v2/", "/v2/base/manifests/v1", "/v2/UPPER/manifests/v1", "/v2/no/such"])
def test_what_are_no_credentials_are_a_strangers(closed: RegistryProcess, path: str, credentials: str) -> None:
    is_refused(closed, "GET", path, credentials)


def is_refused(closed: RegistryProcess, method: str, path: str, credentials: str | None = None) -> None:
    headers = {"Authorization": credentials} if credentials else {}
    reply = closed.call(method, path, headers=headers, login=False)
    assert reply.status == 401, (method, reply)
    assert reply.headers["WWW-Authenticate"].startswith(f"{'Bearer' if closed.auth == 'token' else 'Basic'} realm=")
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert method == "HEAD" or reply.code == "UNAUTHORIZED"


PIECES = (
    "..", ".", "%2e%2e", "%2f", "%5c", "%00", "%0a", "sha256:", "sha512:", "md5:", "a", "A", "__", "-", "\u00e9",
    "%d1%81", "%ff", "x" * 300, "y" * 10_000, "0" * 64, "../../../../etc/passwd", "blobs", "uploads", "manifests", "/",
    "//", "?", ";", "@", "+",
)  # fmt: skip


def test_generated_names_reach_no_file_outside_and_are_never_our_fault(
    registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    before = places(registry.data)
    for _ in range(10_000 if SOAK else 200):
        name = "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 5)))
        reference = "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 3)))
        kind = dice.choice(["blobs", "manifests", "referrers", "tags", "blobs/uploads"])
        path = f"/v2/{name}/{kind}/{reference}".encode("ascii", "replace").decode()
        method = dice.choice(["GET", "HEAD", "DELETE", "PUT", "PATCH"])
        reply = registry.call(method, path, b"x" if method in ("PUT", "PATCH") else None)
        assert 200 <= reply.status < 500, (method, path, reply.status)
        if reply.status >= 400 and method != "HEAD" and len(path) < LINE:  # a longer one does not come as far as us
            assert reply.code
    assert places(registry.data) == before


def places(data: Path) -> set[Path]:
    """Everything beside the registry's data, and in it, but for what its database writes."""
    return {path for path in data.parent.rglob("*") if not path.name.startswith("registry.db")}


def begin(registry: RegistryProcess, repository: str) -> str:
    reply = registry.call("POST", f"/v2/{repository}/blobs/uploads/")
    assert reply.status == 202
    return reply.headers["Location"]


@pytest.mark.root
def test_a_full_disk_is_said_and_the_upload_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """On a file system of 32 MiB: nothing that was answered with success is torn."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", tmp_path], check=True)
    try:
        with registry_process(tmp_path / "data") as registry:
            rest = shutil.disk_usage(tmp_path).free
            (tmp_path / "ballast").write_bytes(bytes(rest - (3 << 20) - 5000))
            data = random.randbytes(5 << 20)
            location = begin(registry, "full")
            refused = registry.call("PATCH", location, data, chunked=True)  # no length: it is taken as far as it goes
            assert (refused.status, refused.code) == (507, "DENIED")
            assert "No space left" in refused.json()["errors"][0]["message"]
            (tmp_path / "ballast").unlink()
            stored = int(registry.call("GET", location).headers["Range"].partition("-")[2]) + 1
            assert 0 < stored < len(data)
            digest = Digest.of(data)
            done = registry.call("PUT", f"{location}?digest={digest}", data[stored:])
            assert done.status == 201, done.body
            assert registry.call("GET", f"/v2/full/blobs/{digest}").body == data
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
