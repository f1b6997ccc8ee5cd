"""`faas push`: a folder or an image becomes a revision that answers at a URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from faas import spec_file
from faas.build.image import ImagePush, PushedImage
from faas.build.push import push_dockerfile, push_folder, push_image
from faas.cli.bars import Display, display_of, ticking
from faas.cli.options import pass_session
from faas.cli.registry import open_registry
from faas.cli.session import Session
from faas.cli.spec_options import given, spec_options
from faas.client import Client, Json
from faas.errors import FaasError, SpecError
from faas.oci.client import RegistryClient
from faas.protocol import RuntimeBase
from faas.settings import environment_for
from faas.spec import NAME_PATTERN, FunctionSpec


@dataclass(frozen=True, slots=True)
class Source:
    """What is pushed: `folder` holds the code; `file` is its faas.toml, where it has one; `flags` override it."""

    folder: Path
    file: spec_file.SpecFile | None
    flags: Mapping[str, Any]
    spec: FunctionSpec

    @classmethod
    def read(cls, folder: Path | None, flags: Mapping[str, Any]) -> Source:
        """An image that is named by a flag needs no folder; faas.toml is then read only where a folder is named.

        Raises NotFound, SpecError.
        """
        place = folder or Path()
        path = place / spec_file.NAME
        wanted = folder is not None or "image" not in flags
        file = spec_file.read(path) if wanted and (path.exists() or "name" not in flags) else None
        source = cls(place, file, flags, spec_file.parse(file, flags))
        if error := source._doubt():
            raise source.located(error)
        return source

    def _doubt(self) -> SpecError | None:
        """Why it is not clear what runs."""
        dockerfile = (self.folder / "Dockerfile").exists()
        if self.spec.runtime and dockerfile:
            return SpecError(
                "the folder has a Dockerfile, and a runtime is named: only one of them can be what runs",
                key="runtime",
                hint="drop runtime, or move the Dockerfile out of the folder",
            )
        if not (self.spec.image or self.spec.runtime or dockerfile):
            return SpecError(
                "nothing says what to run: no runtime, no image, and no Dockerfile in the folder",
                hint='write runtime = "python" and handler = "app.handler", or pass --image',
            )
        return None

    @property
    def image(self) -> str:
        """The spec's image; a path in faas.toml is relative to its folder."""
        image = self.spec.image
        beside = self.folder / image
        return str(beside) if image and "image" not in self.flags and beside.exists() else image

    def located(self, error: SpecError) -> SpecError:
        return spec_file.located(error, self.file, self.flags)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it goes: the function's name as the API takes it, and its repository."""

    name: str
    repository: str

    @classmethod
    def of(cls, name: str, namespace: str) -> Place:
        return cls(name, name) if namespace == "default" else cls(f"{name}.{namespace}", f"{namespace}/{name}")


