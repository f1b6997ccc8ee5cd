"""`Manifest`: what a backup holds, with the digest of everything. It is written last: without it there is no backup."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faas.errors import InvalidInput
from faas.oci.digest import Digest

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 256 << 20  # of a million blobs, and of no more
DATABASES = ("faas.db", "registry.db")
SECRETS_KEY = "secrets-key"
FILES = ("config.toml", "prices.toml", "canary-key", SECRETS_KEY)  # of the data folder, where they are there
KEY_SETS = "jwks"  # a folder of it: issuers' public keys
_KEY_SET = re.compile(KEY_SETS + r"/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def is_file_name(name: str) -> bool:
    """Whether a backup may hold a file of that name: nothing else ever becomes a path."""
    return name in DATABASES or name in FILES or _KEY_SET.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the backup: its name, its bytes, and what they hash to."""

    name: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Blob:
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`schemas`: database → its schema's version. `left_out`: file → why. `missing`: blobs that the registry itself
    has no good copy of."""

    version: str  # of the server
    created_at: str  # ISO 8601, UTC
    schemas: Mapping[str, str]
    files: tuple[Entry, ...]
    blobs: tuple[Blob, ...]
    left_out: Mapping[str, str]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "created_at": self.created_at,
            "schemas": dict(self.schemas),
            "files": [{"name": f.name, "size": f.size, "digest": str(f.digest)} for f in self.files],
            "blobs": [{"digest": str(b.digest), "size": b.size} for b in self.blobs],
            "left_out": dict(self.left_out),
            "missing": list(self.missing),
        }

    def to_json(self) -> bytes:
        return json.dumps(self.to_dict(), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Manifest:
        """Raises InvalidInput on anything that no server of ours wrote; `where` is named in its words."""
        try:
            written = json.loads(raw)
            if written["format"] != FORMAT:
                raise InvalidInput(
                    f"{where} has the format {str(written['format'])[:20]}, and this version reads {FORMAT}",
                    hint="restore it with the version of faas that made it",
                )
            return cls.from_dict(written)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(f"{where} is no manifest of a backup: {str(error)[:160]}") from None

    @classmethod
    def parse_answer(cls, answer: Mapping[str, Any]) -> Manifest:
        """Of what the API told. Raises InvalidInput."""
        try:
            return cls.from_dict(answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"the server describes no backup: {str(error)[:160]}") from None

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Manifest:
        """Raises ValueError, KeyError, TypeError, AttributeError."""
        files = tuple(Entry(str(f["name"]), _size(f), Digest.parse(f["digest"])) for f in written["files"])
        names = [file.name for file in files]
        if odd := [name for name in names if not is_file_name(name)]:
            raise ValueError(f"it holds a file named {odd[0][:80]!r}")
        if len(set(names)) != len(names):
            raise ValueError("it names a file twice")
        if absent := set(DATABASES) - set(names):
            raise ValueError(f"{min(absent)} is not in it")
        return cls(
            str(written["version"]),
            str(written["created_at"]),
            {str(name): str(schema) for name, schema in written["schemas"].items()},
            files,
            tuple(Blob(Digest.parse(b["digest"]), _size(b)) for b in written["blobs"]),
            {str(name): str(why) for name, why in written["left_out"].items()},
            tuple(str(Digest.parse(digest)) for digest in written["missing"]),
        )

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files) + sum(blob.size for blob in self.blobs)


def _size(row: Mapping[str, Any]) -> int:
    size = row["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("a size must be a whole number")
    return size


def blob_name(digest: Digest) -> str:
    """Where a blob lies, in a backup and below the data folder."""
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"
