"""`Manifest` and `ImageConfig` (image-spec, manifest.md, image-index.md, config.md). The exact bytes are kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest

MANIFEST_BYTES = 4 * 1024 * 1024  # the spec's least upper limit; ours too
CONFIG_BYTES = 4 * 1024 * 1024
SMALL_BYTES = 65_536  # are parsed in milliseconds; the largest take a good part of a second
VALUES = 200_000  # 48 for each child; while they are read nothing else of this process runs
CHILDREN = 4096  # layers of an image, or entries of an index
INDEX_DEPTH = 8  # indexes below one another; builders write one level, clients follow one or two


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest (`config`, `layers`) or an index (`manifests`); `raw` is byte for byte what was pushed."""

    raw: bytes = field(repr=False)
    digest: Digest
    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def is_index(self) -> bool:
        return self.media_type in media_types.INDEXES

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers that must be there; those with `urls` lie elsewhere (image-spec, "non-distributable")."""
        return tuple(d for d in (self.config, *self.layers) if d is not None and not d.urls)

    @classmethod
    def parse(cls, raw: bytes, content_type: str = "", algorithm: str = "sha256") -> Manifest:
        """Raises ValueError on what is no manifest; `content_type` is the header's, without parameters."""
        if len(raw) > MANIFEST_BYTES:
            raise ValueError(f"a manifest has at most {MANIFEST_BYTES} bytes")
        if sum(map(raw.count, (b"[", b"{", b","))) > VALUES:
            raise ValueError(f"a manifest has at most {VALUES} values")
        try:
            text = raw.decode()
            value = json.loads(text)
            if "\\u" in text:  # a lone surrogate is JSON, but no text that can be stored
                canonical_json(value)
        except (ValueError, RecursionError):
            raise ValueError("a manifest must be JSON") from None
        if not isinstance(value, dict) or value.get("schemaVersion") != 2:
            raise ValueError("a manifest must be an object with schemaVersion 2")
        written = value.get("mediaType") or ""
        if not isinstance(written, str) or (written and content_type and written != content_type):
            raise ValueError(f"the body's mediaType {written!r} is not the header's {content_type!r}")
        media_type = written or content_type
        if "manifests" in value and ("layers" in value or "config" in value):
            raise ValueError("a document cannot be both an image manifest and an index")  # CVE-2021-41190
        if media_type not in media_types.MANIFESTS | media_types.INDEXES:
            raise ValueError(f"unsupported manifest media type {media_type!r}")
        needed = "manifests" if media_type in media_types.INDEXES else "config"
        if needed not in value:
            raise ValueError(f"{media_type} needs {needed}")
        annotations, artifact_type = _optional(value, "annotations", {}), _optional(value, "artifactType", "")
        if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
            raise ValueError("annotations must be an object of texts")
        if not isinstance(artifact_type, str):
            raise ValueError("artifactType must be a text")
        return cls(
            raw,
            Digest.of(raw, algorithm),
            media_type,
            Descriptor.from_json(value["config"]) if "config" in value else None,
            _descriptors(value, "layers"),
            _descriptors(value, "manifests"),
            None if value.get("subject") is None else Descriptor.from_json(value["subject"]),
            artifact_type,
            annotations,
        )

    @classmethod
    def image(cls, config: Descriptor, layers: list[Descriptor], annotations: dict[str, str] | None = None) -> Manifest:
        """A new OCI image manifest, in canonical form: the same parts give the same digest."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        if annotations:
            value["annotations"] = annotations
        return cls.parse(canonical_json(value), media_types.OCI_MANIFEST)

    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.raw))


async def parsed(raw: bytes, content_type: str = "", algorithm: str = "sha256") -> Manifest:
    """`Manifest.parse`, beside the event loop where it takes long."""
    if len(raw) <= SMALL_BYTES:
        return Manifest.parse(raw, content_type, algorithm)
    return await asyncio.to_thread(Manifest.parse, raw, content_type, algorithm)


def _optional(value: dict[str, Any], key: str, default: object) -> Any:
    """Also for null, which is how programs in Go write what is empty."""
    written = value.get(key)
    return default if written is None else written


def _descriptors(value: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    rows = _optional(value, key, [])
    if not isinstance(rows, list) or len(rows) > CHILDREN:
        raise ValueError(f"{key} must be a list of at most {CHILDREN}")
    return tuple(Descriptor.from_json(row) for row in rows)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no blanks, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about running it. `env` is a list of NAME=value, `user` as written ("", "1000", "app:app")."""

    architecture: str
    os: str = "linux"
    diff_ids: tuple[Digest, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Raises ValueError."""
        try:
            value = json.loads(raw)
            canonical_json(value)
        except (ValueError, RecursionError):
            raise ValueError("an image config must be JSON") from None
        if not isinstance(value, dict) or not isinstance(value.get("rootfs", {}), dict):
            raise ValueError("an image config must be an object with a rootfs")
        run = value.get("config") or {}
        diff_ids = value.get("rootfs", {}).get("diff_ids") or []
        if not isinstance(run, dict) or not isinstance(diff_ids, list):
            raise ValueError("an image config's config must be an object, its diff_ids a list")
        return cls(
            architecture=str(value.get("architecture") or ""),
            os=str(value.get("os") or "linux"),
            diff_ids=tuple(Digest.parse(str(d)) for d in diff_ids),
            entrypoint=_texts(run, "Entrypoint"),
            cmd=_texts(run, "Cmd"),
            env=_texts(run, "Env"),
            workdir=_text(run, "WorkingDir"),
            user=_text(run, "User"),
            exposed_ports=tuple(sorted(_object(run, "ExposedPorts"))),
            labels={k: str(v) for k, v in _object(run, "Labels").items()},
        )

    def to_json(self) -> bytes:
        """Canonical bytes, without times or host names: the same image has the same digest wherever it is built."""
        run: dict[str, Any] = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd),
            "Env": list(self.env),
            "WorkingDir": self.workdir,
            "User": self.user,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Labels": self.labels,
        }
        return canonical_json(
            {
                "architecture": self.architecture,
                "os": self.os,
                "config": {k: v for k, v in run.items() if v},
                "rootfs": {"type": "layers", "diff_ids": [str(d) for d in self.diff_ids]},
            }
        )


def _text(run: dict[str, Any], key: str) -> str:
    value = run.get(key) or ""
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError(f"an image config's {key} must be a text")
    return value


def _object(run: dict[str, Any], key: str) -> dict[str, Any]:
    value = run.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"an image config's {key} must be an object")
    return value


def _texts(run: dict[str, Any], key: str) -> tuple[str, ...]:
    value = run.get(key) or []
    if isinstance(value, str):  # the shell form, which old builders wrote unwrapped
        return ("/bin/sh", "-c", value)
    if not isinstance(value, list) or not all(isinstance(v, str) and "\x00" not in v for v in value):
        raise ValueError(f"an image config's {key} must be a list of texts")
    return tuple(value)


def chain_id(diff_ids: tuple[Digest, ...]) -> Digest:
    """image-spec, config.md "Layer ChainID": names a stack of layers from the bottom to its last one."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest("sha256", hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest())
    return chain
