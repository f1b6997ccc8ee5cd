"""What a client of the distribution-spec does, from the first blob to the last delete: with Basic, and with tokens that
say no more than the challenge asked for. (The files beside this one do without a login.)
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.registry import registry_process
from tests.support.spec_client import OCTETS, SpecClient

EXAMPLE = "application/vnd.example.thing.v1"
EMPTY = "application/vnd.oci.empty.v1+json"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
ALGORITHMS = ("sha256", "sha512")
PIECE = 1024


@pytest.fixture(scope="module", params=["basic", "token"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpecClient]:
    with registry_process(tmp_path_factory.mktemp("registry"), request.param) as running:
        policy = json.dumps({"sparse": True}).encode()
        assert running.call("PUT", "/v2/_faas/policies/conformance/sparse", policy).status == 204
        yield SpecClient(running)
        assert running.stop() == 0


# --- blobs: every way in

Way = Callable[[SpecClient, str, bytes, str], str]  # (client, repository, data, digest) -> the blob's location


def post(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
    answer = client.call("POST", f"/v2/{repository}/blobs/uploads/", data, OCTETS, {"digest": digest})
    assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest)
    return answer["Location"]


def post_and_put(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
    location = client.begin(repository)
    return put(client, location, data, digest)


def streamed(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
    location = client.begin(repository, **{"digest-algorithm": digest.partition(":")[0]})
    answer = client.call("PATCH", location, data, OCTETS)
    assert answer.status == 202
    return put(client, answer["Location"], b"", digest)


def put(client: SpecClient, location: str, data: bytes, digest: str, **headers: str) -> str:
    answer = client.call("PUT", location, data, {**OCTETS, **headers}, {"digest": digest})
    assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest), answer
    return answer["Location"]


def in_chunks(last_with_put: bool, lost: bool) -> Way:
    """`lost`: before each chunk comes one that does not follow, after which the session says where it is."""

    def way(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
        location = client.begin(repository)
        for first in range(0, len(data), PIECE):
            end = min(first + PIECE, len(data))
            if lost and len(data) > PIECE:
                location = astray(client, location, data, digest, first, last_with_put)
            chunk = {"Content-Range": f"{first}-{end - 1}"}
            if last_with_put and end == len(data):
                return put(client, location, data[first:end], digest, **chunk)
            answer = client.call("PATCH", location, data[first:end], {**OCTETS, **chunk})
            assert (answer.status, answer["Range"]) == (202, f"0-{end - 1}")
            location = answer["Location"]
        return put(client, location, b"", digest)

    return way


def astray(client: SpecClient, location: str, data: bytes, digest: str, stored: int, with_put: bool) -> str:
    first = stored + PIECE if stored + PIECE < len(data) else 0
    wrong = data[first : first + PIECE]
    headers = {**OCTETS, "Content-Range": f"{first}-{first + len(wrong) - 1}"}
    if with_put and first + len(wrong) == len(data):
        refused = client.call("PUT", location, wrong, headers, {"digest": digest})
    else:
        refused = client.call("PATCH", location, wrong, headers)
    assert (refused.status, refused.code) == (416, "BLOB_UPLOAD_INVALID")
    status = client.call("GET", refused["Location"])
    assert (status.status, status["Range"]) == (204, f"0-{max(0, stored - 1)}")
    return status["Location"]


def mounted(named: bool) -> Way:
    def way(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
        client.blob("conformance/source", data, digest.partition(":")[0])
        params = {"mount": digest} | ({"from": "conformance/source"} if named else {})
        answer = client.call("POST", f"/v2/{repository}/blobs/uploads/", params=params)
        assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest), answer
        assert client.call("DELETE", f"/v2/conformance/source/blobs/{digest}").status == 202
        return answer["Location"]

    return way


def mounted_in_vain(client: SpecClient, repository: str, data: bytes, digest: str) -> str:
    """Nobody has it: a session instead, as if no mount had been asked for."""
    params = {"mount": digest, "from": "conformance/source"}
    answer = client.call("POST", f"/v2/{repository}/blobs/uploads/", params=params)
    assert answer.status == 202
    return put(client, answer["Location"], data, digest)


@pytest.mark.parametrize(("size", "algorithm"), [(0, "sha256"), (3 * PIECE - 5, "sha256"), (3 * PIECE - 5, "sha512")])
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(post, id="one-post"),
        pytest.param(post_and_put, id="post-and-put"),
        pytest.param(streamed, id="streamed"),
        pytest.param(in_chunks(False, False), id="chunks"),
        pytest.param(in_chunks(True, False), id="last-chunk-with-put"),
        pytest.param(in_chunks(False, True), id="chunks-out-of-order"),
        pytest.param(in_chunks(True, True), id="last-chunk-out-of-order"),
        pytest.param(mounted(named=True), id="mount"),
        pytest.param(mounted(named=False), id="anonymous-mount"),
        pytest.param(mounted_in_vain, id="mount-of-nothing"),
    ],
)
def test_a_blob_comes_in_is_read_and_deleted(client: SpecClient, way: Way, size: int, algorithm: str) -> None:
    data = secrets.token_bytes(size)
    digest = str(Digest.of(data, algorithm))
    path = f"/v2/conformance/blobs/blobs/{digest}"
    assert client.call("GET", path).code == "BLOB_UNKNOWN"
    location = way(client, "conformance/blobs", data, digest)
    for where in (location, path):
        answer = client.call("GET", where)
        assert (answer.status, answer.body) == (200, data)
        assert (answer["Docker-Content-Digest"], answer["Content-Length"]) == (digest, str(size))
    head = client.call("HEAD", path)
    assert (head.status, head.body, head["Content-Length"]) == (200, b"", str(size))
    assert head["Docker-Content-Digest"] == digest
    assert client.call("DELETE", path).status == 202
    assert client.call("HEAD", path).status == 404
    assert client.call("DELETE", path).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", [post, post_and_put, streamed, in_chunks(False, False), in_chunks(True, False)])
def test_other_bytes_than_the_digest_says_are_refused(client: SpecClient, way: Way, algorithm: str) -> None:
    data = secrets.token_bytes(2 * PIECE)
    digest = str(Digest.of(data, algorithm))
    with pytest.raises(AssertionError, match="400"):
        way(client, "conformance/blobs", data + b"more", digest)
    assert client.call("HEAD", f"/v2/conformance/blobs/blobs/{digest}").status == 404


# --- images, indexes, artifacts


@dataclass
class Content:
    """Manifests in the order of a push; `missing`: blobs of which nobody brings the bytes."""

    algorithm: str = "sha256"
    more: dict[str, Any] = field(default_factory=dict)  # in every manifest
    with_data: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    listed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # subject -> what the referrers say

    def described(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = str(Digest.of(data, self.algorithm))
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def blob(self, media_type: str, data: bytes | None = None) -> dict[str, Any]:
        data = secrets.token_bytes(600) if data is None else data
        descriptor = self.described(media_type, data)
        self.blobs[descriptor["digest"]] = data
        return descriptor

    def document(self, media_type: str, value: dict[str, Any], tag: str = "") -> dict[str, Any]:
        value = {"schemaVersion": 2, "mediaType": media_type, **value, **self.more}
        raw = json.dumps(value, indent=1).encode()
        descriptor = self.described(media_type, raw)
        self.manifests[descriptor["digest"]] = (media_type, raw)
        if tag:
            self.tags[tag] = descriptor["digest"]
        if "subject" in value:
            kind = value.get("artifactType") or value.get("config", {}).get("mediaType")
            entry = {**descriptor, "annotations": value.get("annotations"), "artifactType": kind}
            entry = {key: item for key, item in entry.items() if item}
            self.listed.setdefault(value["subject"]["digest"], []).append(entry)
        return descriptor

    def image(self, tag: str = "", layers: int = 2, **more: Any) -> dict[str, Any]:
        config = self.blob(media_types.OCI_CONFIG, json.dumps({"rootfs": {}, "id": secrets.token_hex(8)}).encode())
        below = [self.blob(media_types.OCI_LAYER_GZIP) for _ in range(layers)]
        return self.document(media_types.OCI_MANIFEST, {"config": config, "layers": below, **more}, tag)

    def artifact(self, tag: str = "", layer: bytes | None = None, **more: Any) -> dict[str, Any]:
        parts = {"config": self.blob(EMPTY, b"{}"), "layers": [self.blob(EXAMPLE, layer)]}
        return self.document(media_types.OCI_MANIFEST, {"artifactType": EXAMPLE, **parts, **more}, tag)

    def index(self, entries: list[dict[str, Any]], tag: str = "", **more: Any) -> dict[str, Any]:
        return self.document(media_types.OCI_INDEX, {"manifests": entries, **more}, tag)


def one_image(content: Content) -> None:
    content.image("image")


def large(content: Content) -> None:
    content.image("large", annotations={f"note-{i}": "A" * 10_000 for i in range(390)})


def two_platforms(content: Content) -> None:
    content.index([content.image(), content.image()], "index", annotations={"by": "me"})


def nested(content: Content) -> None:
    content.index([content.index([content.image()]), content.index([content.image()])], "nested")


def empty_index(content: Content) -> None:
    content.index([], "empty")


def artifacts(content: Content) -> None:
    content.artifact("plain")
    content.artifact("hollow", b"{}")
    content.index([content.artifact(), content.artifact()], "several", artifactType=EXAMPLE)


def subjects(content: Content) -> None:
    subject = content.image("subject")
    content.image(subject=subject)
    content.artifact("first", subject=subject, annotations={"by": "me", "at": secrets.token_hex(4)})
    content.artifact("second", subject=subject, artifactType="application/vnd.example.other")
    whole = content.index([content.image()], "whole")
    content.index([content.artifact()], subject=whole, artifactType=EXAMPLE, annotations={"by": "me"})
    content.index([content.image()], subject=whole)  # has no artifact type at all


def subject_not_here(content: Content) -> None:
    absent = {"mediaType": media_types.OCI_MANIFEST, "size": 123, "digest": str(Digest.of(secrets.token_bytes(8)))}
    content.artifact("tagged", subject=absent, annotations={"by": "me"})


def data_within(content: Content) -> None:
    config = {**content.blob(EMPTY, b"{}"), "data": "e30="}
    content.document(media_types.OCI_MANIFEST, {"artifactType": EXAMPLE, "config": config, "layers": [config]}, "data")


def fields_of_others(content: Content) -> None:
    content.more = {"org.example.field": {"a": [1, None]}}
    content.index([content.image(), content.image()], "fields")


def layers_elsewhere(content: Content) -> None:
    away = content.described(FOREIGN, secrets.token_bytes(9)) | {"urls": ["https://store.example.com/layer"]}
    parts = {"config": content.blob(media_types.OCI_CONFIG, b'{"os":"x"}'), "layers": [away]}
    content.document(media_types.OCI_MANIFEST, parts, "foreign")


def no_layers(content: Content) -> None:
    content.image("bare", layers=0)


def sparse(content: Content) -> None:
    absent = content.described(media_types.OCI_MANIFEST, secrets.token_bytes(1024))
    content.index([content.image(), absent], "some-platforms")
    left_out = content.image("some-layers")
    _, raw = content.manifests[left_out["digest"]]
    del content.blobs[json.loads(raw)["layers"][0]["digest"]]


def docker(content: Content) -> None:
    parts = {
        "config": content.blob(media_types.DOCKER_CONFIG, b"{} "),
        "layers": [content.blob(media_types.DOCKER_LAYER_GZIP)],
    }
    image = content.document(media_types.DOCKER_MANIFEST, parts, "docker")
    content.document(media_types.DOCKER_INDEX, {"manifests": [image]}, "docker-list")


@pytest.mark.parametrize(
    ("algorithm", "with_parameters"),
    [
        pytest.param("sha256", False, id="sha256"),
        pytest.param("sha256", True, id="sha256-tag-parameters"),
        pytest.param("sha512", True, id="sha512-tag-parameters"),  # the only way to tag one
    ],
)
@pytest.mark.parametrize(
    "made",
    [
        one_image, large, two_platforms, nested, empty_index, artifacts, subjects, subject_not_here, data_within,
        fields_of_others, layers_elsewhere, no_layers, sparse, docker,
    ],
)  # fmt: skip
def test_content_is_pushed_listed_pulled_and_deleted(
    client: SpecClient, made: Callable[[Content], None], with_parameters: bool, algorithm: str
) -> None:
    repository = "conformance/sparse" if made is sparse else "conformance/content"
    content = Content(algorithm)
    made(content)
    for digest, data in content.blobs.items():
        assert client.blob(repository, data, algorithm) == digest
    push_manifests(client, repository, content, with_parameters)
    assert client.call("GET", f"/v2/{repository}/tags/list").json()["tags"] == sorted(content.tags)
    for reference, digest in [*content.tags.items(), *((d, d) for d in content.manifests)]:
        pull_manifest(client, repository, reference, digest, *content.manifests[digest])
    for subject, entries in content.listed.items():
        list_referrers(client, repository, subject, entries)
    delete_everything(client, repository, content)


def push_manifests(client: SpecClient, repository: str, content: Content, with_parameters: bool) -> None:
    for digest, (media_type, raw) in content.manifests.items():
        names = [tag for tag, named in content.tags.items() if named == digest]
        params = {"tag": names} if with_parameters else {}
        for reference in [digest] if with_parameters else [digest, *names]:
            answer = client.manifest(repository, reference, raw, media_type, **params)
            assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest), answer
            assert answer["OCI-Subject"] == json.loads(raw).get("subject", {}).get("digest", "")
            assert answer.every("OCI-Tag") == (names if with_parameters else [])
            pull_manifest(client, repository, answer["Location"].rpartition("/")[2], digest, media_type, raw)


def pull_manifest(
    client: SpecClient, repository: str, reference: str, digest: str, media_type: str, raw: bytes
) -> None:
    for method, body in (("GET", raw), ("HEAD", b"")):
        answer = client.call(method, f"/v2/{repository}/manifests/{reference}", headers={"Accept": media_type})
        assert (answer.status, answer.body) == (200, body)
        assert (answer["Content-Type"], answer["Content-Length"]) == (media_type, str(len(raw)))
        assert answer["Docker-Content-Digest"] == digest


def list_referrers(client: SpecClient, repository: str, subject: str, entries: list[dict[str, Any]]) -> None:
    path = f"/v2/{repository}/referrers/{subject}"
    answer = client.call("GET", path)
    assert (answer.status, answer["Content-Type"]) == (200, media_types.OCI_INDEX)
    listed = answer.json()
    assert (listed["schemaVersion"], listed["mediaType"]) == (2, media_types.OCI_INDEX)
    assert sorted(listed["manifests"], key=lambda e: str(e["digest"])) == sorted(
        entries, key=lambda e: str(e["digest"])
    )
    for kind in {entry.get("artifactType") for entry in entries} - {None}:
        filtered = client.call("GET", path, params={"artifactType": str(kind)})
        assert filtered["OCI-Filters-Applied"] == "artifactType"
        fitting = {entry["digest"] for entry in entries if entry.get("artifactType") == kind}
        assert {entry["digest"] for entry in filtered.json()["manifests"]} == fitting


def delete_everything(client: SpecClient, repository: str, content: Content) -> None:
    """Blobs first: those that a manifest needs are refused, and nothing is lost. Then from the top down."""
    for digest in content.blobs:
        path = f"/v2/{repository}/blobs/{digest}"
        refused = client.call("DELETE", path)
        assert (refused.status, refused.code, refused["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
        assert client.call("HEAD", path).status == 200
    for reference in [*content.tags, *reversed(content.manifests)]:
        path = f"/v2/{repository}/manifests/{reference}"
        assert client.call("DELETE", path).status == 202
        assert client.call("HEAD", path).status == 404
        assert client.call("DELETE", path).code == "MANIFEST_UNKNOWN"
    for digest in content.blobs:
        path = f"/v2/{repository}/blobs/{digest}"
        assert client.call("DELETE", path).status == 202
        assert client.call("HEAD", path).status == 404
    for subject in content.listed:
        assert client.call("GET", f"/v2/{repository}/referrers/{subject}").json()["manifests"] == []
    assert client.call("GET", f"/v2/{repository}/tags/list").json()["tags"] == []
