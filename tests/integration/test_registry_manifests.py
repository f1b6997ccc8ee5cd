"""Manifests: what is taken and what is refused (end-7), and what a tag names when many push at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from faas.oci.manifest import CHILDREN, INDEX_DEPTH, MANIFEST_BYTES
from registry.manifests import TAGS_AT_ONCE
from tests.support.registry import RegistryProcess, registry_process
from tests.support.spec_client import SpecClient

OCI = {"Content-Type": media_types.OCI_MANIFEST}
INDEX = {"Content-Type": media_types.OCI_INDEX}
UNKNOWN = f"sha256:{'0' * 64}"
CONFIG = b'{"architecture":"amd64","os":"linux"}'
LAYER = b"layer"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        for repository in ("base", "sparse"):
            running.push_blob(repository, CONFIG)
            running.push_blob(repository, LAYER)
        policy = json.dumps({"sparse": True}).encode()
        assert running.call("PUT", "/v2/_faas/policies/sparse", policy).status == 204
        yield running


def descriptor(data: bytes, media_type: str = media_types.OCI_LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


CONFIGURED = descriptor(CONFIG, media_types.OCI_CONFIG)
ABSENT = descriptor(b"nobody has this")
AWAY = descriptor(b"this neither", urls=["https://example.com/layer"])


def image(media_type: str = media_types.OCI_MANIFEST, **changes: Any) -> bytes:
    """A good image with these changes; None leaves a field out."""
    value = {"schemaVersion": 2, "mediaType": media_type, "config": CONFIGURED, "layers": [descriptor(LAYER)]}
    return json.dumps({k: v for k, v in {**value, **changes}.items() if v is not None}).encode()


def index(*entries: dict[str, Any], media_type: str = media_types.OCI_INDEX, **more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries, **more}).encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (image(), media_types.OCI_MANIFEST),
        (image(), f"{media_types.OCI_MANIFEST}; charset=utf-8"),
        (image(mediaType=None), media_types.OCI_MANIFEST),
        (image(layers=[]), media_types.OCI_MANIFEST),
        (image(layers=None), media_types.OCI_MANIFEST),
        (image().replace(b'"layers": [', b'"layers": null, "x": ['), media_types.OCI_MANIFEST),
        (image(layers=[AWAY]), media_types.OCI_MANIFEST),
        (image(subject=ABSENT), media_types.OCI_MANIFEST),
        (image(org_example={"a": [None]}), media_types.OCI_MANIFEST),
        (image(artifactType="application/x.y", annotations={"a": "b"}), media_types.OCI_MANIFEST),
        (image(layers=[{**descriptor(LAYER), "data": "bGF5ZXI="}]), media_types.OCI_MANIFEST),
        (image(media_types.DOCKER_MANIFEST), media_types.DOCKER_MANIFEST),
        (index(), media_types.OCI_INDEX),
        (index(subject=ABSENT), media_types.OCI_INDEX),
        (index(media_type=media_types.DOCKER_INDEX), media_types.DOCKER_INDEX),
        (image(annotations={"a": "A" * (MANIFEST_BYTES - 1000)}), media_types.OCI_MANIFEST),
    ],
)
def test_what_is_a_manifest_is_taken_and_given_back_as_it_is(
    registry: RegistryProcess, body: bytes, content_type: str
) -> None:
    reply = registry.call("PUT", "/v2/base/manifests/taken", body, {"Content-Type": content_type})
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, str(Digest.of(body))), reply.body
    assert reply.headers["Location"] == f"/v2/base/manifests/{Digest.of(body)}"
    stored = registry.call("GET", "/v2/base/manifests/taken")
    assert (stored.body, stored.headers["Content-Type"]) == (body, content_type.partition(";")[0])


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"not json", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"[]", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"{}", media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"[" * 100_000, media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2}', "application/json", 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2}', media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":2}', media_types.OCI_INDEX, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":1}', media_types.DOCKER_SCHEMA1, 400, "MANIFEST_INVALID"),
        (b'{"schemaVersion":1}', media_types.DOCKER_SCHEMA1_SIGNED, 400, "MANIFEST_INVALID"),
        (image(schemaVersion=1), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(config=None), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(), media_types.OCI_INDEX, 400, "MANIFEST_INVALID"),  # of another type than the header says
        (image(), media_types.DOCKER_MANIFEST, 400, "MANIFEST_INVALID"),
        (index(), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image("application/vnd.example"), "application/vnd.example", 400, "MANIFEST_INVALID"),
        (index(layers=[]), media_types.OCI_INDEX, 400, "MANIFEST_INVALID"),  # both kinds at once
        (image(manifests=[]), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(annotations={"a": 1}), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(annotations=["a"]), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(artifactType={}), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(artifactType="\ud800"), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),  # no text to store
        (image(subject={"digest": "x"}), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(layers=[{**ABSENT, "size": -1}]), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(layers=[{**ABSENT, "digest": "md5:0"}]), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (image(layers=[ABSENT] * 10_000), media_types.OCI_MANIFEST, 400, "MANIFEST_INVALID"),
        (index(*[ABSENT] * 10_000), media_types.OCI_INDEX, 400, "MANIFEST_INVALID"),
        (b" " * (MANIFEST_BYTES + 1), media_types.OCI_MANIFEST, 413, "MANIFEST_INVALID"),
        (image(layers=[ABSENT]), media_types.OCI_MANIFEST, 400, "MANIFEST_BLOB_UNKNOWN"),
        (image(config=ABSENT), media_types.OCI_MANIFEST, 400, "MANIFEST_BLOB_UNKNOWN"),
        (index(ABSENT), media_types.OCI_INDEX, 400, "MANIFEST_BLOB_UNKNOWN"),
        (index(descriptor(LAYER)), media_types.OCI_INDEX, 400, "MANIFEST_BLOB_UNKNOWN"),  # is here, as a blob
        (index({**ABSENT, "digest": UNKNOWN}), media_types.OCI_INDEX, 400, "MANIFEST_BLOB_UNKNOWN"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_or_lacks_a_part_is_refused_at_once(
    registry: RegistryProcess, body: bytes, content_type: str, status: int, code: str
) -> None:
    for _ in range(3):  # a machine stands still for a second now and then, not three times
        began = time.monotonic()
        reply = registry.call("PUT", "/v2/base/manifests/bad", body, {"Content-Type": content_type})
        assert (reply.status, reply.code) == (status, code)
        if (took := time.monotonic() - began) < 1:
            break
    assert took < 1
    assert registry.call("GET", "/v2/base/manifests/bad").code == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        (UNKNOWN, "DIGEST_INVALID"),
        (f"sha512:{'0' * 128}", "DIGEST_INVALID"),
        ("sha256:baddigeststring", "DIGEST_INVALID"),
        (f"md5:{'0' * 32}", "DIGEST_INVALID"),
        (str(Digest.of(image())).upper(), "DIGEST_INVALID"),
        (".hidden", "MANIFEST_INVALID"),
        ("-dash", "MANIFEST_INVALID"),
        ("a" * 129, "MANIFEST_INVALID"),
        ("a%20b", "MANIFEST_INVALID"),
    ],
)
def test_a_reference_is_a_tag_or_the_bytes_own_digest(registry: RegistryProcess, reference: str, code: str) -> None:
    reply = registry.call("PUT", f"/v2/base/manifests/{reference}", image(), OCI)
    assert (reply.status, reply.code) == (400, code)
    assert registry.call("GET", f"/v2/base/manifests/{reference}").status in (400, 404)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("count", [1, 10, TAGS_AT_ONCE])
def test_tags_beside_a_digest_are_each_named_in_the_answer(
    registry: RegistryProcess, algorithm: str, count: int
) -> None:
    client = SpecClient(registry)
    tags = [f"t{i}" for i in range(count)]
    raw = image(annotations={"count": str(count)})
    digest = str(Digest.of(raw, algorithm))
    answer = client.manifest("base", digest, raw, media_types.OCI_MANIFEST, tag=tags)
    assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest)
    assert answer.every("OCI-Tag") == tags
    for tag in tags:
        assert registry.call("HEAD", f"/v2/base/manifests/{tag}").headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize(
    ("tags", "status", "code"),
    [
        ([UNKNOWN], 400, "MANIFEST_INVALID"),
        (["good", "-bad"], 400, "MANIFEST_INVALID"),
        ([""], 400, "MANIFEST_INVALID"),
        (["a" * 129], 400, "MANIFEST_INVALID"),
        ([f"t{i}" for i in range(TAGS_AT_ONCE + 1)], 414, "UNSUPPORTED"),
    ],
)
def test_with_a_bad_or_one_tag_too_many_nothing_is_stored(
    registry: RegistryProcess, tags: list[str], status: int, code: str
) -> None:
    raw = image(annotations={"refused": "yes"})
    digest = str(Digest.of(raw))
    answer = SpecClient(registry).manifest("base", digest, raw, media_types.OCI_MANIFEST, tag=tags)
    assert (answer.status, answer.code) == (status, code)
    assert registry.call("GET", f"/v2/base/manifests/{digest}").status == 404
    assert registry.call("GET", "/v2/base/manifests/good").status == 404


def test_where_images_may_be_sparse_parts_come_later_or_never(registry: RegistryProcess) -> None:
    late = image(annotations={"comes": "later"})
    entry = descriptor(late, media_types.OCI_MANIFEST)
    for tag, raw, headers in (
        ("index", index(entry, ABSENT), INDEX),
        ("image", image(layers=[ABSENT]), OCI),
    ):
        assert registry.call("PUT", f"/v2/sparse/manifests/{tag}", raw, headers).status == 201
        assert registry.call("GET", f"/v2/sparse/manifests/{tag}").body == raw
    assert registry.call("GET", f"/v2/sparse/manifests/{entry['digest']}").code == "MANIFEST_UNKNOWN"
    assert registry.call("PUT", f"/v2/sparse/manifests/{entry['digest']}", late, OCI).status == 201
    collected = registry.call("POST", "/v2/_faas/gc").json()
    assert (collected["manifests"], collected["blobs"]) == (0, 0)
    assert registry.call("GET", f"/v2/sparse/manifests/{entry['digest']}").body == late
    assert registry.call("GET", f"/v2/sparse/blobs/{ABSENT['digest']}").code == "BLOB_UNKNOWN"
    assert registry.push_blob("sparse", b"nobody has this") == ABSENT["digest"]
    assert registry.call("DELETE", f"/v2/sparse/blobs/{ABSENT['digest']}").status == 405  # the image needs it now


def test_indexes_go_so_deep_and_no_deeper(registry: RegistryProcess) -> None:
    raw = image(annotations={"at": "the bottom"})
    assert registry.call("PUT", "/v2/base/manifests/deep", raw, OCI).status == 201
    entry = descriptor(raw, media_types.OCI_MANIFEST)
    replies = []
    for level in range(64):
        raw = index(entry, annotations={"level": str(level)})
        replies.append(registry.call("PUT", "/v2/base/manifests/deep", raw, INDEX))
        if replies[-1].status != 201:
            break
        entry = descriptor(raw, media_types.OCI_INDEX)
    assert len(replies) == INDEX_DEPTH + 1
    assert (replies[-1].status, replies[-1].code) == (400, "MANIFEST_INVALID")


def test_a_wide_image_is_stored_quickly(registry: RegistryProcess) -> None:
    client = SpecClient(registry)
    data = [b"wide %d" % i for i in range(20)]
    for blob in data:
        client.blob("base", blob)
    entries = [descriptor(data[i % 20]) for i in range(CHILDREN)]
    for number in range(3):
        wide = image(layers=entries, annotations={"number": str(number)})
        began = time.monotonic()
        assert registry.call("PUT", "/v2/base/manifests/wide", wide, OCI).status == 201
        if (took := time.monotonic() - began) < 2:
            break
    assert took < 2


@pytest.mark.parametrize("accept", [None, "*/*", media_types.DOCKER_MANIFEST, media_types.DOCKER_SCHEMA1_SIGNED])
def test_the_stored_type_is_given_whatever_is_accepted(registry: RegistryProcess, accept: str | None) -> None:
    raw = index(annotations={"a": "list"})
    assert registry.call("PUT", "/v2/base/manifests/typed", raw, INDEX).status == 201
    reply = registry.call("GET", "/v2/base/manifests/typed", headers={"Accept": accept} if accept else {})
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, raw, media_types.OCI_INDEX)


def annotated(count: int, **more: str) -> dict[str, bytes]:
    """Images, each with its digest."""
    return {str(Digest.of(raw)): raw for raw in (image(annotations={"i": str(i), **more}) for i in range(count))}


def test_of_many_pushes_of_one_tag_at_once_the_last_that_was_acknowledged_wins(registry: RegistryProcess) -> None:
    bodies = annotated(100)

    def push(digest: str) -> tuple[float, float, str]:
        began = time.monotonic()
        assert registry.call("PUT", "/v2/base/manifests/raced", bodies[digest], OCI).status == 201
        return began, time.monotonic(), digest

    with ThreadPoolExecutor(8) as threads:
        pushes = list(threads.map(push, bodies))
    named = registry.call("GET", "/v2/base/manifests/raced")
    digest = named.headers["Docker-Content-Digest"]
    assert named.body == bodies[digest]
    acknowledged = next(ended for _, ended, pushed in pushes if pushed == digest)
    assert not [pushed for began, _, pushed in pushes if began > acknowledged]


def test_while_a_tag_and_its_manifests_are_deleted_it_names_something_or_nothing(registry: RegistryProcess) -> None:
    bodies = annotated(100, also="deleted")

    def push_and_delete(turn: tuple[int, str]) -> None:
        number, digest = turn
        assert registry.call("PUT", "/v2/base/manifests/torn", bodies[digest], OCI).status == 201
        if number % 2:
            registry.call("DELETE", f"/v2/base/manifests/{digest if number % 4 == 1 else 'torn'}")

    def pull(_: object) -> None:
        reply = registry.call("GET", "/v2/base/manifests/torn")
        assert reply.status == 404 or bodies[reply.headers["Docker-Content-Digest"]] == reply.body

    with ThreadPoolExecutor(8) as threads:
        for work in (threads.map(push_and_delete, enumerate(bodies)), threads.map(pull, bodies)):
            list(work)
    listed = "torn" in registry.call("GET", "/v2/base/tags/list").json()["tags"]
    assert registry.call("GET", "/v2/base/manifests/torn").status == (200 if listed else 404)
