"""One file's event: the file's content in, the files that the function answers with out."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

from faas.state.session import Database
from gateway.event import encode
from gateway.events import files
from gateway.events.roots import TriggerRoots
from gateway.store import triggers
from gateway.store.invocations import QueuedEvent
from gateway.store.triggers import SeenFile


def file_of(event: QueuedEvent) -> SeenFile:
    """The file that a queued event refers to."""
    return SeenFile(event.meta["name"], event.meta["mtime_ns"], event.meta["size"])


def s3_event(event: QueuedEvent, content: bytes | None) -> bytes:
    """The event as S3 would send it (lambda-shaped, version 2.1), with the content under `Records[0].faas`."""
    file = file_of(event)
    stamp = datetime.fromtimestamp(file.mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record: dict[str, Any] = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "local",
        "eventTime": stamp,
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "folder"},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {"x-amz-request-id": event.id, "x-amz-id-2": event.id},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": event.meta["pattern"],
            "bucket": {
                "name": event.meta["watch"],
                "ownerIdentity": {"principalId": "folder"},
                "arn": "arn:aws:s3:::" + event.meta["watch"].strip("/"),
            },
            "object": {
                "key": quote_plus(file.name),
                "size": file.size,
                "eTag": f"{file.mtime_ns:x}-{file.size:x}",
                "sequencer": f"{file.mtime_ns:016X}",
            },
        },
    }
    if content is not None:
        record["faas"] = {
            "path": f"{event.meta['watch']}/{file.name}",
            "content_base64": base64.b64encode(content).decode(),
        }
    return encode({"Records": [record]})


class FolderEvents:
    """The run of one file's event: content in, files out."""

    def __init__(self, database: Database, roots: TriggerRoots) -> None:
        self._database = database
        self._roots = roots

    async def load(self, event: QueuedEvent) -> bytes:
        """The event with the file's content.

        Raises NotFound (gone or changed), PayloadTooLarge, InvalidInput (the folder is no longer open to functions).
        """
        await asyncio.to_thread(self._roots.check, event.meta["watch"])
        content = await asyncio.to_thread(files.read, event.meta["watch"], file_of(event))
        return await asyncio.to_thread(s3_event, event, content)

    async def store(self, event: QueuedEvent, payload: bytes) -> None:
        """Write the files that the function answered with beside the source; no trigger sees them as new.

        Raises BadFunctionResponse, NotFound (the folder has gone), InvalidInput.
        """
        made = await asyncio.to_thread(files.outputs, payload)
        if not made:
            return
        watch = event.meta["watch"]
        await asyncio.to_thread(self._roots.check, watch)
        written = await asyncio.to_thread(files.write_temporary, watch, file_of(event), event.id, made)
        async with self._database.write() as tx:
            for row in await tx.run_sync(triggers.every):
                if row.spec.watch == watch:
                    await tx.run_sync(triggers.see, row, [output.file for output in written])
        await asyncio.to_thread(files.publish, watch, written)