@click.command(short_help="Build, push and deploy a folder or an image; print its URL.")
@click.argument(
    "folder", required=False, metavar="[DIR]", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--no-deploy", is_flag=True, help="Only push the image; print its reference.")
@click.option("--no-check", is_flag=True, help="Deploy without starting an instance first.")
@click.option("--namespace", default="default", show_default=True, help="The function's namespace.")
@spec_options
@pass_session
def push(
    session: Session, /, folder: Path | None, no_deploy: bool, no_check: bool, namespace: str, **parameters: Any
) -> None:
    """Build DIR (this folder where none is named), push the image, deploy it, and print the URL.

    DIR holds code with a faas.toml, or a Dockerfile with one. With --image nothing is built. Every key of faas.toml has
    a flag, which wins over the file.
    """
    if not NAME_PATTERN.fullmatch(namespace):
        raise click.BadParameter(f"{namespace!r} is no namespace: a-z, 0-9 and -", param_hint="--namespace")
    source = Source.read(folder, given(parameters))
    place = Place.of(source.spec.name, namespace)
    with display_of(session) as display:
        work = _push(session, source, place, display, deploy=not no_deploy, check=not no_check)
        last = session.run(work)
    click.echo(last)


async def _push(session: Session, source: Source, place: Place, display: Display, *, deploy: bool, check: bool) -> str:
    """Returns what is printed last: the URL, or the image's reference."""
    async with (
        ticking(display),
        session.client() as client,
        open_registry(client, session.target) as (images, registry),
    ):
        # With a deploy the tags come after it: a function that follows one of them is then up to date already.
        tags = () if deploy else ("latest",)
        pushed = await _image(client, images, source, place, tags, display, registry)
        if not deploy:
            return f"{registry}/{pushed.reference}"
        function = await _deploy(client, images, source, place, display, pushed, check)
    return str(function.get("url") or place.name)


async def _image(
    client: Client,
    images: RegistryClient,
    source: Source,
    place: Place,
    tags: tuple[str, ...],
    display: Display,
    registry: str,
) -> PushedImage:
    spec = source.spec
    try:
        if spec.image:
            display.stage("image")
            return await push_image(source.image, images, place.repository, tags, display, registry)
        if spec.runtime:
            display.stage("runtime")
            base = runtime_base(await client.ensure_runtime(spec.runtime))
            display.detail(f"{base.name} {base.architecture}")
            cache = cache_folder()
            return await push_folder(
                source.folder, spec, images, base, place.repository, tags, display, cache, client.build
            )
    except SpecError as error:
        raise source.located(error) from error.__cause__
    return await push_dockerfile(source.folder, images, place.repository, tags, display)


async def _deploy(
    client: Client,
    images: RegistryClient,
    source: Source,
    place: Place,
    display: Display,
    pushed: PushedImage,
    check: bool,
) -> Json:
    display.stage("deploy")
    spec = source.spec.to_dict()
    spec["image"] = ""  # the digest beside it says which one, whatever it was called here
    try:
        function = await client.deploy(place.name, spec, pushed.reference, check=check)
    except SpecError as error:
        raise source.located(error) from error.__cause__
    display.detail(deployed(function))
    for warning in function.get("warnings") or ():
        display.line(f"warning: {warning}")
    revision = f"v{function['revision']}"
    try:
        await _tag(images, place, display, pushed, str(function["image"]), (revision, "latest"))
    except FaasError as error:
        display.line(f"warning: deployed, but not tagged: {error}")
    if not function.get("public"):
        display.line("it is not public: a call needs a token (or push it with --public)")
    return function


async def _tag(
    images: RegistryClient, place: Place, display: Display, pushed: PushedImage, runs: str, tags: tuple[str, ...]
) -> None:
    """Write `tags` in the function's own repository, wherever the image was pushed to. Of an image for several
    platforms the one that runs gets them."""
    source, image = pushed.reference.partition("@")[0], pushed.manifest
    if image.is_index:
        image = await images.get_manifest(source, runs.partition("@")[2])
    await ImagePush(images, place.repository, display).adopt(image, source, tags)


def deployed(function: Json) -> str:
    """`v7, lambda, init 0.18 s`, or `v7, unchanged`."""
    if function.get("changed") is False:
        return f"v{function['revision']}, unchanged"
    seen = function.get("check") or {}
    words = [f"v{function['revision']}", str(seen.get("interface") or function.get("interface") or "")]
    if isinstance(seen.get("init_seconds"), int | float):
        words.append(f"init {seen['init_seconds']:.2f} s")
    return ", ".join(word for word in words if word)


def runtime_base(answer: Json) -> RuntimeBase:
    """The API's `/v1/runtimes/{name}` as a value. Raises FaasError."""
    try:
        return RuntimeBase(
            str(answer["name"]),
            str(answer["reference"]),
            str(answer["version"]),
            str(answer["architecture"]),
            tuple(str(tag) for tag in answer.get("platforms") or ()),
        )
    except (KeyError, TypeError):
        raise FaasError("the server described the runtime in an unknown form", hint="update faas here") from None


def cache_folder() -> Path:
    """Where layers of dependencies are kept between pushes."""
    folder = environment_for(("XDG_CACHE_HOME",)).get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "faas"
