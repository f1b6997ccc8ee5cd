"""`faas push` without its screen: a folder or an image becomes `repository@digest` in the registry."""

from __future__ import annotations

import asyncio
import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faas.build import remote, requirements
from faas.build.dependencies import NeedsBuild, listed, node_layer, python_layer
from faas.build.image import ImagePush, PushedImage
from faas.build.layer import Layer, Member, check_size, members, pack, patterns
from faas.build.progress import Progress
from faas.build.remote import OpenBuild
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
    build: OpenBuild | None = None,
) -> PushedImage:
    """A folder of code on a runtime base. `cache` keeps dependency layers between pushes; `build` opens a sandbox on
    the server, for what has no wheel.

    Raises InvalidInput, SpecError; errors of the registry as `faas.oci.client` names them.
    """
    with tempfile.TemporaryDirectory(prefix="faas-push-") as work:
        layers = await _dependencies(folder, spec, base, cache, Path(work), progress, build)
        progress.stage("code")
        layers.append(await asyncio.to_thread(code_layer, folder, spec, Path(work)))
        progress.stage("upload")
        return await ImagePush(client, repository, progress).function(base, spec, layers, tags)


async def push_below(
    folder: Path,
    spec: FunctionSpec,
    client: RegistryClient,
    base: RuntimeBase,
    repository: str,
    progress: Progress,
    cache: Path,
    build: OpenBuild | None = None,
) -> str:
    """What the folder's code stands on, as a reference: the base, or with dependencies an image of both, without a tag.
    Raises as `push_folder`."""
    with tempfile.TemporaryDirectory(prefix="faas-push-") as work:
        layers = await _dependencies(folder, spec, base, cache, Path(work), progress, build)
        if not layers:
            return base.reference
        progress.stage("upload")
        return (await ImagePush(client, repository, progress).function(base, spec, layers, ())).reference


async def _dependencies(
    folder: Path,
    spec: FunctionSpec,
    base: RuntimeBase,
    cache: Path,
    work: Path,
    progress: Progress,
    build: OpenBuild | None,
) -> list[Layer]:
    language = spec.runtime.rstrip("0123456789.")
    if language not in ("python", "node"):
        return []
    progress.stage("dependencies")
    if language == "node":
        made = await asyncio.to_thread(node_layer, folder, base, cache, work, progress.line)
    else:
        made = await _python_layer(folder, base, cache, work, progress, build)
    return [made] if made else []


def code_members(folder: Path, spec: FunctionSpec) -> list[Member]:
    """Blocking. What of the folder is code, at /var/task. Raises InvalidInput."""
    return list(members(folder, CODE, (*patterns(folder), *_NOT_CODE, *_included(folder, spec))))


async def _python_layer(
    folder: Path, base: RuntimeBase, cache: Path, work: Path, progress: Progress, build: OpenBuild | None
) -> Layer | None:
    try:
        return await asyncio.to_thread(python_layer, folder, base, cache, work)
    except NeedsBuild:
        found = await asyncio.to_thread(listed, folder, work)
        if build is None or found is None:
            raise
    progress.stage("build")
    made = await remote.wheels(found, f"python{base.version}", work, build, progress)
    return await asyncio.to_thread(python_layer, folder, base, cache, work, made)


def code_layer(folder: Path, spec: FunctionSpec, work: Path) -> Layer:
    """Blocking. The folder at /var/task. Raises InvalidInput where there is nothing, or no `bootstrap`."""
    rows = code_members(folder, spec)
    if not any(row.source for row in rows):
        raise InvalidInput(f"there is no code in {folder}", hint="faas new NAME makes a folder to begin with")
    check_size(rows)
    if spec.runtime == "provided":
        bootstrap = next((row for row in rows if row.name == f"{CODE}/bootstrap"), None)
        if bootstrap is None or not bootstrap.executable:
            raise SpecError(
                "runtime provided needs an executable file bootstrap", key="runtime", hint="chmod +x bootstrap"
            )
        if bootstrap.source is not None and _ends_as_on_windows(bootstrap.source):
            raise SpecError(
                "the first line of bootstrap ends as on Windows (CR LF): no system finds the program that it names",
                key="runtime",
                hint="save it with LF; git keeps that so with the line `bootstrap text eol=lf` in .gitattributes",
            )
    return pack(rows, work / "code.tar", "code")


def _ends_as_on_windows(script: Path) -> bool:
    with script.open("rb") as file:
        line = file.readline(256)
    return line.startswith(b"#!") and line.endswith(b"\r\n")


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
