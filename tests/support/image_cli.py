"""What the tests of `faas image` share: images pushed by hand, and what lies in a layout."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faas.oci import media_types
from tests.support.cli import CommandLine
from tests.support.fake_api import INFO, Reply
from tests.support.registry import RegistryProcess

SIGNATURE = "application/vnd.example.signature"
REF_NAME = "org.opencontainers.image.ref.name"


def at(faas: CommandLine, registry: RegistryProcess) -> None:
    faas.api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": registry.host})


def push_signature(registry: RegistryProcess, repository: str, digest: str, raw: bytes) -> str:
    """By its digest alone, as signing programs do."""
    subject = {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": len(raw)}
    made, _ = registry.push_image(repository, "made", b"sig" + digest.encode(), subject=subject, artifactType=SIGNATURE)
    assert registry.call("DELETE", f"/v2/{repository}/manifests/made").status == 202
    return made


def push_index(registry: RegistryProcess, repository: str, tag: str) -> dict[str, tuple[str, bytes]]:
    """An index for amd64 and arm64; by architecture, and "" for itself: (digest, bytes)."""
    made = {name: registry.push_image(repository, f"{tag}-{name}", f"{tag} {name}".encode()) for name in ARCHITECTURES}
    rows = [
        {
            "mediaType": media_types.OCI_MANIFEST,
            "digest": digest,
            "size": len(raw),
            "platform": {"os": "linux", "architecture": name},
        }
        for name, (digest, raw) in made.items()
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": rows}).encode()
    reply = registry.call("PUT", f"/v2/{repository}/manifests/{tag}", index, {"Content-Type": media_types.OCI_INDEX})
    assert reply.status == 201
    return {**made, "": (reply.headers["Docker-Content-Digest"], index)}


ARCHITECTURES = ("amd64", "arm64")


def manifest(registry: RegistryProcess, repository: str, reference: str) -> bytes:
    reply = registry.call("GET", f"/v2/{repository}/manifests/{reference}")
    assert reply.status == 200, reply.body
    return reply.body


def tags(registry: RegistryProcess, repository: str) -> list[str]:
    reply = registry.call("GET", f"/v2/{repository}/tags/list")
    return list(reply.json()["tags"]) if reply.status == 200 else []


def files(layout: Path) -> dict[str, bytes]:
    """Everything in a layout, folder or tar."""
    if layout.is_dir():
        return {str(p.relative_to(layout)): p.read_bytes() for p in layout.rglob("*") if p.is_file()}
    with tarfile.open(layout) as archive:
        return {m.name: (archive.extractfile(m) or pytest.fail(m.name)).read() for m in archive}


def check_blobs(layout: Path) -> dict[str, bytes]:
    """Each is what its name says."""
    found = files(layout)
    for name, data in found.items():
        if name.startswith("blobs/"):
            _, algorithm, digest = name.split("/")
            assert hashlib.new(algorithm, data).hexdigest() == digest
    return found


def rewritten(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """index.json after a change of its one row."""
    index = json.loads((layout / "index.json").read_text())
    change(index["manifests"][0])
    (layout / "index.json").write_text(json.dumps(index))


def slow_blob(source: RegistryProcess, repository: str, megabytes: int) -> str:
    """The digest of a layer of zeros, uploaded in pieces."""
    piece, hasher = bytes(1 << 20), hashlib.sha256()
    for _ in range(megabytes):
        hasher.update(piece)
    digest = f"sha256:{hasher.hexdigest()}"
    reply = source.call("POST", f"/v2/{repository}/blobs/uploads/")
    location = reply.headers["Location"]
    for number in range(0, megabytes, 50):
        body = piece * min(50, megabytes - number)
        location = source.call("PATCH", location, body).headers["Location"]
    assert source.call("PUT", f"{location}?digest={digest}", b"").status == 201
    return digest


def push_large(source: RegistryProcess, repository: str, megabytes: int) -> str:
    digest = slow_blob(source, repository, megabytes)
    _, raw = source.push_image(repository, "small", b"small")
    value = json.loads(raw)
    value["layers"] = [{"mediaType": media_types.OCI_LAYER, "digest": digest, "size": megabytes << 20}]
    sent = json.dumps(value).encode()
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    assert source.call("PUT", f"/v2/{repository}/manifests/v1", sent, headers).status == 201
    return digest
