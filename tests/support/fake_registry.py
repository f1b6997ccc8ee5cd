"""Enough of a registry, in memory, for a push: blobs, mounts, manifests by tag and digest."""

from __future__ import annotations

import hashlib
import json
import re

from faas.oci import media_types
from faas.oci.manifest import ImageConfig
from tests.support.fake_api import Reply, Seen


class FakeRegistry:
    """Give it to `FakeApi.otherwise`. `manifests` is keyed by (repository, tag or digest)."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.uploaded: list[tuple[str, int]] = []

    def __call__(self, seen: Seen) -> Reply | None:
        found = re.fullmatch(r"/v2/(.+)/(blobs/uploads|blobs|manifests)/(.*)", seen.path)
        if found is None:
            return Reply({}) if seen.path == "/v2/" else None
        repository, kind, name = found.groups()
        answer = {"blobs/uploads": self._upload, "blobs": self._blob, "manifests": self._manifest}[kind]
        return answer(seen, repository, name)

    def add_base(self, repository: str = "runtime/python") -> str:
        """A base with one layer; returns `repository@digest`."""
        layer = b"base layer"
        config = ImageConfig("amd64", entrypoint=("/usr/bin/python3.11", "/opt/faas/python/bootstrap.py")).to_json()
        descriptors = [
            {"mediaType": kind, "digest": self.put_blob(repository, data), "size": len(data)}
            for kind, data in ((media_types.OCI_CONFIG, config), (media_types.OCI_LAYER, layer))
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": descriptors[0],
            "layers": descriptors[1:],
        }
        return f"{repository}@{self.put_manifest(repository, '3.11', json.dumps(manifest).encode())}"

    def put_blob(self, repository: str, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[repository, digest] = data
        return digest

    def put_manifest(self, repository: str, tag: str, raw: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        self.manifests[repository, tag] = self.manifests[repository, digest] = raw
        return digest

    def digest(self, repository: str, tag: str) -> str:
        return "sha256:" + hashlib.sha256(self.manifests[repository, tag]).hexdigest()

    def _upload(self, seen: Seen, repository: str, name: str) -> Reply:
        if seen.method == "POST":
            mounted = self.blobs.get((seen.query.get("from", ""), seen.query.get("mount", "")))
            if mounted is not None:
                self.put_blob(repository, mounted)
                return Reply(status=201)
            return Reply(status=202, headers={"Location": f"/v2/{repository}/blobs/uploads/session"})
        if seen.method == "PUT":
            assert self.put_blob(repository, seen.body) == seen.query["digest"]
            self.uploaded.append((repository, len(seen.body)))
            return Reply(status=201)
        return Reply(status=204)

    def _blob(self, seen: Seen, repository: str, name: str) -> Reply:
        data = self.blobs.get((repository, name))
        return Reply(status=404) if data is None else Reply(data)

    def _manifest(self, seen: Seen, repository: str, name: str) -> Reply:
        if seen.method == "PUT":
            self.put_manifest(repository, name, seen.body)
            return Reply(status=201)
        raw = self.manifests.get((repository, name))
        if raw is None:
            return Reply(status=404)
        return Reply(raw, headers={"Content-Type": media_types.OCI_MANIFEST})
