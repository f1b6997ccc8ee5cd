"""A function's image on another runtime base: its own layers as they are, a newer base below them; without a source."""

from __future__ import annotations

import dataclasses

from faas.build.image import ImagePush, PushedImage
from faas.build.recipe import NAME
from faas.errors import Conflict, ImageUnusable, NotFound
from faas.oci import labels
from faas.oci.client import RegistryClient
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.reference import Reference
from faas.protocol import RuntimeBase

# Layers of a base that is not in the registry any more: the system's, and the runtime client's where there is one.
LAYERS = {"python": 2, "node": 2, "provided": 1}
PREFIX = "runtime/"


def runtime_of(base: str) -> str:
    """The runtime that a base's reference is one of: `runtime/python:3.11@sha256:…` → python3.11. Raises Conflict."""
    try:
        reference = Reference.parse(base)
    except ValueError:
        reference = Reference("", "", "")
    kind = reference.repository.removeprefix(PREFIX)
    name = kind if kind == "provided" else kind + reference.tag
    if not reference.repository.startswith(PREFIX) or not NAME.fullmatch(name):
        raise Conflict("its image stands on none of this server's runtime bases", hint="build it anew and push it")
    return name


async def rebase(client: RegistryClient, image: str, base: RuntimeBase) -> PushedImage:
    """`image` is `repository@digest`; the new one goes to the same repository, without a tag.

    Raises Conflict where the image stands on no base of ours, ImageUnusable, NotFound.
    """
    name = Reference.parse(image)
    old, old_config = await _image(client, name)
    reference = old_config.labels.get(labels.BASE, "")
    count = await _base_layers(client, reference, old)
    below = Reference.parse(base.reference)
    new, new_config = await _image(client, below)
    config = dataclasses.replace(
        new_config,
        diff_ids=(*new_config.diff_ids, *old_config.diff_ids[count:]),
        env=_environment(new_config, old_config),
        workdir=old_config.workdir,
        labels={labels.BASE: base.reference, **_of_function(new_config)},
    )
    push = ImagePush(client, name.repository, _Quiet())
    await push.mount(new.layers, below.repository)
    return await push.finish(config.to_json(), [*new.layers, *old.layers[count:]], ())


def _environment(base: ImageConfig, old: ImageConfig) -> tuple[str, ...]:
    """The new base's, and of the function's own what the base does not set: handler, app, where modules are."""
    values = dict(row.partition("=")[::2] for row in old.env) | dict(row.partition("=")[::2] for row in base.env)
    return tuple(f"{name}={value}" for name, value in sorted(values.items()))


def _of_function(base: ImageConfig) -> dict[str, str]:
    """Of a base's labels those that its functions' images have too."""
    return {name: value for name, value in base.labels.items() if name == labels.SECRETS_READER}


async def _image(client: RegistryClient, name: Reference) -> tuple[Manifest, ImageConfig]:
    manifest = await client.get_manifest(name.repository, name.target)
    if manifest.config is None:
        raise ImageUnusable(f"{name} is no image")
    raw = await client.read_blob(name.repository, manifest.config.digest, CONFIG_BYTES)
    return manifest, ImageConfig.parse(raw)


async def _base_layers(client: RegistryClient, reference: str, image: Manifest) -> int:
    """How many of the image's layers are its base's. The base itself may have been collected. Raises Conflict."""
    runtime = runtime_of(reference)
    base = Reference.parse(reference)
    try:
        count = len((await client.get_manifest(base.repository, base.target)).layers)
    except NotFound:
        count = next(layers for kind, layers in LAYERS.items() if runtime.startswith(kind))
    if len(image.layers) < count:
        raise Conflict("its image does not hold the base that it names", hint="build it anew and push it")
    return count


class _Quiet:
    """Nobody looks: a `faas.build.progress.Progress`."""

    def stage(self, name: str) -> None: ...

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None: ...

    def line(self, text: str) -> None: ...
