"""Referrers (end-12): what says that it is about a manifest, in pages, and what an old tag index says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from registry.index.referrers import PAGE_BYTES, fitting
from tests.support.registry import RegistryProcess, registry_process

SUBJECT: dict[str, Any] = {"mediaType": media_types.OCI_MANIFEST, "digest": str(Digest.of(b"a subject")), "size": 9}
CONFIG = b'{"kind":"config"}'
THING = "application/vnd.example.thing"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        yield running


def push(registry: RegistryProcess, repository: str, reference: str = "", **fields: Any) -> dict[str, Any]:
    """An image (with `manifests`: an index) with these fields; how the referrers would list it."""
    registry.push_blob(repository, CONFIG)
    if "manifests" in fields:
        media_type, parts = media_types.OCI_INDEX, {}
    else:
        config = {"mediaType": media_types.OCI_CONFIG, "digest": str(Digest.of(CONFIG)), "size": len(CONFIG)}
        media_type, parts = media_types.OCI_MANIFEST, {"config": config, "layers": []}
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_type, **parts, **fields}).encode()
    digest = str(Digest.of(raw))
    path = f"/v2/{repository}/manifests/{reference or digest}"
    reply = registry.call("PUT", path, raw, {"Content-Type": media_type})
    assert reply.status == 201, reply.body
    assert reply.headers.get("OCI-Subject") == (fields["subject"]["digest"] if "subject" in fields else None)
    kind = fields.get("artifactType") or (media_types.OCI_CONFIG if parts else "")
    listed = {"mediaType": media_type, "digest": digest, "size": len(raw), "artifactType": kind}
    return {k: v for k, v in {**listed, "annotations": fields.get("annotations")}.items() if v}


def listed(registry: RegistryProcess, repository: str, subject: str, query: str = "") -> list[dict[str, Any]]:
    reply = registry.call("GET", f"/v2/{repository}/referrers/{subject}{query}")
    assert (reply.status, reply.headers["Content-Type"]) == (200, media_types.OCI_INDEX)
    document = reply.json()
    assert (document["schemaVersion"], document["mediaType"]) == (2, media_types.OCI_INDEX)
    entries: list[dict[str, Any]] = document["manifests"]
    return entries


def by_digest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: str(entry["digest"]))


@pytest.mark.parametrize(
    "fields",
    [
        {},  # the config's type stands for it
        {"artifactType": THING},
        {"annotations": {"by": "me", "empty": ""}},
        {"artifactType": THING, "annotations": {"by": "\u00e9"}},
        {"manifests": []},  # an index without a type has none
        {"manifests": [], "artifactType": THING, "annotations": {"by": "me"}},
    ],
)
def test_a_referrer_is_described_until_it_is_deleted(registry: RegistryProcess, fields: dict[str, Any]) -> None:
    entry = push(registry, "described", subject=SUBJECT, **fields)
    assert listed(registry, "described", SUBJECT["digest"]) == [entry]
    assert listed(registry, "elsewhere", SUBJECT["digest"]) == []
    assert registry.call("DELETE", f"/v2/described/manifests/{entry['digest']}").status == 202
    assert listed(registry, "described", SUBJECT["digest"]) == []


@pytest.mark.parametrize("repository", ["nobody", "described"])
@pytest.mark.parametrize("digest", [f"sha256:{'0' * 64}", f"sha512:{'0' * 128}"])
def test_nobody_refers_to_what_is_not_here(registry: RegistryProcess, repository: str, digest: str) -> None:
    registry.push_blob("described", CONFIG)
    assert listed(registry, repository, digest) == []
    filtered = registry.call("GET", f"/v2/{repository}/referrers/{digest}?artifactType=x")
    assert (filtered.json()["manifests"], filtered.headers["OCI-Filters-Applied"]) == ([], "artifactType")


@pytest.mark.parametrize("digest", ["latest", "sha256:short", f"md5:{'0' * 32}", f"sha256:{'A' * 64}"])
def test_what_is_no_digest_is_said(registry: RegistryProcess, digest: str) -> None:
    reply = registry.call("GET", f"/v2/described/referrers/{digest}")
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")


def test_a_subject_of_sha512_is_found_by_it(registry: RegistryProcess) -> None:
    subject = {**SUBJECT, "digest": str(Digest.of(b"a subject", "sha512"))}
    entry = push(registry, "long", subject=subject)
    assert listed(registry, "long", subject["digest"]) == [entry]


@pytest.mark.parametrize("kind", [None, THING])
def test_pages_hold_each_one_once_and_the_filter_goes_on(registry: RegistryProcess, kind: str | None) -> None:
    repository = "paged" if kind else "paged-all"
    entries = [
        push(
            registry, repository, subject=SUBJECT, artifactType=THING if i % 3 else "x/other", annotations={"i": str(i)}
        )
        for i in range(11)
    ]
    wanted = [entry for entry in entries if kind in (None, entry["artifactType"])]
    seen: list[dict[str, Any]] = []
    following = f"/v2/{repository}/referrers/{SUBJECT['digest']}?n=2" + (f"&artifactType={kind}" if kind else "")
    while following:
        reply = registry.call("GET", following)
        assert 0 < len(reply.json()["manifests"]) <= 2
        assert reply.headers.get("OCI-Filters-Applied") == ("artifactType" if kind else None)
        seen += reply.json()["manifests"]
        following = reply.headers.get("Link", "").partition("<")[2].partition(">")[0]
    assert seen == by_digest(wanted)


def test_no_answer_is_larger_than_a_manifest_may_be(registry: RegistryProcess) -> None:
    entries = [
        push(registry, "heavy", subject=SUBJECT, annotations={"i": str(i), "a": "A" * 1_500_000}) for i in range(3)
    ]
    path = f"/v2/heavy/referrers/{SUBJECT['digest']}"
    first = registry.call("GET", path)
    assert first.json()["manifests"] == by_digest(entries)[:2]
    assert len(first.body) <= PAGE_BYTES
    rest = registry.call("GET", first.headers["Link"].partition("<")[2].partition(">")[0])
    assert rest.json()["manifests"] == by_digest(entries)[2:]
    assert "Link" not in rest.headers


@pytest.mark.parametrize(
    ("sizes", "count"), [([], 0), ([1], 1), ([PAGE_BYTES + 1, 1], 1), ([PAGE_BYTES, 1], 1), ([PAGE_BYTES - 1, 1, 1], 2)]
)
def test_at_least_one_fits(sizes: list[int], count: int) -> None:
    assert fitting(sizes) == count


def tag_index(registry: RegistryProcess, repository: str, tag: str, entries: list[dict[str, Any]]) -> None:
    plain = [{k: entry[k] for k in ("mediaType", "digest", "size")} for entry in entries]
    push(registry, repository, tag, manifests=plain)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_what_stands_in_the_referrers_tag_is_listed_as_well(registry: RegistryProcess, algorithm: str) -> None:
    repository = f"copied-{algorithm}"
    subject = Digest.of(b"a subject", algorithm)
    about = {**SUBJECT, "digest": str(subject)}
    other = {**SUBJECT, "digest": str(Digest.of(b"another", algorithm))}
    said = push(registry, repository, subject=about, annotations={"says": "so"})
    only_here = push(registry, repository, artifactType=THING, annotations={"kept": "by a tag"})
    of_another = push(registry, repository, subject=other)
    tag = f"{algorithm}-{subject.hex[:64]}"
    tag_index(registry, repository, tag, [said, only_here, of_another])
    assert listed(registry, repository, str(subject)) == by_digest([said, only_here])
    assert listed(registry, repository, str(subject), f"?artifactType={THING}") == [only_here]
    assert registry.call("DELETE", f"/v2/{repository}/manifests/{tag}").status == 202
    assert listed(registry, repository, str(subject)) == [said]


def test_a_tag_like_that_on_an_image_lists_nothing(registry: RegistryProcess) -> None:
    subject = Digest.of(b"a subject")
    push(registry, "no-index", f"sha256-{subject.hex}")
    assert listed(registry, "no-index", str(subject)) == []


def test_what_a_tag_index_listed_is_off_the_list_when_it_is_deleted(registry: RegistryProcess) -> None:
    subject = Digest.of(b"a subject")
    entry = push(registry, "gone", artifactType=THING)
    tag_index(registry, "gone", f"sha256-{subject.hex}", [entry])
    assert listed(registry, "gone", str(subject)) == [entry]
    assert registry.call("DELETE", f"/v2/gone/manifests/{entry['digest']}").status == 202
    assert listed(registry, "gone", str(subject)) == []
