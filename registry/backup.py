"""`BackupSource`: the registry's side of a backup (implements `faas.backup.port.StoredBlobs`)."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

from faas.backup.manifest import Blob
from faas.backup.port import Listed
from faas.oci.digest import Digest
from faas.state.session import Database
from registry.service import Registry

_STORED = "SELECT digest, size FROM blobs WHERE NOT leaving ORDER BY digest"


class BackupSource:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def database(self) -> Database:
        return self._registry.index.database

    def keeping(self) -> AbstractContextManager[None]:
        return self._registry.keeping.held()

    def listed(self, copy: Path) -> Listed:
        """A file of another size than its row says is none of them: a push mends it, a backup cannot."""
        found = Listed([], [])
        with contextlib.closing(
            sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as connection:
            for digest, size in connection.execute(_STORED):
                blob = Blob(Digest.parse(digest), int(size))
                if self._is_there(blob):
                    found.blobs.append(blob)
                else:
                    found.missing.append(digest)
        return found

    def _is_there(self, blob: Blob) -> bool:
        try:
            return self.path(blob).stat().st_size == blob.size
        except OSError:
            return False

    def path(self, blob: Blob) -> Path:
        return self._registry.blobs.path(blob.digest)
