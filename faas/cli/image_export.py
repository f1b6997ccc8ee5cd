"""`faas image export`: images of the registry as an OCI layout, for a machine without a way to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from faas.background import to_its_end
from faas.cli.bars import Display, display_of, ticking
from faas.cli.image_reference import complete_references, looking_up, parse_reference
from faas.cli.options import pass_session
from faas.cli.registry import open_registry
from faas.cli.session import Session
from faas.errors import ImageUnusable, NotFound
from faas.oci.client import RegistryClient
from faas.oci.contents import Contents
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.layout import Json, Layout, entry, open_layout
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.platform import Platform
from faas.oci.reference import Reference, companion_of, referrers_tag

AT_ONCE = 4  # blobs; more gain nothing on a disk or a loopback


@dataclass
class Plan:
    """What is to be written: rows of index.json, and everything they need by the repository that has it."""

    entries: list[Json] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    contents: dict[str, Contents] = field(default_factory=dict)

    def add(self, descriptor: Descriptor, name: str = "") -> None:
        self.entries.append(entry(descriptor, name))
        if name:
            self.names.append(name)

    def blobs(self) -> Iterator[tuple[str, Descriptor]]:
        """Each digest once, with a repository that has it; manifests among them."""
        seen: set[Digest] = set()
        for repository, contents in self.contents.items():
            for descriptor in contents.descriptors():
                if descriptor.digest not in seen:
                    seen.add(descriptor.digest)
                    yield repository, descriptor

    def manifest(self, repository: str, digest: Digest) -> Manifest | None:
        return self.contents[repository].manifests.get(digest)


class Planner:
    """Asks the registry what there is. `platform` None: all of an index."""

    def __init__(self, images: RegistryClient, platform: Platform | None, *, referrers: bool) -> None:
        self._images = images
        self._platform = platform
        self._referrers = referrers
        self.plan = Plan()

    async def add(self, reference: Reference) -> None:
        """Raises NotFound, ImageUnusable."""
        repository = reference.repository
        with looking_up(reference):
            manifest = await self._images.get_manifest(repository, reference.target)
        if self._platform is not None:
            manifest = await self._of_platform(repository, manifest, self._platform)
        fresh = await self._add(repository, manifest)
        name = f"{repository}:{reference.tag}" if reference.tag else f"{repository}@{manifest.digest}"
        self.plan.add(manifest.descriptor(), name)
        if self._referrers:
            await self._add_referrers(repository, fresh)
            await self._add_signature_tags(repository, fresh)

    async def _add(self, repository: str, manifest: Manifest) -> list[Digest]:
        """Returns the digests of the manifests that are new here."""
        contents = self.plan.contents.setdefault(repository, Contents())
        before = set(contents.manifests)

        async def fetch(child: Descriptor) -> Manifest:
            try:
                return await self._images.get_manifest(repository, str(child.digest))
            except NotFound:
                raise ImageUnusable(
                    f"{repository}@{manifest.digest} names {child.digest}, which the registry does not have",
                    hint="take one of its platforms: --platform linux/amd64",
                ) from None

        await contents.add(manifest, fetch)
        return [digest for digest in contents.manifests if digest not in before]

    async def _add_referrers(self, repository: str, subjects: Iterable[Digest]) -> None:
        """Theirs too: a signature of an SBOM."""
        waiting = list(subjects)
        while waiting:
            for found in await self._images.referrers(repository, waiting.pop()):
                try:
                    manifest = await self._images.get_manifest(repository, str(found.digest))
                except NotFound:  # named by an index that tells of more than there is
                    continue
                self.plan.add(found)
                waiting += await self._add(repository, manifest)

    async def _add_signature_tags(self, repository: str, subjects: Iterable[Digest]) -> None:
        """Before there were referrers, signatures got tags made of what they sign: `sha256-….sig`."""
        about = {referrers_tag(digest) for digest in subjects}
        for tag in await self._images.tags(repository):
            if companion_of(tag) and tag.partition(".")[0] in about:
                manifest = await self._images.get_manifest(repository, tag)
                await self._add(repository, manifest)
                self.plan.add(manifest.descriptor(), f"{repository}:{tag}")

    async def _of_platform(self, repository: str, manifest: Manifest, platform: Platform) -> Manifest:
        if manifest.is_index:
            for child in manifest.manifests:
                if child.platform and platform.fits(*child.platform):
                    return await self._images.get_manifest(repository, str(child.digest))
            offered = {str(Platform(*child.platform)) for child in manifest.manifests if child.platform}
        else:
            own = await self._own_platform(repository, manifest)
            if own is not None and platform.fits(own.os, own.architecture, own.variant):
                return manifest
            offered = {str(own)} if own else set()
        raise ImageUnusable(
            f"{repository}@{manifest.digest} is not for {platform}",
            hint=f"it is for {', '.join(sorted(offered)) or 'no platform'}",
        )

    async def _own_platform(self, repository: str, manifest: Manifest) -> Platform | None:
        if manifest.config is None:
            return None
        raw = await self._images.read_blob(repository, manifest.config.digest, CONFIG_BYTES)
        try:
            config = ImageConfig.parse(raw)
        except ValueError:
            return None
        return Platform(config.os, config.architecture)


async def transfer(images: RegistryClient, plan: Plan, layout: Layout, display: Display) -> None:
    """Blobs, several at once; then the layout names the images. The first error ends the others."""
    blobs = list(plan.blobs())
    await asyncio.to_thread(layout.begin, plan.entries, [descriptor for _, descriptor in blobs])
    places = asyncio.Semaphore(AT_ONCE)

    async def one(repository: str, descriptor: Descriptor) -> None:
        async with places:
            name, done = str(descriptor.digest), 0
            if await asyncio.to_thread(layout.has, descriptor):
                display.layer(name, "", descriptor.size, descriptor.size, "exists")
                return
            writer = await to_its_end(asyncio.to_thread(layout.blob, descriptor), lambda made: made.close())
            try:
                if (manifest := plan.manifest(repository, descriptor.digest)) is not None:
                    await to_its_end(asyncio.to_thread(writer.write, manifest.raw))
                else:
                    display.layer(name, "", 0, descriptor.size, "downloading")
                    async with _opened(images, repository, descriptor) as chunks:
                        async for chunk in chunks:
                            await to_its_end(asyncio.to_thread(writer.write, chunk))
                            done += len(chunk)
                            display.layer(name, "", done, descriptor.size, "downloading")
                await to_its_end(asyncio.to_thread(writer.commit))
            finally:
                writer.close()
            display.layer(name, "", descriptor.size, descriptor.size, "done")

    try:
        async with asyncio.TaskGroup() as group:
            for blob in blobs:
                group.create_task(one(*blob))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    await asyncio.to_thread(layout.finish)


@asynccontextmanager
async def _opened(images: RegistryClient, repository: str, blob: Descriptor) -> AsyncIterator[AsyncIterator[bytes]]:
    """Its pieces. Raises NotFound, as of a blob that was found damaged."""
    try:
        async with images.open_blob(repository, blob.digest) as chunks:
            yield chunks
    except NotFound:
        raise NotFound(
            f"the registry has the image in {repository}, and not its blob {blob.digest}",
            hint="push the image again; faas image scrub --status shows what was found damaged",
        ) from None


@click.command("export", short_help="Write images into an OCI layout: a folder or FILE.tar.")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...", shell_complete=complete_references)
@click.argument("target", metavar="DIR|FILE.tar", type=click.Path(path_type=Path))
@click.option("--platform", default="", metavar="OS/ARCH", help="Of an image for several platforms only this one.")
@click.option(
    "--referrers/--no-referrers", default=True, show_default=True, help="Signatures and the like of the images too."
)
@pass_session
def export(session: Session, references: tuple[str, ...], target: Path, platform: str, referrers: bool) -> None:
    """Write images of the registry into an OCI layout; print where it is.

    A layout that is there already is added to, and what it has already is not fetched again. FILE.tar must be new.
    """
    wanted = _parsed(platform)
    with display_of(session) as display, open_layout(target) as layout:
        session.run(_export(session, references, layout, display, wanted, referrers=referrers))
    click.echo(target)


async def _export(
    session: Session,
    references: Sequence[str],
    layout: Layout,
    display: Display,
    platform: Platform | None,
    *,
    referrers: bool,
) -> None:
    async with (
        ticking(display),
        session.client() as client,
        open_registry(client, session.target) as (images, registry),
    ):
        planner = Planner(images, platform, referrers=referrers)
        for text in references:
            await planner.add(parse_reference(text, registry))
        display.stage("export")
        await transfer(images, planner.plan, layout, display)
    for name in planner.plan.names:
        display.line(name)


def _parsed(platform: str) -> Platform | None:
    if not platform:
        return None
    try:
        return Platform.parse(platform)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--platform") from None
