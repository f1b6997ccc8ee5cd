"""Images on their way to the launcher: the server has the registry, the launcher unpacks, and believes nothing.

The server gives a manifest as a sealed memory file and a blob as a file that it has opened. Whoever unpacks a layer
checks its digest while reading (`worker.layers.store`); no other file's content can pass for it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from faas.errors import FaasError, ImageUnusable, InvalidInput, Unavailable
from faas.oci.descriptor import Descriptor
from faas.oci.manifest import MANIFEST_BYTES, Manifest, parsed
from faas.oci.source import ImageSource
from worker.launcher.peer import Answer, Handler, Peer
from worker.launcher.requests import REFERENCE_CHARACTERS
from worker.launcher.wire import Garbage, Message, close_all, memory_file, sealed

WAIT_SECONDS = 300.0  # for a manifest or a blob, which may have to come from another registry


class ServersImages:
    """Implements `faas.oci.source.ImageSource` in the launcher, by asking the server."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        value, descriptor = await self._call("manifest", reference=reference, architecture=architecture)
        try:
            if not isinstance(value, dict):
                raise Garbage("a manifest without its type")
            raw = sealed(descriptor, MANIFEST_BYTES)
            return await parsed(raw, str(value.get("media_type")), str(value.get("algorithm")))
        except (Garbage, ValueError) as error:
            raise ImageUnusable(f"{reference}: {error}") from None
        finally:
            os.close(descriptor)

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        _, opened = await self._call("open_blob", repository=repository, descriptor=descriptor.to_json())
        try:
            os.lseek(opened, 0, os.SEEK_SET)
            return cast("BinaryIO", os.fdopen(opened, "rb"))
        except OSError as error:
            close_all([opened])
            raise Unavailable(f"a blob cannot be read: {error}") from None

    def is_copy(self, repository: str) -> bool:
        raise FaasError("the launcher does not know where images come from")

    async def _call(self, verb: str, **arguments: Any) -> tuple[object, int]:
        """The answer and its one descriptor: a regular file, since only such a one never makes its reader wait."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                value, descriptors = await self._peer.call(verb, **arguments)
        except TimeoutError:
            raise Unavailable("the image did not come in time") from None
        if len(descriptors) != 1 or not stat.S_ISREG(os.fstat(descriptors[0]).st_mode):
            close_all(descriptors)
            raise Unavailable("an image came as something that is no file")
        return value, descriptors[0]


def verbs(source: ImageSource) -> Mapping[str, Handler]:
    """The server's side: answers the launcher's questions from `source`."""

    async def manifest(message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        reference, architecture = _text(message, "reference"), _text(message, "architecture")
        found = await source.manifest(reference, architecture)
        value = {"media_type": found.media_type, "algorithm": found.digest.algorithm}
        return Answer(value, [memory_file(found.raw)])

    async def open_blob(message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        try:
            wanted = Descriptor.from_json(message.get("descriptor"))
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        with await source.open_blob(_text(message, "repository"), wanted) as file:
            return Answer(None, [os.dup(file.fileno())])

    return {"manifest": manifest, "open_blob": open_blob}


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > REFERENCE_CHARACTERS:
        raise InvalidInput(f"{name} must be a text")
    return value
