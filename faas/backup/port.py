"""`StoredBlobs`: what the registry does for a backup. The gateway makes backups; the composition root joins the two."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from faas.backup.manifest import Blob
from faas.state.session import Database


class Listed(NamedTuple):
    """`missing`: digests whose bytes are gone or damaged."""

    blobs: list[Blob]
    missing: list[str]


class StoredBlobs(Protocol):
    """The registry's database, and the files that its rows name."""

    @property
    def database(self) -> Database: ...

    def keeping(self) -> AbstractContextManager[None]:
        """Meanwhile no stored file is deleted: the lease of a backup against the collector."""
        ...

    def listed(self, copy: Path) -> Listed:
        """Blocking. The blobs that `copy`, a copy of the registry's database, names."""
        ...

    def path(self, blob: Blob) -> Path:
        """Where its bytes are."""
        ...
