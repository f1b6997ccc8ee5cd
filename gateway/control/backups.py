"""Backups over the API: begun, fetched piece by piece, ended. Its client decides what it lacks (`faas backup`)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import InvalidInput, NotOffered
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, access, json_body
from gateway.backup import Backup, Backups
from gateway.control.operations import (
    FLAG,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    allow,
    an_object,
    answer,
    known_keys,
)

BACKUPS: web.AppKey[Backups] = web.AppKey("backups")
MEDIA_TYPE = "application/octet-stream"


def _backups(request: web.Request) -> Backups:
    """A backup has everything of everybody in it."""
    allow(request, Permission.ADMIN, ALL_NAMESPACES)
    found = request.app.get(BACKUPS)
    if found is None:
        raise NotOffered("this server has no registry of its own to back up")
    return found


@access(Permission.ADMIN)
async def begun(request: web.Request) -> web.Response:
    backups = _backups(request)
    body = await json_body(request) if request.can_read_body else {}
    known_keys(body, "secrets_key")
    secrets_key = body.get("secrets_key", False)
    if not isinstance(secrets_key, bool):
        raise InvalidInput("secrets_key is true or false")
    backup = await backups.begin(secrets_key=secrets_key)
    return answer({"id": backup.id, **backup.manifest.to_dict()}, 201)


@access(Permission.ADMIN)
async def file(request: web.Request) -> web.StreamResponse:
    backups = _backups(request)
    backup = backups.of(request.match_info["id"])
    return await _streamed(request, backups, backup, backups.file(backup, request.match_info["file"]))


@access(Permission.ADMIN)
async def blob(request: web.Request) -> web.StreamResponse:
    backups = _backups(request)
    backup = backups.of(request.match_info["id"])
    return await _streamed(request, backups, backup, backups.blob(backup, request.match_info["digest"]))


@access(Permission.ADMIN)
async def ended(request: web.Request) -> web.Response:
    backups = _backups(request)
    failed = request.query.get("failed", "")
    if failed not in ("", "0", "1"):
        raise InvalidInput("failed must be 0 or 1")
    await backups.end(request.match_info["id"], failed=failed == "1")
    return web.Response(status=204)


async def _streamed(request: web.Request, backups: Backups, backup: Backup, path: Path) -> web.StreamResponse:
    # Streamed, so its head is gone before the middleware could add the id.
    response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, REQUEST_ID_HEADER: request[REQUEST_ID]})
    chunks = cast("AsyncGenerator[bytes, None]", backups.chunks(backup, path))
    async with contextlib.aclosing(chunks):
        first = await anext(chunks, b"")  # what fails here is told as an error
        await response.prepare(request)
        await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
    await response.write_eof()
    return response


_FILE = an_object(("name", "size", "digest"), name=TEXT, size=WHOLE, digest=TEXT)
_BLOB = an_object(("digest", "size"), digest=TEXT, size=WHOLE)
_BEGUN = an_object(
    ("id", "format", "version", "created_at", "schemas", "files", "blobs", "left_out", "missing"),
    id=TEXT, format=WHOLE, version=TEXT, created_at=TIME, schemas=an_object(more=True), files=a_list(_FILE),
    blobs=a_list(_BLOB), left_out=an_object(more=True), missing=a_list(TEXT),
)  # fmt: skip
_BACKUP = "/v1/backups/{id}"
OPERATIONS = (
    Operation("POST", "/v1/backups", begun, "Begin a backup: copies of both databases, of one moment", {201: _BEGUN},
              body=an_object(secrets_key=FLAG)),
    Operation("GET", _BACKUP + "/files/{file}", file, "One of its files", {200: TEXT}, media_type=MEDIA_TYPE),
    Operation("GET", _BACKUP + "/blobs/{digest}", blob, "A blob that it names", {200: TEXT}, media_type=MEDIA_TYPE),
    Operation("DELETE", _BACKUP, ended, "End it: its copies go, the collector may work; `failed=1`: it is not whole",
              {204: None}, query={"failed": {"type": "string", "enum": ["0", "1"]}}),
)  # fmt: skip
