"""Small images of random bytes, in the forms that clients read: an OCI layout, and Docker's archive."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from faas.oci import media_types
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest, canonical_json
from tests.support.images import MemoryImages, tar_of

NAMED = "org.opencontainers.image.ref.name"  # image-spec, annotations.md: a layout's tags
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"


class Samples(MemoryImages):
    """Made together, so that images may share layers and one layout may hold several."""

    def layer(self, size: int = 2000) -> bytes:
        """A tar archive that nobody has seen: one file, named after its bytes."""
        data = secrets.token_bytes(size)
        return tar_of({data[:4].hex(): data})

    def image(self, *layers: bytes, **config: object) -> Manifest:
        """Of these layers, else of two new ones; `config` are `ImageConfig`'s fields."""
        reference = self.add("sample", list(layers) or [self.layer(), self.layer()], compress=True, **config)
        return self.manifests[reference.partition("@")[2]]

    def index(self, *architectures: str) -> Manifest:
        """One image for each."""
        rows = [
            {**self.image(architecture=name).descriptor().to_json(), "platform": {"architecture": name, "os": "linux"}}
            for name in architectures
        ]
        value = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": rows}
        index = Manifest.parse(canonical_json(value))
        self.manifests[str(index.digest)] = index
        return index

    def image_with_foreign_layer(self, url: str, own: bytes, foreign: bytes) -> Manifest:
        """Two layers, of which the second, not compressed, is to be had at `url` alone."""
        value = json.loads(self.image(own, foreign).raw)
        there = self.blob(foreign, media_types.OCI_LAYER).to_json()
        value["layers"][1] = {**there, "mediaType": FOREIGN, "urls": [url]}
        manifest = Manifest.parse(canonical_json(value))
        self.manifests[str(manifest.digest)] = manifest
        return manifest

    def layout(self, folder: Path, manifest: Manifest, tag: str = "v1") -> Path:
        """An OCI layout (image-layout.md) with everything made here; `tag` names `manifest`."""
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest, data in self.blobs.items():
            (blobs / digest.hex).write_bytes(data)
        for other in self.manifests.values():
            (blobs / other.digest.hex).write_bytes(other.raw)
        listed = {**manifest.descriptor().to_json(), "annotations": {NAMED: tag}}
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return folder

    def docker_archive(self, images: Mapping[str, Manifest]) -> bytes:
        """For `docker load`: `images` by the name that they get."""
        files: dict[str, bytes | str | None] = {}
        rows = []
        for name, manifest in images.items():
            assert manifest.config is not None
            config = self.blobs[manifest.config.digest]
            diff_ids = json.loads(config)["rootfs"]["diff_ids"]
            row = {"Config": f"{manifest.config.digest.hex}.json", "RepoTags": [name], "Layers": []}
            files[str(row["Config"])] = config
            for diff_id, layer in zip(diff_ids, manifest.layers, strict=True):
                path = f"{Digest.parse(diff_id).hex}.tar.gz"
                files[path] = self.blobs[layer.digest]
                row["Layers"].append(path)  # type: ignore[attr-defined]
            rows.append(row)
        files["manifest.json"] = json.dumps(rows).encode()
        return tar_of(files)
