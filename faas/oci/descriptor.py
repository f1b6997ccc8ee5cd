"""`Descriptor`: a typed, sized pointer to content (image-spec, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from faas.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Descriptor:
    """`platform` is (os, architecture, variant) in an index's entries."""

    media_type: str
    digest: Digest
    size: int
    platform: tuple[str, str, str] | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        """Raises ValueError that names the field."""
        if not isinstance(value, dict):
            raise ValueError("a descriptor must be an object")
        media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise ValueError("a descriptor needs the texts mediaType and digest")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise ValueError("a descriptor's size must be a whole number, not negative")
        annotations, urls, platform = value.get("annotations") or {}, value.get("urls") or [], value.get("platform")
        artifact_type = value.get("artifactType") or ""
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            raise ValueError("annotations must be an object of texts")
        if not isinstance(urls, list) or not all(isinstance(u, str) for u in urls):
            raise ValueError("urls must be a list of texts")
        if not isinstance(artifact_type, str) or (platform is not None and not isinstance(platform, dict)):
            raise ValueError("artifactType must be a text and platform an object")
        where = None
        if platform:
            where = tuple(str(platform.get(k) or "") for k in ("os", "architecture", "variant"))
        return cls(media_type, Digest.parse(digest), size, where, artifact_type, annotations, tuple(urls))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.platform:
            names = ("os", "architecture", "variant")
            value["platform"] = {k: v for k, v in zip(names, self.platform, strict=True) if v}
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.urls:
            value["urls"] = list(self.urls)
        return value
