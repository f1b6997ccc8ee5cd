"""`faas image import`: the images of an OCI layout, or of what `docker save` wrote, into the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from faas.cli.bars import Display, display_of, ticking
from faas.cli.options import pass_session
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import FaasError, ImageUnusable, InvalidInput
from faas.oci.bundle import Bundle, NamedManifest
from faas.oci.client import RegistryClient
from faas.oci.contents import Contents, Fetch, same_size
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest
from faas.oci.reference import BASES, TAG_PATTERN, Reference, companion_of, is_repository

AT_ONCE = 4  # blobs


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image goes; `tag` "": it is kept by its digest alone."""

    repository: str
    tag: str
    manifest: Manifest

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else f"{self.repository}@{self.manifest.digest}"


@dataclass
class Plan:
    """`contents` by repository: what each is to have before the first of `places` gets its tag."""

    places: list[Place]
    contents: dict[str, Contents] = field(default_factory=dict)

    def blobs(self) -> dict[Digest, tuple[Descriptor, list[str]]]:
        """Each blob with the repositories that are to have it."""
        found: dict[Digest, tuple[Descriptor, list[str]]] = {}
        for repository, contents in self.contents.items():
            for digest, blob in contents.blobs.items():
                descriptor, repositories = found.setdefault(digest, (blob, []))
                same_size(blob, descriptor.size)
                repositories.append(repository)
        return found


def placed(image: NamedManifest, repository: str, tag: str) -> Place:
    """The name in the archive, with what the command line says instead. Raises InvalidInput where one is missing."""
    written = Reference("", "", "")
    if TAG_PATTERN.fullmatch(image.name):  # as skopeo writes it
        written = Reference("", "", image.name)
    elif image.name:
        try:
            written = Reference.parse(image.name)
        except ValueError as error:
            raise InvalidInput(f"the archive's name {image.name[:160]!r}: {error}") from None
    kept = companion_of(written.tag)  # a signature is found by it
    found = Place(repository or written.repository, written.tag if kept else tag or written.tag, image.manifest)
    if not found.repository:
        called = f"names its image only {found.tag!r}" if found.tag else "does not name its image"
        raise InvalidInput(f"the archive {called}, without a repository", hint="pass --repository NAME")
    if found.repository.startswith(BASES) and not repository:  # every push of a function builds on them
        raise InvalidInput(
            f"the archive names its image {found}, one of the runtime bases",
            hint=f"pass --repository {found.repository}",
        )
    if not (found.tag or written.digest):
        raise InvalidInput("the archive does not name its image", hint="pass --tag TAG")
    return found


async def planned(bundle: Bundle, repository: str, tag: str) -> Plan:
    """What goes where, with every manifest checked and every blob's size. Raises InvalidInput, ImageUnusable."""

    async def fetch(descriptor: Descriptor) -> Manifest:
        return await asyncio.to_thread(bundle.manifest, descriptor)

    following = [image.manifest for image in bundle.images if not image.name and image.manifest.subject]
    named = [image for image in bundle.images if image.name or not image.manifest.subject]
    plan = Plan([placed(image, repository, tag) for image in named])
    plan.places.sort(key=lambda place: not companion_of(place.tag))  # an image's signatures are there before its tag
    _refuse_two_of_a_name(plan.places)
    for place in plan.places:
        await plan.contents.setdefault(place.repository, Contents()).add(place.manifest, fetch)
    if following and repository:
        plan.contents.setdefault(repository, Contents())
    attached: set[Digest] = set()
    for contents in plan.contents.values():
        attached |= await _attach(contents, following, fetch)
    following = [manifest for manifest in following if manifest.digest not in attached]
    if following and not repository:
        raise InvalidInput(
            "the archive holds signatures or the like of images that are not in it", hint="pass --repository NAME"
        )
    for manifest in following:
        await plan.contents[repository].add(manifest, fetch)
    if not plan.contents:
        raise InvalidInput("the archive holds no image")
    for blob, _ in plan.blobs().values():
        await asyncio.to_thread(bundle.check_size, blob)
    return plan


async def _attach(contents: Contents, following: list[Manifest], fetch: Fetch) -> set[Digest]:
    """Those whose subject is here come too, and then theirs. Returns which."""
    attached: set[Digest] = set()
    while True:
        waiting = [m for m in following if m.digest not in attached]
        ready = [m for m in waiting if m.subject and m.subject.digest in contents.manifests]
        if not ready:
            return attached
        for manifest in ready:
            await contents.add(manifest, fetch)
            attached.add(manifest.digest)


