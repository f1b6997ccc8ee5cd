"""The registry against the distribution-spec (1.1 and what is merged after it), over real HTTP; one row per rule."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess, registry_process

OCI = {"Content-Type": media_types.OCI_MANIFEST}
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


def test_a_blob_says_its_digest_and_length_and_serves_ranges(registry: RegistryProcess) -> None:
    whole = registry.call("GET", f"/v2/base/blobs/{DIGEST}")
    assert whole.body == BLOB
    assert (whole.headers["Docker-Content-Digest"], whole.headers["Content-Length"]) == (DIGEST, str(len(BLOB)))
    part = registry.call("GET", f"/v2/base/blobs/{DIGEST}", headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, BLOB[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(BLOB)}"
    assert registry.call("GET", f"/v2/base/blobs/{DIGEST}", headers={"Range": "bytes=99999-"}).status == 416


def test_a_manifest_comes_back_byte_for_byte_under_its_type(registry: RegistryProcess) -> None:
    digest, raw = registry.push_image("exact", "v1")
    for reference in ("v1", digest):
        reply = registry.call("GET", f"/v2/exact/manifests/{reference}")
        assert reply.body == raw
        assert reply.headers["Content-Type"] == media_types.OCI_MANIFEST
        assert reply.headers["Docker-Content-Digest"] == digest
    head = registry.call("HEAD", "/v2/exact/manifests/v1")
    assert head.headers["Content-Length"] == str(len(raw))


def begin(registry: RegistryProcess, repository: str = "up") -> str:
    reply = registry.call("POST", f"/v2/{repository}/blobs/uploads/")
    assert reply.status == 202
    return reply.headers["Location"]


def test_a_blob_in_ordered_chunks_and_recovery_from_a_416(registry: RegistryProcess) -> None:
    location = begin(registry)
    first = registry.call("PATCH", location, BLOB[:5000], {"Content-Range": "0-4999"})
    assert (first.status, first.headers["Range"]) == (202, "0-4999")
    wrong = registry.call("PATCH", location, BLOB[6000:], {"Content-Range": f"6000-{len(BLOB) - 1}"})
    assert wrong.status == 416
    status = registry.call("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-4999")
    done = registry.call("PUT", f"{location}?digest={DIGEST}", BLOB[5000:], {"Content-Range": f"5000-{len(BLOB) - 1}"})
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, DIGEST)
    assert registry.call("GET", f"/v2/up/blobs/{DIGEST}").body == BLOB


@pytest.mark.parametrize("chunked", [True, False])
def test_a_streamed_patch_without_a_range_as_docker_and_skopeo_send_it(
    registry: RegistryProcess, chunked: bool
) -> None:
    location = begin(registry, f"stream-{str(chunked).lower()}")
    assert registry.call("PATCH", location, BLOB, chunked=chunked).status == 202
    assert registry.call("PUT", f"{location}?digest={DIGEST}").status == 201


def test_sha512_is_taken_and_named_as_asked(registry: RegistryProcess) -> None:
    digest = str(Digest.of(BLOB, "sha512"))
    location = begin(registry, "long")
    assert registry.call("PUT", f"{location}?digest={digest}", BLOB).headers["Docker-Content-Digest"] == digest
    assert registry.call("GET", f"/v2/long/blobs/{digest}").body == BLOB


@pytest.mark.parametrize("digest", [UNKNOWN, "sha256:short", f"md5:{'0' * 32}", ""])
def test_bytes_that_are_not_the_digest_are_never_stored(registry: RegistryProcess, digest: str) -> None:
    location = begin(registry, "mismatch")
    reply = registry.call("PUT", f"{location}?digest={digest}", b"other bytes")
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert registry.call("GET", f"/v2/mismatch/blobs/{Digest.of(b'other bytes')}").status == 404


def test_a_cancelled_upload_is_gone(registry: RegistryProcess) -> None:
    location = begin(registry)
    assert registry.call("DELETE", location).status == 204
    assert registry.call("GET", location).status == 404


def test_a_blob_is_mounted_from_another_repository_without_its_bytes(registry: RegistryProcess) -> None:
    reply = registry.call("POST", f"/v2/mounted/blobs/uploads/?mount={DIGEST}&from=base")
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, DIGEST)
    assert registry.call("GET", f"/v2/mounted/blobs/{DIGEST}").status == 200
    missing = registry.call("POST", f"/v2/mounted/blobs/uploads/?mount={UNKNOWN}&from=base")
    assert missing.status == 202
    assert "uploads" in missing.headers["Location"]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"not json", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"[]", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"{}", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2}', "application/json", 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":1}', media_types.DOCKER_SCHEMA1_SIGNED, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"layers":[],"manifests":[]}', media_types.OCI_INDEX, 400, "MANIFEST_INVALID"),
        (
            b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}',
            media_types.OCI_MANIFEST,
            400,
            "MANIFEST_INVALID",
        ),
        (
            b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"' + UNKNOWN.encode() + b'","size":1},"layers":[]}',
            media_types.OCI_MANIFEST,
            400,
            "MANIFEST_BLOB_UNKNOWN",
        ),
        (b" " * (4 * 1024 * 1024 + 1), media_types.OCI_MANIFEST, 413, "MANIFEST_INVALID"),
        (b"[" * 100_000, media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
    ],
)
def test_what_is_no_manifest_is_refused(
    registry: RegistryProcess, body: bytes, content_type: str, status: int, code: str
) -> None:
    reply = registry.call("PUT", "/v2/base/manifests/bad", body, {"Content-Type": content_type})
    assert (reply.status, reply.code) == (status, code)


def test_a_digest_reference_must_be_the_bytes_own(registry: RegistryProcess) -> None:
    _, raw = registry.push_image("own", "v1")
    reply = registry.call("PUT", f"/v2/own/manifests/{UNKNOWN}", raw, OCI)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")


def test_tags_can_be_given_beside_a_digest(registry: RegistryProcess) -> None:
    digest, raw = registry.push_image("tagged", "v1")
    reply = registry.call("PUT", f"/v2/tagged/manifests/{digest}?tag=a&tag=b", raw, OCI)
    assert reply.status == 201
    assert registry.call("GET", "/v2/tagged/tags/list").json()["tags"] == ["a", "b", "v1"]


def test_tags_are_sorted_and_paged_with_a_link(registry: RegistryProcess) -> None:
    for tag in ("b", "a", "C", "d"):
        registry.push_image("paged", tag)
    first = registry.call("GET", "/v2/paged/tags/list?n=3")
    assert first.json() == {"name": "paged", "tags": ["C", "a", "b"]}
    following = first.headers["Link"].partition("<")[2].partition(">")[0]
    second = registry.call("GET", following)
    assert second.json()["tags"] == ["d"]
    assert "Link" not in second.headers
    assert registry.call("GET", "/v2/paged/tags/list?n=0").json()["tags"] == []


def test_referrers_are_listed_filtered_and_gone_when_deleted(registry: RegistryProcess) -> None:
    subject, raw = registry.push_image("signed", "v1")
    descriptor = {"mediaType": media_types.OCI_MANIFEST, "digest": subject, "size": len(raw)}
    more = {"subject": descriptor, "artifactType": "application/x.sig", "annotations": {"by": "me"}}
    signature, _ = registry.push_image("signed", "sig", b"signature", **more)
    listed = registry.call("GET", f"/v2/signed/referrers/{subject}")
    assert listed.headers["Content-Type"] == media_types.OCI_INDEX
    entries = listed.json()["manifests"]
    assert [(e["digest"], e["artifactType"], e["annotations"]) for e in entries] == [
        (signature, "application/x.sig", {"by": "me"})
    ]
    filtered = registry.call("GET", f"/v2/signed/referrers/{subject}?artifactType=other")
    assert (filtered.json()["manifests"], filtered.headers["OCI-Filters-Applied"]) == ([], "artifactType")
    assert registry.call("DELETE", f"/v2/signed/manifests/{signature}").status == 202
    assert registry.call("GET", f"/v2/signed/referrers/{subject}").json()["manifests"] == []


def test_a_manifest_with_a_subject_says_so(registry: RegistryProcess) -> None:
    subject, raw = registry.push_image("said", "v1")
    descriptor = {"mediaType": media_types.OCI_MANIFEST, "digest": subject, "size": len(raw)}
    _, second = registry.push_image("said", "v2", subject=descriptor)
    reply = registry.call("PUT", "/v2/said/manifests/v3", second, OCI)
    assert reply.headers["OCI-Subject"] == subject


def test_deleting_a_tag_keeps_the_manifest_and_deleting_the_manifest_takes_its_tags(registry: RegistryProcess) -> None:
    digest, _ = registry.push_image("deleted", "one")
    registry.push_image("deleted", "two")
    assert registry.call("DELETE", "/v2/deleted/manifests/one").status == 202
    assert registry.call("GET", "/v2/deleted/manifests/one").status == 404
    assert registry.call("GET", f"/v2/deleted/manifests/{digest}").status == 200
    assert registry.call("DELETE", f"/v2/deleted/manifests/{digest}").status == 202
    assert registry.call("GET", "/v2/deleted/manifests/two").status == 404


def test_a_deleted_blob_is_gone_at_once_here_and_stays_elsewhere(registry: RegistryProcess) -> None:
    data = b"shared by two"
    digest = registry.push_blob("left", data)
    registry.push_blob("right", data)
    assert registry.call("DELETE", f"/v2/left/blobs/{digest}").status == 202
    assert registry.call("GET", f"/v2/left/blobs/{digest}").status == 404
    assert registry.call("GET", f"/v2/right/blobs/{digest}").body == data


@pytest.mark.parametrize("name", ["manifests/x", "a/blobs/uploads", "tags/list", "x/referrers/y", "v2/v2"])
def test_repositories_may_be_called_like_routes(registry: RegistryProcess, name: str) -> None:
    digest, raw = registry.push_image(name, "v1")
    assert registry.call("GET", f"/v2/{name}/manifests/{digest}").body == raw
    assert registry.call("GET", f"/v2/{name}/tags/list").json()["tags"] == ["v1"]


def test_generated_names_reach_no_file_outside_and_are_never_our_fault(
    registry: RegistryProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    pieces = [
        "..",
        ".",
        "%2e%2e",
        "%2f",
        "%00",
        "sha256:",
        "a",
        "A",
        "__",
        "-",
        "\u00e9",
        "x" * 300,
        "blobs",
        "/",
        "%ff",
    ]
    for _ in range(300):
        name = "".join(dice.choice(pieces) for _ in range(dice.randint(1, 5)))
        reference = "".join(dice.choice(pieces) for _ in range(dice.randint(1, 3)))
        kind = dice.choice(["blobs", "manifests", "referrers", "blobs/uploads"])
        path = f"/v2/{name}/{kind}/{reference}".encode("ascii", "replace").decode().replace("?", "%3f")
        reply = registry.call(dice.choice(["GET", "HEAD", "DELETE", "PUT"]), path)
        assert 200 <= reply.status < 500, (path, reply.status)
    assert {p.name for p in registry.data.iterdir()} <= {
        "blobs", "uploads", "registry.db", "registry.db-wal", "registry.db-shm", "admin-token",
    }  # fmt: skip


def test_a_cancelled_upload_cannot_be_finished_into_a_good_blobs_place(registry: RegistryProcess) -> None:
    """A request that is under way holds its session: a cancel is refused, and what is there stays."""
    location = begin(registry, "held")
    assert registry.call("PATCH", location, BLOB).status == 202
    with socket.create_connection(registry.address) as slow:
        head = f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
        slow.sendall(head.encode())
        wait_until(lambda: registry.call("DELETE", location).status == 409)
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.1 201"
    assert registry.call("DELETE", location).status == 404
    assert registry.call("PUT", f"{location}?digest={DIGEST}").status == 404
    for repository in ("held", "base"):
        assert registry.call("GET", f"/v2/{repository}/blobs/{DIGEST}").body == BLOB


def test_what_a_manifest_needs_is_not_deleted_from_under_it(registry: RegistryProcess) -> None:
    digest, raw = registry.push_image("needed", "v1", b"a layer that is needed")
    layer = json.loads(raw)["layers"][0]["digest"]
    refused = registry.call("DELETE", f"/v2/needed/blobs/{layer}")
    assert (refused.status, refused.code) == (409, "DENIED")
    assert digest in refused.json()["errors"][0]["message"]
    assert registry.call("DELETE", f"/v2/needed/manifests/{digest}").status == 202
    assert registry.call("DELETE", f"/v2/needed/blobs/{layer}").status == 202


@pytest.mark.parametrize("tag", [UNKNOWN, "-bad", "a" * 129])
def test_a_tag_parameter_must_be_a_tag(registry: RegistryProcess, tag: str) -> None:
    digest, raw = registry.push_image("parameter", "v1")
    reply = registry.call("PUT", f"/v2/parameter/manifests/{digest}?tag={tag}", raw, OCI)
    assert (reply.status, reply.code) == (400, "MANIFEST_INVALID")
    assert registry.call("GET", "/v2/parameter/tags/list").json()["tags"] == ["v1"]


def test_a_text_that_cannot_be_stored_is_no_manifest(registry: RegistryProcess) -> None:
    _, raw = registry.push_image("surrogate", "v1")
    body = raw.replace(b"{", b'{"artifactType": "\\ud800",', 1)
    reply = registry.call("PUT", "/v2/surrogate/manifests/v2", body, OCI)
    assert (reply.status, reply.code) == (400, "MANIFEST_INVALID")


def test_a_blob_whose_file_is_lost_is_unknown_until_it_is_pushed_again(tmp_path: Path) -> None:
    with registry_process(tmp_path) as registry:
        layer = b"will be lost"
        _, raw = registry.push_image("lost", "v1", layer)
        digest = str(Digest.of(layer))
        hexadecimal = digest.removeprefix("sha256:")
        (tmp_path / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal).unlink()
        assert registry.call("HEAD", f"/v2/lost/blobs/{digest}").status == 404
        assert registry.call("POST", f"/v2/other/blobs/uploads/?mount={digest}&from=lost").status == 202
        refused = registry.call("PUT", "/v2/lost/manifests/v2", raw, OCI)
        assert (refused.status, refused.code) == (400, "MANIFEST_BLOB_UNKNOWN")
        registry.push_blob("lost", layer)
        assert registry.call("GET", f"/v2/lost/blobs/{digest}").body == layer
        assert registry.call("PUT", "/v2/lost/manifests/v2", raw, OCI).status == 201


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
            refused = registry.call("PATCH", location, data)
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


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
