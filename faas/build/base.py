"""Runtime bases: images that function images stand on, built on the server as `faas.build.recipe` says.

A client mounts their layers into its own image and never needs their bytes.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from faas.build import builder, rootfs
from faas.build.rebase import rebase, runtime_of
from faas.build.recipe import Recipe, build, recipe
from faas.errors import Conflict, NotFound
from faas.oci import labels
from faas.oci.client import RegistryClient
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.protocol import RuntimeBase

OpenClient = Callable[[], AbstractAsyncContextManager[RegistryClient]]


def wheel_platforms() -> tuple[str, ...]:
    """Wheel tags that run on this machine, best first (PEP 600, PEP 599)."""
    machine = platform.machine()
    minor = int((platform.libc_ver()[1] or "2.17").split(".")[1])
    tags = [f"manylinux_2_{n}_{machine}" for n in range(minor, 4, -1)]
    legacy = [f"manylinux2014_{machine}"] + (
        [f"manylinux2010_{machine}", f"manylinux1_{machine}"] if machine == "x86_64" else []
    )
    return (*tags, *legacy, f"linux_{machine}")


class Bases:
    """The runtime bases of one server: built at first need, one at a time each."""

    def __init__(self, open_client: OpenClient) -> None:
        self._open_client = open_client
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, name: str) -> RuntimeBase:
        """The base `name`, built and pushed where the registry lacks it or it is out of date."""
        made = await asyncio.to_thread(recipe, name)
        async with self._locks.setdefault(made.name, asyncio.Lock()), self._open_client() as client:
            manifest = await self._current(client, made)
            if manifest is None:
                manifest = await self._build(client, made)
        return RuntimeBase(
            made.name,
            f"{made.repository}:{made.tag}@{manifest.digest}",
            made.version,
            architecture(),
            wheel_platforms() if made.language == "python" else (),
        )

    async def builder(self, name: str) -> str:
        """The image that wheels are built in for the Python `name`, as `repository@digest`; built where it is missing.
        Raises as `ensure`."""
        base = await self.ensure(name)
        async with self._locks.setdefault(f"build {base.name}", asyncio.Lock()), self._open_client() as client:
            return await builder.ensure(client, base)

    async def list(self) -> list[RuntimeBase]:
        """What this machine offers, without building: interpreters that are found, and their references if built."""
        found = []
        async with self._open_client() as client:
            for name in ("python", "node", "provided"):
                try:
                    made = await asyncio.to_thread(recipe, name)
                except NotFound:
                    continue
                manifest = await self._current(client, made)
                reference = f"{made.repository}:{made.tag}" + (f"@{manifest.digest}" if manifest else "")
                platforms = wheel_platforms() if made.language == "python" else ()
                found.append(RuntimeBase(made.name, reference, made.version, architecture(), platforms))
        return found

    async def current(self, base: str) -> str:
        """The reference of `base` (`runtime/python:3.11`) as this machine makes it now; "" where that is not built yet,
        or cannot be any more. Raises FaasError."""
        try:
            made = await asyncio.to_thread(recipe, runtime_of(base))
        except (NotFound, Conflict):
            return ""
        async with self._open_client() as client:
            manifest = await self._current(client, made)
        return f"{made.repository}:{made.tag}@{manifest.digest}" if manifest else ""

    async def rebase(self, image: str, base: str) -> str:
        """`image` (`repository@digest`) on `base` as this machine makes it now, built where it is missing; the new
        image. Raises Conflict, NotFound where the interpreter is not here any more, and other FaasErrors."""
        made = await self.ensure(runtime_of(base))
        async with self._open_client() as client:
            return (await rebase(client, image, made)).reference

    async def _current(self, client: RegistryClient, made: Recipe) -> Manifest | None:
        try:
            manifest = await client.get_manifest(made.repository, made.tag)
        except NotFound:
            return None
        if manifest.config is None:
            return None
        config = ImageConfig.parse(await client.read_blob(made.repository, manifest.config.digest, CONFIG_BYTES))
        return manifest if config.labels.get(labels.BASE_INPUTS) == made.digest else None

    async def _build(self, client: RegistryClient, made: Recipe) -> Manifest:
        with rootfs.work_folder() as work:
            built = await asyncio.to_thread(build, made, work)
            for layer in built.layers:
                if not await client.has_blob(made.repository, layer.digest):
                    await client.upload_blob(made.repository, layer.path, layer.digest)
        await client.upload_blob(made.repository, built.config, built.config_descriptor.digest)
        await client.put_manifest(made.repository, made.tag, built.manifest)
        return built.manifest