def _refuse_two_of_a_name(places: list[Place]) -> None:
    by_name: dict[str, Digest] = {}
    for place in places:
        if by_name.setdefault(str(place), place.manifest.digest) != place.manifest.digest:
            raise InvalidInput(
                f"two images of the archive would be {place}",
                hint="without --tag, and where that is not it --repository",
            )


class _Body:
    """A blob on its way: what is wrong with it is known here, whatever the other side says of it then."""

    def __init__(self, bundle: Bundle, blob: Descriptor, display: Display) -> None:
        self._bundle, self._blob, self._display = bundle, blob, display
        self.error: FaasError | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        hasher, done, name = self._blob.digest.hasher(), 0, str(self._blob.digest)
        chunks = self._bundle.chunks(self._blob)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                await asyncio.to_thread(hasher.update, chunk)
                done += len(chunk)
                if done == self._blob.size and hasher.hexdigest() != self._blob.digest.hex:
                    raise ImageUnusable(f"the blob {name} is not what its digest says")
                yield chunk
                self._display.layer(name, "", done, self._blob.size, "uploading")
        except FaasError as error:
            self.error = error
            raise


class Transfer:
    """Brings a plan's contents into the registry: blobs, then manifests, and tags when all of them are there."""

    def __init__(self, images: RegistryClient, bundle: Bundle, display: Display) -> None:
        self._images, self._bundle, self._display = images, bundle, display
        # What is compressed is read in its order, or each blob would mean to begin anew.
        self._slots = asyncio.Semaphore(1 if bundle.files.compressed else AT_ONCE)

    async def run(self, plan: Plan) -> None:
        blobs = sorted(plan.blobs().values(), key=lambda pair: self._bundle.position(pair[0]))
        try:
            async with asyncio.TaskGroup() as group:
                for blob, repositories in blobs:
                    group.create_task(self._blob(blob, repositories))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        for repository, contents in plan.contents.items():
            for digest, manifest in contents.manifests.items():
                await self._images.put_manifest(repository, str(digest), manifest)
        for place in plan.places:
            if place.tag:
                await self._images.put_manifest(place.repository, place.tag, place.manifest)

    async def _blob(self, blob: Descriptor, repositories: list[str]) -> None:
        async with self._slots:
            state, source = "exists", ""
            for repository in repositories:
                if not await self._is_there(blob, repository, source):
                    await self._upload(blob, repository)
                    state = "done"
                source = repository
            self._display.layer(str(blob.digest), "", blob.size, blob.size, state)

    async def _is_there(self, blob: Descriptor, repository: str, source: str) -> bool:
        """Already, or from here on: mounted from `source`, a repository that has it; "" for none."""
        if await self._images.has_blob(repository, blob.digest):
            return True
        return bool(source) and await self._images.mount_blob(repository, blob.digest, source)

    async def _upload(self, blob: Descriptor, repository: str) -> None:
        self._display.layer(str(blob.digest), "", 0, blob.size, "uploading")
        body = _Body(self._bundle, blob, self._display)
        try:
            await self._images.upload_chunks(repository, body.chunks(), blob.size, blob.digest)
        except FaasError:
            if body.error is not None:
                raise body.error from None
            raise


@click.command("import", short_help="Read images from an OCI layout or a `docker save` archive.")
@click.argument("source", metavar="DIR|FILE.tar", type=click.Path(exists=True, path_type=Path))
@click.option("--repository", default="", metavar="NAME", help="Instead of the repositories that the archive names.")
@click.option("--tag", default="", metavar="TAG", help="Instead of the tag that the archive names.")
@pass_session
def import_(session: Session, source: Path, repository: str, tag: str) -> None:
    """Bring the images of an OCI layout (a folder or a tar file), or of `docker save`, into the registry; print their
    names.

    Everything is checked against its digest. Tags are written last: what fails before leaves them as they were.
    """
    if repository and not is_repository(repository):
        raise click.BadParameter(f"{repository!r} is no repository name", param_hint="--repository")
    if tag and not TAG_PATTERN.fullmatch(tag):
        raise click.BadParameter(f"{tag!r} is no tag", param_hint="--tag")
    with display_of(session) as display:
        names = session.run(_import(session, source, repository, tag, display))
    for name in names:
        click.echo(name)


async def _import(session: Session, source: Path, repository: str, tag: str, display: Display) -> list[str]:
    async with ticking(display), images_of(session) as images:
        display.stage("read")
        with await asyncio.to_thread(Bundle.open, source) as bundle:
            plan = await planned(bundle, repository, tag)
            display.stage("import")
            await Transfer(images, bundle, display).run(plan)
    return [str(place) for place in plan.places] or sorted(
        f"{name}@{digest}" for name, contents in plan.contents.items() for digest in contents.manifests
    )
