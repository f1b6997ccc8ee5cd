"""A function image: the base's layers, one of dependencies, one of code, and a config that says how to run it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faas.build.layer import Layer
from faas.build.progress import Progress
from faas.errors import SpecError
from faas.oci import labels, media_types
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.reference import Reference
from faas.protocol import RuntimeBase
from faas.spec import FunctionSpec

UPLOADS = 3  # layers at once


@dataclass(frozen=True, slots=True)
class PushedImage:
    """`reference` is `repository@digest`."""

    reference: str
    manifest: Manifest


def function_config(base: ImageConfig, spec: FunctionSpec, layers: Sequence[Layer], reference: str) -> ImageConfig:
    """The base's config with the function's handler or app, and its layers on top; `reference` is the base's."""
    env = {name: value for name, _, value in (row.partition("=") for row in base.env)}
    if spec.runtime.startswith("node"):
        env["NODE_PATH"] = "/opt/nodejs/node_modules"
    if spec.app:
        env["FAAS_APP"] = spec.app
    elif spec.handler:
        env["_HANDLER"] = spec.handler
    elif spec.runtime != "provided":
        raise SpecError("a function of this runtime needs a handler", key="handler", hint='handler = "app.handler"')
    return dataclasses.replace(
        base,
        diff_ids=(*base.diff_ids, *(layer.digest for layer in layers)),
        env=tuple(f"{name}={value}" for name, value in sorted(env.items())),
        workdir="/var/task",
        labels={labels.BASE: reference, **{k: v for k, v in base.labels.items() if k == labels.SECRETS_READER}},
    )


class ImagePush:
    """Pushes one image into `repository`, uploading only what the registry lacks."""

    def __init__(self, client: RegistryClient, repository: str, progress: Progress) -> None:
        self._client = client
        self._repository = repository
        self._progress = progress
        self._slots = asyncio.Semaphore(UPLOADS)

    async def function(
        self, base: RuntimeBase, spec: FunctionSpec, layers: Sequence[Layer], tags: Sequence[str]
    ) -> PushedImage:
        """base + layers. The base's bytes never come here: they are mounted by digest."""
        reference = Reference.parse(base.reference)
        manifest = await self._client.get_manifest(reference.repository, reference.target)
        assert manifest.config is not None
        raw = await self._client.read_blob(reference.repository, manifest.config.digest, CONFIG_BYTES)
        config = function_config(ImageConfig.parse(raw), spec, layers, base.reference).to_json()
        await self.mount(manifest.layers, reference.repository)
        await self._upload(layers)
        descriptors = [*manifest.layers, *(layer.descriptor for layer in layers)]
        return await self.finish(config, descriptors, tags)

    async def finish(
        self,
        config: bytes,
        layers: Sequence[Descriptor],
        tags: Sequence[str],
        config_type: str = media_types.OCI_CONFIG,
    ) -> PushedImage:
        """Config and manifest, under its digest and each of `tags`."""
        digest = Digest.of(config)
        if not await self._client.has_blob(self._repository, digest):
            await self._client.upload_blob(self._repository, config, digest)
        image = Manifest.image(Descriptor(config_type, digest, len(config)), list(layers))
        for tag in tags or (str(image.digest),):
            await self._client.put_manifest(self._repository, tag, image)
        return PushedImage(f"{self._repository}@{image.digest}", image)

    async def adopt(self, image: Manifest, source: str, tags: Sequence[str]) -> None:
        """An image of the repository `source`, byte for byte, under `tags` here too."""
        if source != self._repository:
            for descriptor in (image.config, *image.layers):
                if descriptor is not None:
                    await self._mount(descriptor, source, "layer")
        for tag in tags:
            await self._client.put_manifest(self._repository, tag, image)

    async def mount(self, layers: Sequence[Descriptor], source: str) -> None:
        """A base's layers, of the repository `source`."""
        for descriptor in layers:
            await self._mount(descriptor, source)

    async def _mount(self, descriptor: Descriptor, source: str, description: str = "runtime base") -> None:
        state = "exists"
        if not await self._client.has_blob(self._repository, descriptor.digest):
            state = "mounted"
            if not await self._client.mount_blob(self._repository, descriptor.digest, source):
                await self._copy(descriptor, source)
        self._progress.layer(str(descriptor.digest), description, descriptor.size, descriptor.size, state)

    async def _copy(self, descriptor: Descriptor, source: str) -> None:
        """Where the registry does not mount: through here."""
        with await self._client.download_blob(source, descriptor) as blob:
            await self._client.upload_blob(self._repository, blob, descriptor.digest)

    async def _upload(self, layers: Sequence[Layer]) -> None:
        """All of them; the first error ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                for layer in layers:
                    group.create_task(self.blob(layer.path, layer.digest, layer.size, layer.description))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def blob(self, source: Path | bytes, digest: Digest, size: int, description: str) -> None:
        """One layer, with its bar."""
        name = str(digest)
        async with self._slots:
            if await self._client.has_blob(self._repository, digest):
                self._progress.layer(name, description, size, size, "exists")
                return
            done = 0

            def moved(count: int) -> None:
                nonlocal done
                done += count
                self._progress.layer(name, description, done, size, "uploading")

            self._progress.layer(name, description, 0, size, "uploading")
            await self._client.upload_blob(self._repository, source, digest, moved)
            self._progress.layer(name, description, size, size, "done")
