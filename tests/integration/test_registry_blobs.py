"""Blobs: what end-2 and end-10 say of each, and of each part of one; bytes that are not what their digest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess, registry_process

BLOB = bytes(range(256)) * 8  # 2048 bytes
SHA256, SHA512 = str(Digest.of(BLOB)), str(Digest.of(BLOB, "sha512"))
EMPTY = str(Digest.of(b""))
UNKNOWN = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        running.push_blob("base", BLOB)
        running.push_blob("base", b"")
        assert running.call("POST", f"/v2/base/blobs/uploads/?digest={SHA512}", BLOB).status == 201
        yield running


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("digest", "data"), [(SHA256, BLOB), (SHA512, BLOB), (EMPTY, b"")])
def test_a_blob_says_its_length_and_the_digest_it_was_asked_for_by(
    registry: RegistryProcess, method: str, digest: str, data: bytes
) -> None:
    reply = registry.call(method, f"/v2/base/blobs/{digest}")
    assert (reply.status, reply.body) == (200, data if method == "GET" else b"")
    assert reply.headers["Docker-Content-Digest"] == digest
    assert reply.headers["Content-Length"] == str(len(data))
    assert "Content-Encoding" not in reply.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 2047),
        ("bytes=-500", 1548, 2047),
        ("bytes=2000-5000", 2000, 2047),
        ("bytes=0-0", 0, 0),
        ("bytes=2047-2047", 2047, 2047),
        ("bytes=0-", 0, 2047),
        ("bytes=-5000", 0, 2047),
        ("Bytes=1-2", 1, 2),
    ],
)
@pytest.mark.parametrize("digest", [SHA256, SHA512])
def test_a_range_gives_that_part(registry: RegistryProcess, asked: str, first: int, last: int, digest: str) -> None:
    reply = registry.call("GET", f"/v2/base/blobs/{digest}", headers={"Range": asked})
    assert (reply.status, reply.body) == (206, BLOB[first : last + 1])
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/2048"
    assert reply.headers["Content-Length"] == str(last - first + 1)
    assert reply.headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("asked", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0"])
def test_a_range_in_which_nothing_lies_is_416_with_the_size(registry: RegistryProcess, asked: str) -> None:
    reply = registry.call("GET", f"/v2/base/blobs/{SHA256}", headers={"Range": asked})
    assert (reply.status, reply.code) == (416, "SIZE_INVALID")
    assert reply.headers["Content-Range"] == "bytes */2048"


def test_no_part_of_nothing(registry: RegistryProcess) -> None:
    assert registry.call("GET", f"/v2/base/blobs/{EMPTY}", headers={"Range": "bytes=0-"}).status == 416


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-9", "lines=1-2", "bytes=", "bytes=-", "bytes=a-b", "bytes 0-1", f"bytes=0-{'9' * 30}", ""]
)
def test_what_is_no_range_of_one_part_is_ignored(registry: RegistryProcess, asked: str) -> None:
    reply = registry.call("GET", f"/v2/base/blobs/{SHA256}", headers={"Range": asked})
    assert (reply.status, reply.body) == (200, BLOB)


def test_a_range_means_nothing_to_head(registry: RegistryProcess) -> None:
    reply = registry.call("HEAD", f"/v2/base/blobs/{SHA256}", headers={"Range": "bytes=0-9"})
    assert (reply.status, reply.headers["Content-Length"]) == (200, "2048")


def test_a_deleted_blob_is_gone_at_once_here_and_stays_elsewhere(registry: RegistryProcess) -> None:
    data = b"shared by two"
    digest = registry.push_blob("left", data)
    registry.push_blob("right", data)
    assert registry.call("DELETE", f"/v2/left/blobs/{digest}").status == 202
    assert registry.call("GET", f"/v2/left/blobs/{digest}").status == 404
    assert registry.call("DELETE", f"/v2/left/blobs/{digest}").code == "BLOB_UNKNOWN"
    assert registry.call("GET", f"/v2/right/blobs/{digest}").body == data


def test_what_a_manifest_needs_is_not_deleted_from_under_it(registry: RegistryProcess) -> None:
    digest, _ = registry.push_image("needed", "v1", b"a layer that is needed")
    path = f"/v2/needed/blobs/{Digest.of(b'a layer that is needed')}"
    refused = registry.call("DELETE", path)
    assert (refused.status, refused.code, refused.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    assert digest in refused.json()["errors"][0]["message"]
    assert registry.call("GET", path).body == b"a layer that is needed"
    assert registry.call("DELETE", f"/v2/needed/manifests/{digest}").status == 202
    assert registry.call("DELETE", path).status == 202


@pytest.mark.parametrize(
    "digest",
    [
        UNKNOWN,
        str(Digest.of(BLOB)),  # another blob's
        str(Digest.of(b"other bytes", "sha512"))[:-2] + "00",
        f"sha256:{Digest.of(b'other bytes', 'sha512').hex}",
        f"sha512:{Digest.of(b'other bytes').hex}",
        str(Digest.of(b"other bytes")).upper(),
        f"sha256:{Digest.of(b'other bytes').hex.upper()}",
        f"md5:{'0' * 32}",
        "sha256:short",
        "sha256:../../../../etc/passwd",
        "",
    ],
)
@pytest.mark.parametrize("data", [b"other bytes", b""])
@pytest.mark.parametrize("way", ["POST", "PUT"])
def test_bytes_that_are_not_the_digest_are_never_stored(
    registry: RegistryProcess, digest: str, data: bytes, way: str
) -> None:
    before = stored(registry.data)
    path = "/v2/mismatch/blobs/uploads/"
    if way == "PUT":
        path = registry.call("POST", path).headers["Location"]
    reply = registry.call(way, f"{path}?digest={digest}", data)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert stored(registry.data) == before
    for algorithm in ("sha256", "sha512"):
        assert registry.call("GET", f"/v2/mismatch/blobs/{Digest.of(b'other bytes', algorithm)}").status == 404


def stored(data: Path) -> set[Path]:
    return {path for path in (data / "blobs").rglob("*") if path.is_file()}


def test_a_blob_whose_file_is_lost_is_unknown_until_it_is_pushed_again(tmp_path: Path) -> None:
    with registry_process(tmp_path) as registry:
        layer = b"will be lost"
        _, raw = registry.push_image("lost", "v1", layer)
        digest = str(Digest.of(layer))
        hexadecimal = digest.removeprefix("sha256:")
        (tmp_path / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal).unlink()
        assert registry.call("HEAD", f"/v2/lost/blobs/{digest}").status == 404
        assert registry.call("GET", f"/v2/lost/blobs/{digest}").code == "BLOB_UNKNOWN"
        assert registry.call("POST", f"/v2/other/blobs/uploads/?mount={digest}&from=lost").status == 202
        media_type = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        refused = registry.call("PUT", "/v2/lost/manifests/v2", raw, media_type)
        assert (refused.status, refused.code) == (400, "MANIFEST_BLOB_UNKNOWN")
        registry.push_blob("lost", layer)
        assert registry.call("GET", f"/v2/lost/blobs/{digest}").body == layer
        assert registry.call("PUT", "/v2/lost/manifests/v2", raw, media_type).status == 201
