"""`faas image`: images in the registry. What has a file of its own, `image_*.py`, is registered at the end."""

from __future__ import annotations

import asyncio

import click

from faas.cli.image_describe import describe, platform_of, read_config
from faas.cli.image_export import export
from faas.cli.image_import import import_
from faas.cli.image_policy import policy
from faas.cli.image_quota import quota
from faas.cli.image_reference import complete_references
from faas.cli.image_retention import retention
from faas.cli.image_scrub import scrub
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, as_json, at_terminal, note, output_option, show, size
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput, NotFound
from faas.oci.client import RegistryClient
from faas.oci.platform import Platform
from faas.oci.reference import Reference

AT_ONCE = 8  # requests
COLUMNS: tuple[Column, ...] = (
    ("REPOSITORY", lambda i: i["repository"]),
    ("TAG", lambda i: i["tag"]),
    ("DIGEST", lambda i: i["digest"][:19]),
    ("SIZE", lambda i: size(i["size"])),
    ("PLATFORM", lambda i: ", ".join(i["platforms"])),
)
NO_PLATFORM = "unknown/unknown"  # of what builders attest beside the images


@click.group()
def image() -> None:
    """Images in the registry."""


@image.command("ls")
@click.argument("repository", required=False, default="", metavar="[REPOSITORY]", shell_complete=complete_references)
@output_option
@pass_session
def image_ls(session: Session, repository: str, output: str) -> None:
    """List repositories with their tags, or one repository's."""

    async def fetch() -> list[Json]:
        places = asyncio.Semaphore(AT_ONCE)
        async with images_of(session) as images:
            names = [repository] if repository else await images.repositories()

            async def one(name: str, tag: str) -> Json | None:
                async with places:
                    try:
                        return await _listed(images, name, tag)
                    except NotFound:  # deleted meanwhile
                        return None

            wanted = [(name, tag) for name in names for tag in await images.tags(name)]
            return [row for row in await asyncio.gather(*(one(*pair) for pair in wanted)) if row]

    show(output, session.run(fetch()), COLUMNS, lambda i: f"{i['repository']}:{i['tag']}")


async def _listed(images: RegistryClient, name: str, tag: str) -> Json:
    """A row of the list. What a config cannot tell, since it is an artifact's or of an unknown form, is left out."""
    manifest = await images.get_manifest(name, tag)
    if manifest.is_index:
        platforms = [str(Platform(*child.platform)) for child in manifest.manifests if child.platform]
        total = (await images.image(name, str(manifest.digest)))["bytes"]
    else:
        own = platform_of(await read_config(images, name, manifest))
        platforms, total = [own] if own else [], sum(blob.size for blob in manifest.blobs)
    row = {"repository": name, "tag": tag, "digest": str(manifest.digest), "size": total}
    return {**row, "platforms": [each for each in platforms if each != NO_PLATFORM]}


@image.command("rm")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...", shell_complete=complete_references)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def image_rm(session: Session, references: tuple[str, ...], yes: bool) -> None:
    """Delete images: NAME:TAG takes the tag away, NAME@DIGEST the image with all its tags."""
    parsed = [_parsed(text) for text in references]
    if not yes and at_terminal():
        click.confirm(f"delete {', '.join(references)}?", abort=True, err=True)

    async def work() -> None:
        async with images_of(session) as images:
            for reference in parsed:
                await images.delete_manifest(reference.repository, reference.target)
                click.echo(str(reference))

    session.run(work())


def _parsed(text: str) -> Reference:
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        raise InvalidInput(f"{text}: {error}") from None
    if reference.tag == "latest" and not text.endswith(":latest"):
        raise InvalidInput(f"{text} names no image", hint=f"{text}:TAG or {text}@DIGEST; see faas image ls {text}")
    return reference


@image.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what a collection would free.")
@output_option
@pass_session
def image_gc(session: Session, dry_run: bool, output: str) -> None:
    """Collect garbage now: images that nothing names, and bytes that no image needs."""

    async def work() -> dict[str, int]:
        async with images_of(session) as images:
            return await images.collect_garbage(dry_run=dry_run)

    found = session.run(work())
    if output == "json":
        click.echo(as_json(found))
        return
    would = "would free" if dry_run else "freed"
    note(f"{found['manifests']} manifests, {found['blobs']} blobs, {found['files']} files without a row")
    click.echo(found["bytes"] if output == "name" else f"{would} {size(found['bytes'])}")


# Commands with a file of their own, one line each.
image.add_command(describe)
image.add_command(export)
image.add_command(import_)
image.add_command(policy)
image.add_command(quota)
image.add_command(retention)
image.add_command(scrub)
