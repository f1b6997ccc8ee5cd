"""A registry that also writes down what clients ask of it: `python -m tests.support.recorded_registry …`.

The registry is the real one and reads the client's own bytes from the socket; only the record is put around it.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from aiohttp import hdrs, web

import registry.__main__ as program
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest
from registry.app import create_app
from registry.service import Registry
from tests.support.registry import RegistryProcess
from tests.support.samples import Samples

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Asked:
    """A request, and what it got. `length` None: the body came in chunks; `status` 0: the client went away."""

    method: str
    path: str
    status: int
    length: int | None

    @property
    def is_upload(self) -> bool:
        """Whether it brought a blob's bytes."""
        return "/blobs/uploads/" in self.path and self.method in ("POST", "PATCH", "PUT") and self.length != 0

    @property
    def mounted(self) -> str:
        """The digest of the blob that it mounted, or an empty text."""
        query = parse_qs(urlsplit(self.path).query)
        return query["mount"][0] if "mount" in query and self.status == 201 else ""


class RecordedRegistry(RegistryProcess):
    module = "tests.support.recorded_registry"

    @contextmanager
    def recorded(self) -> Iterator[list[Asked]]:
        """What is asked within the block, written down by its end."""
        found: list[Asked] = []
        record = _record(self.data)
        begin = record.stat().st_size if record.exists() else 0
        yield found
        with record.open() as lines:
            lines.seek(begin)
            found += [Asked(**json.loads(line)) for line in lines]

    def manifest(self, repository: str, reference: str) -> Manifest:
        """As it is served."""
        reply = self.call("GET", f"/v2/{repository}/manifests/{reference}")
        assert reply.status == 200, reply.body
        return Manifest.parse(reply.body, reply.headers["Content-Type"])

    def push_samples(self, repository: str, samples: Samples, manifest: Manifest, tag: str) -> None:
        """`manifest` with all that it needs: without a client, for those that only pull."""
        for child in manifest.manifests:
            self.push_samples(repository, samples, samples.manifests[str(child.digest)], str(child.digest))
        for blob in manifest.blobs:
            self.push_blob(repository, samples.blobs[blob.digest])
        kind = {"Content-Type": manifest.media_type}
        assert self.call("PUT", f"/v2/{repository}/manifests/{tag}", manifest.raw, kind).status == 201

    def leases_end(self) -> None:
        """As if a day had gone by: nobody counts any more on a blob that they were told to be here."""
        with closing(sqlite3.connect(self.data / "registry.db", timeout=10)) as database, database:
            database.execute("UPDATE repository_blobs SET leased_until = 0")

    def file(self, blob: bytes) -> Path:
        """Where the registry keeps these bytes."""
        digest = Digest.of(blob)
        return self.data / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex


def _record(data: Path) -> Path:
    return data.with_suffix(".requests")


def recording(record: Path) -> Callable[[Registry], web.Application]:
    """`create_app`, with a line in `record` for each request before it is answered."""

    @web.middleware
    async def write_down(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 0
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            chunked = hdrs.TRANSFER_ENCODING in request.headers
            length = None if chunked else request.content_length or 0
            with record.open("a") as lines:
                lines.write(json.dumps(asdict(Asked(request.method, request.raw_path, status, length))) + "\n")

    def create(registry: Registry) -> web.Application:
        app = create_app(registry)
        app.middlewares.insert(0, write_down)
        return app

    return create


if __name__ == "__main__":
    record = _record(Path(sys.argv[sys.argv.index("--data") + 1]))
    with patch("registry.__main__.create_app", recording(record)):
        sys.exit(program.main())
