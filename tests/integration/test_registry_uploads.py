"""Uploads: every way in, and every way in which a session says no and goes on."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess, registry_process

BLOB = bytes(range(256)) * 40
END = len(BLOB) - 1
DIGEST = str(Digest.of(BLOB))
UNKNOWN = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        running.push_blob("base", BLOB)
        yield running


def begin(registry: RegistryProcess, repository: str = "up", query: str = "") -> str:
    reply = registry.call("POST", f"/v2/{repository}/blobs/uploads/{query}")
    assert reply.status == 202
    return reply.headers["Location"]


@pytest.mark.parametrize("path", ["/v2/begun/blobs/uploads/", "/v2/begun/blobs/uploads"])
def test_a_session_is_begun_with_nothing_in_it(registry: RegistryProcess, path: str) -> None:
    begun = registry.call("POST", path)
    assert (begun.status, begun.body, begun.headers["Range"]) == (202, b"", "0-0")
    assert begun.headers["Location"] == f"/v2/begun/blobs/uploads/{begun.headers['Docker-Upload-UUID']}"
    status = registry.call("GET", begun.headers["Location"])
    assert (status.status, status.headers["Range"]) == (204, "0-0")
    assert status.headers["Location"] == begun.headers["Location"]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?digest-algorithm=sha256", 202, None),
        ("?digest-algorithm=sha512", 202, None),
        ("?digest-algorithm=md5", 400, "DIGEST_INVALID"),
        ("?digest-algorithm=", 400, "DIGEST_INVALID"),
        ("?digest=sha256:short", 400, "DIGEST_INVALID"),
        ("?mount=sha256:short&from=base", 400, "DIGEST_INVALID"),
        (f"?mount={UNKNOWN}&from=base", 202, None),
        (f"?mount={UNKNOWN}", 202, None),
        (f"?mount={DIGEST}&from=nobody", 202, None),
        (f"?mount={DIGEST}&from=No/Name", 202, None),
        (f"?mount={DIGEST}&from=base", 201, None),
        (f"?mount={DIGEST}", 201, None),
    ],
)
def test_what_a_post_asks_for(registry: RegistryProcess, query: str, status: int, code: str | None) -> None:
    reply = registry.call("POST", f"/v2/asked/blobs/uploads/{query}")
    assert reply.status == status
    if code:
        assert reply.code == code
    else:
        place = "uploads/[0-9a-f]{64}" if status == 202 else DIGEST
        assert re.fullmatch(f"/v2/asked/blobs/{place}", reply.headers["Location"])
    if status == 201:
        assert reply.headers["Docker-Content-Digest"] == DIGEST
        assert registry.call("GET", reply.headers["Location"]).body == BLOB


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("named", ["", "?digest-algorithm=sha256", "?digest-algorithm=sha512"])
def test_a_digest_may_be_of_either_algorithm_whatever_was_said_first(
    registry: RegistryProcess, algorithm: str, named: str
) -> None:
    location = begin(registry, "either", named)
    digest = str(Digest.of(BLOB, algorithm))
    assert registry.call("PATCH", location, BLOB).status == 202
    done = registry.call("PUT", f"{location}?digest={digest}")
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, digest)
    assert registry.call("GET", done.headers["Location"]).body == BLOB


@pytest.mark.parametrize("chunked", [True, False])
def test_a_streamed_patch_without_a_range_as_docker_and_skopeo_send_it(
    registry: RegistryProcess, chunked: bool
) -> None:
    location = begin(registry, f"stream-{str(chunked).lower()}")
    assert registry.call("PATCH", location, BLOB, chunked=chunked).status == 202
    assert registry.call("PUT", f"{location}?digest={DIGEST}").status == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize(
    ("written", "size", "status", "code"),
    [
        ("6000-7999", 2000, 416, "BLOB_UPLOAD_INVALID"),  # leaves a gap
        ("4000-5999", 2000, 416, "BLOB_UPLOAD_INVALID"),  # overlaps
        ("0-4999", 5000, 416, "BLOB_UPLOAD_INVALID"),  # is there already
        ("0-0", 1, 416, "BLOB_UPLOAD_INVALID"),
        ("5000-4999", 0, 416, "BLOB_UPLOAD_INVALID"),
        ("5000-5999", 999, 400, "SIZE_INVALID"),
        ("5000-5999", 1001, 400, "SIZE_INVALID"),
        ("bytes 5000-5999/10240", 1000, 400, "BLOB_UPLOAD_INVALID"),
        ("5000-", 1000, 400, "BLOB_UPLOAD_INVALID"),
        ("five-six", 1000, 400, "BLOB_UPLOAD_INVALID"),
        (f"5000-{'9' * 30}", 1000, 400, "BLOB_UPLOAD_INVALID"),
    ],
)
def test_after_a_chunk_that_does_not_fit_the_session_goes_on(
    registry: RegistryProcess, method: str, written: str, size: int, status: int, code: str
) -> None:
    location = begin(registry, "chunks")
    first = registry.call("PATCH", location, BLOB[:5000], {"Content-Range": "0-4999"})
    assert (first.status, first.headers["Range"]) == (202, "0-4999")
    query = f"?digest={DIGEST}" if method == "PUT" else ""
    refused = registry.call(method, location + query, bytes(size), {"Content-Range": written})
    assert (refused.status, refused.code) == (status, code)
    if status == 416:
        assert (refused.headers["Location"], refused.headers["Range"]) == (location, "0-4999")
    told = registry.call("GET", location)
    assert (told.status, told.headers["Range"]) == (204, "0-4999")
    done = registry.call("PUT", f"{location}?digest={DIGEST}", BLOB[5000:], {"Content-Range": f"5000-{END}"})
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, DIGEST)
    assert registry.call("GET", done.headers["Location"]).body == BLOB


@pytest.mark.parametrize(("size", "left"), [(3000, "0-2999"), (500, "0-499")])
def test_a_streamed_chunk_shorter_than_its_range_is_said_and_what_came_is_kept(
    registry: RegistryProcess, size: int, left: str
) -> None:
    location = begin(registry, "short")
    reply = registry.call("PATCH", location, BLOB[:size], {"Content-Range": "0-4999"}, chunked=True)
    assert (reply.status, reply.code) == (400, "SIZE_INVALID")
    assert registry.call("GET", location).headers["Range"] == left
    assert registry.call("PUT", f"{location}?digest={DIGEST}", BLOB[size:]).status == 201


def test_a_first_chunk_must_begin_at_the_beginning(registry: RegistryProcess) -> None:
    location = begin(registry)
    wrong = registry.call("PATCH", location, BLOB[5:], {"Content-Range": f"5-{END}"})
    assert (wrong.status, wrong.headers["Range"]) == (416, "0-0")
    assert registry.call("PUT", f"{location}?digest={DIGEST}", BLOB).status == 201


@pytest.mark.parametrize("digest", [UNKNOWN, "", "sha256:short"])
def test_after_a_wrong_digest_the_session_can_still_be_finished(registry: RegistryProcess, digest: str) -> None:
    location = begin(registry)
    assert registry.call("PATCH", location, BLOB).status == 202
    assert registry.call("PUT", f"{location}?digest={digest}").code == "DIGEST_INVALID"
    assert registry.call("PUT", location).code == "DIGEST_INVALID"
    assert registry.call("PUT", f"{location}?digest={DIGEST}").status == 201


@pytest.mark.parametrize("ended", ["finished", "cancelled"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_an_ended_session_is_unknown(registry: RegistryProcess, ended: str, method: str) -> None:
    location = begin(registry)
    if ended == "finished":
        assert registry.call("PUT", f"{location}?digest={DIGEST}", BLOB).status == 201
    else:
        cancelled = registry.call("DELETE", location)
        assert (cancelled.status, cancelled.body) == (204, b"")
    reply = registry.call(method, f"{location}?digest={DIGEST}", BLOB if method in ("PATCH", "PUT") else None)
    assert (reply.status, reply.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_cancelled_upload_cannot_be_finished_into_a_good_blobs_place(registry: RegistryProcess) -> None:
    """A request that is under way holds its session: a cancel is refused, and what is there stays."""
    location = begin(registry, "held")
    assert registry.call("PATCH", location, BLOB).status == 202
    with socket.create_connection(registry.address) as slow:
        head = f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
        slow.sendall(head.encode())
        out_of_order = {"Content-Range": "0-0"}  # 416 of a session that nobody holds
        wait_until(lambda: registry.call("PATCH", location, b"x", out_of_order).status == 409)
        assert registry.call("DELETE", location).status == 409
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 201"
    assert registry.call("DELETE", location).status == 404
    assert registry.call("PUT", f"{location}?digest={DIGEST}").status == 404
    for repository in ("held", "base"):
        assert registry.call("GET", f"/v2/{repository}/blobs/{DIGEST}").body == BLOB


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
