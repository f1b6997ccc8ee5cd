"""The part of `faas.client.Client` that fetches backups, and rebases functions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp

from faas.client_errors import ERROR_BYTES, error_of

Json = dict[str, Any]
BEGIN_SECONDS = 3600.0  # the databases are copied first
REBASE_SECONDS = 2400.0  # a base that has to be built, an image to be unpacked, and an init
CHUNK = 1 << 20


class Calls(Protocol):
    """What `Client` gives its parts."""

    async def _json(self, method: str, path: str, *, body: Any = None, payload: bytes | None = None) -> Any: ...

    async def _object(self, method: str, path: str, **options: Any) -> Json: ...

    def _request(
        self, method: str, path: str, *, seconds: float | None, params: Mapping[str, str] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


class BackupCalls:
    async def begin_backup(self: Calls, *, secrets_key: bool = False) -> Json:
        """What `faas.backup.manifest` reads, and `id`. It ends a minute after its client has asked for nothing."""
        return await self._object("POST", "/v1/backups", body={"secrets_key": secrets_key}, seconds=BEGIN_SECONDS)

    async def backup_bytes(self: Calls, backup: str, kind: str, name: str) -> AsyncGenerator[bytes, None]:
        """Of a file of the backup (`kind` "files") or of a blob ("blobs")."""
        path = f"/v1/backups/{backup}/{kind}/{quote(name, safe='')}"
        async with self._request("GET", path, seconds=None) as response:
            if response.status >= 400:
                raise error_of(response.status, response.headers, await response.content.read(ERROR_BYTES), path, "")
            async for chunk in response.content.iter_chunked(CHUNK):
                yield chunk

    async def rebase(self: Calls, name: str, *, dry_run: bool = False) -> Json:
        """`{"name", "namespace", "base", "stale", "changed", "revision", "image"}`."""
        path = f"/v1/functions/{quote(name, safe='')}/rebase"
        return await self._object("POST", path, body={"dry_run": dry_run}, seconds=REBASE_SECONDS, function=name)

    async def end_backup(self: Calls, backup: str, *, failed: bool = False) -> None:
        await self._json("DELETE", f"/v1/backups/{backup}" + ("?failed=1" if failed else ""))
