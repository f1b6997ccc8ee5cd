"""Images as they are named in a deploy: found, allowed, and pinned to the digest that is there now."""

from __future__ import annotations

import asyncio

from faas.auth import Permission, Principal
from faas.errors import Forbidden, ImageUnusable, InvalidInput, NotFound, Unavailable
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.oci.reference import Reference
from faas.oci.source import ImageSource

SOURCE_SECONDS = 60.0


class Images:
    """`registry` is the address that images may be named with."""

    def __init__(self, source: ImageSource, registry: str) -> None:
        self._source = source
        self._registry = registry

    def may_pull(self, by: Principal, repository: str) -> bool:
        """Copies from upstream belong to no namespace: whoever may pull anything may have them."""
        if by.may_use(Permission.PULL, repository):
            return True
        return self._source.is_copy(repository) and by.may(Permission.PULL) and by.reaches(repository)

    async def pinned(self, image: str, by: Principal) -> str:
        """`repository@digest` of an image that is there and that `by` may pull. Raises what says why not."""
        if not image:
            raise InvalidInput("a deploy needs an image", hint="faas push builds and names one")
        try:
            reference = Reference.parse(image)
        except ValueError as error:
            raise InvalidInput(f"the image's name is not valid: {error}") from None
        local = f"localhost:{self._registry.rpartition(':')[2]}"  # others may know it by a name
        if reference.host and not (reference.is_at(self._registry) or reference.is_at(local)):
            raise InvalidInput(
                f"images are taken from this server's registry only, not from {reference.host}",
                hint=f"push it here: faas push --image {image}",
            )
        if not self.may_pull(by, reference.repository):
            raise Forbidden(f"{by.name} may not pull {reference.repository}")
        bare = Reference("", reference.repository, reference.tag, reference.digest)
        return f"{reference.repository}@{(await self.find(str(bare))).digest}"

    async def find(self, image: str) -> Manifest:
        """By its name in this registry, without a host. Raises ImageUnusable where it is not there, Unavailable."""
        try:
            async with asyncio.timeout(SOURCE_SECONDS):
                return await self._source.manifest(image, architecture())
        except NotFound:
            raise ImageUnusable(f"there is no image {image} in the registry", hint="push it first") from None
        except TimeoutError:
            raise Unavailable("the registry does not answer") from None

    async def config(self, image: str) -> ImageConfig | None:
        """Of `repository@digest`; None where it has none that can be read. Raises ImageUnusable, Unavailable."""
        manifest = await self.find(image)
        if manifest.config is None or manifest.config.size > CONFIG_BYTES:
            return None
        blob = await self._source.open_blob(Reference.parse(image).repository, manifest.config)
        try:
            with blob:
                return ImageConfig.parse(await asyncio.to_thread(blob.read, CONFIG_BYTES))
        except ValueError:
            return None
