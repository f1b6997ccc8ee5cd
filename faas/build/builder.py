"""The image that wheels are built in, `runtime/build-python:3.11`: a Python base, and `faas.build.toolchain` on top."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib

from faas.build import rootfs, toolchain
from faas.build.image import ImagePush
from faas.build.interpreter import find_python
from faas.build.layer import pack
from faas.build.progress import Quiet
from faas.errors import NotFound
from faas.oci import labels
from faas.oci.client import RegistryClient
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.reference import BASES, Reference
from faas.protocol import RuntimeBase

REPOSITORY = f"{BASES}build-python"
FORMAT = "1"  # changes when the same inputs would give another image


async def ensure(client: RegistryClient, base: RuntimeBase) -> str:
    """`repository@digest`, for and from this Python base; built and pushed where the registry lacks it, or something
    that it was made of has changed. Raises NotFound."""
    python = await asyncio.to_thread(find_python, base.version)
    made_of = await asyncio.to_thread(toolchain.made_of, python)
    inputs = hashlib.sha256(f"{FORMAT} {base.reference} {made_of}".encode()).hexdigest()
    try:
        manifest = await client.get_manifest(REPOSITORY, base.version)
        if (await _config(client, REPOSITORY, manifest)).labels.get(labels.BASE_INPUTS) == inputs:
            return f"{REPOSITORY}@{manifest.digest}"
    except NotFound:
        pass
    below = Reference.parse(base.reference)
    lower = await client.get_manifest(below.repository, below.target)
    push = ImagePush(client, REPOSITORY, Quiet())
    await push.mount(lower.layers, below.repository)
    with rootfs.work_folder() as work:
        layer = await asyncio.to_thread(lambda: pack(toolchain.files(python), work / "tools.tar", "tools"))
        await push.blob(layer.path, layer.digest, layer.size, layer.description)
    config = await _config(client, below.repository, lower)
    config = dataclasses.replace(
        config,
        diff_ids=(*config.diff_ids, layer.digest),
        entrypoint=(f"/usr/bin/python{base.version}", "-I", "-B", toolchain.PROGRAM),
        workdir="/",
        labels={labels.BASE_INPUTS: inputs},
    )
    pushed = await push.finish(config.to_json(), [*lower.layers, layer.descriptor], (base.version,))
    return pushed.reference


async def _config(client: RegistryClient, repository: str, manifest: Manifest) -> ImageConfig:
    if manifest.config is None:
        raise NotFound(f"{repository} has no image")
    return ImageConfig.parse(await client.read_blob(repository, manifest.config.digest, CONFIG_BYTES))
