"""`faas push` without its screen: a folder or an image becomes `repository@digest` in the registry."""

from __future__ import annotations

import asyncio
import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faas.build import requirements
from faas.build.dependencies import node_layer, python_layer
from faas.build.image import ImagePush, PushedImage
from faas.build.layer import Layer, members, pack, patterns
from faas.build.progress import Progress
from faas.errors import InvalidInput, SpecError
from faas.oci.archive import open_image
from faas.oci.client import RegistryClient
from faas.oci.reference import Reference
from faas.protocol import RuntimeBase
from faas.spec import FunctionSpec

CODE = "var/task"
# Of the top folder: what made the image, and may hold an index's address with its password.
_NOT_CODE = ("/faas.toml", "/wheels", "/package-lock.json", "/npm-shrinkwrap.json", "/requirements.txt")


async def push_folder(
    folder: Path,
    spec: FunctionSpec,
    client: RegistryClient,
    base: RuntimeBase,
    repository: str,
    tags: Sequence[str],
    progress: Progress,
    cache: Path,
) -> PushedImage:
    """A folder of code on a runtime base. `cache` keeps dependency layers between pushes.

    Raises InvalidInput, SpecError; errors of the registry as `faas.oci.client` names them.
    """
    with tempfile.TemporaryDirectory(prefix="faas-push-") as work:
        layers: list[Layer] = []
        make = {"python": python_layer, "node": node_layer}.get(spec.runtime.rstrip("0123456789."))
        if make is not None:
            progress.stage("dependencies")
            made = await asyncio.to_thread(make, folder, base, cache, Path(work))
            layers += [made] if made else []
        progress.stage("code")
        layers.append(await asyncio.to_thread(code_layer, folder, spec, Path(work)))
        progress.stage("upload")
        return await ImagePush(client, repository, progress).function(base, spec, layers, tags)


def code_layer(folder: Path, spec: FunctionSpec, work: Path) -> Layer:
    """Blocking. The folder at /var/task. Raises InvalidInput where there is nothing, or no `bootstrap`."""
    rows = list(members(folder, CODE, (*patterns(folder), *_NOT_CODE, *_included(folder, spec))))
    if not any(row.source for row in rows):
        raise InvalidInput(f"there is no code in {folder}", hint="faas new NAME makes a folder to begin with")
    if spec.runtime == "provided":
        bootstrap = next((row for row in rows if row.name == f"{CODE}/bootstrap"), None)
        if bootstrap is None or not bootstrap.executable:
            raise SpecError(
                "runtime provided needs an executable file bootstrap", key="runtime", hint="chmod +x bootstrap"
            )
    return pack(rows, work / "code.tar", "code")


def _included(folder: Path, spec: FunctionSpec) -> list[str]:
    """Rules for the lists that requirements.txt includes."""
    path, root = folder / requirements.NAME, folder.resolve()
    if not spec.runtime.startswith("python") or not path.exists():
        return []
    lists = [listed.resolve() for listed in requirements.read(path).lists]
    return [f"/{glob.escape(p.relative_to(root).as_posix())}" for p in lists if p.is_relative_to(root)]


async def push_dockerfile(
    folder: Path, client: RegistryClient, repository: str, tags: Sequence[str], progress: Progress
) -> PushedImage:
    """A folder with a Dockerfile, built by the local Docker Engine."""
    from faas.build.dockerfile import built

    progress.stage("build")
    with tempfile.TemporaryDirectory(prefix="faas-push-") as work:
        archive = Path(work) / "image.tar"
        await asyncio.to_thread(built, folder, repository, archive, progress.line)
        return await _push_archive(archive, client, repository, tags, progress)


async def push_image(
    source: str, client: RegistryClient, repository: str, tags: Sequence[str], progress: Progress, registry: str = ""
) -> PushedImage:
    """`source`: an OCI or Docker archive, an OCI layout folder, a reference into the registry (`registry` is its
    host:port), or an image of the local engine. Tried in this order."""
    path = Path(source)
    if await asyncio.to_thread(path.exists):
        return await _push_archive(path, client, repository, tags, progress)
    try:
        reference = Reference.parse(source)
    except ValueError as error:
        raise InvalidInput(f"{source} is neither a file nor a reference: {error}") from None
    if reference.is_at(registry) or (not reference.host and await _in_registry(client, reference)):
        manifest = await client.get_manifest(reference.repository, reference.target)
        return PushedImage(f"{reference.repository}@{manifest.digest}", manifest)
    from faas.build.dockerfile import saved

    progress.stage("export")
    with tempfile.TemporaryDirectory(prefix="faas-push-") as work:
        archive = Path(work) / "image.tar"
        await asyncio.to_thread(saved, source, archive)
        return await _push_archive(archive, client, repository, tags, progress)


async def _in_registry(client: RegistryClient, reference: Reference) -> bool:
    from faas.errors import NotFound

    try:
        await client.get_manifest(reference.repository, reference.target)
    except NotFound:
        return False
    return True


async def _push_archive(
    path: Path, client: RegistryClient, repository: str, tags: Sequence[str], progress: Progress
) -> PushedImage:
    progress.stage("upload")
    image = await asyncio.to_thread(open_image, path)
    with image:
        push = ImagePush(client, repository, progress)
        for layer in image.layers:
            data = await asyncio.to_thread(image.spooled, layer)
            with data:
                await push.blob(Path(data.name), layer.digest, layer.size, "layer")
        return await push.finish(image.config, image.layers, tags, image.config_type)
