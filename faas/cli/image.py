"""`faas image`: images in the registry. What has a file of its own, `image_*.py`, is registered at the end."""

from __future__ import annotations

import asyncio

import click

from faas.cli.bars import staged
from faas.cli.image_describe import describe, platform_of, read_config
from faas.cli.image_export import export
from faas.cli.image_import import import_
from faas.cli.image_policy import policy
from faas.cli.image_quota import quota
from faas.cli.image_reference import complete_references, looking_up, parse_image, parse_repository
from faas.cli.image_retention import retention
from faas.cli.image_scrub import scrub
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, age, as_json, at_terminal, note, output_option, show, size
from faas.cli.registry import images_of, open_registry
from faas.cli.session import Session
from faas.errors import Conflict, NotFound
from faas.oci.client import RegistryClient
from faas.oci.platform import Platform

AT_ONCE = 8  # requests
COLUMNS: tuple[Column, ...] = (
    ("REPOSITORY", lambda i: i["repository"]),
    ("TAG", lambda i: i["tag"]),
    ("DIGEST", lambda i: i["digest"][:19]),
    ("SIZE", lambda i: size(i["bytes"])),
    ("AGE", lambda i: age(i["created_at"])),
    ("PLATFORM", lambda i: ", ".join(i["platforms"])),
)
NO_PLATFORM = "unknown/unknown"  # of what builders attest beside the images


@click.group()
def image() -> None:
    """Images in the registry, and what holds for them."""


@image.command("ls", short_help="List repositories with their tags.")
@click.argument("repository", required=False, default="", metavar="[REPOSITORY]", shell_complete=complete_references)
@output_option
@pass_session
def image_ls(session: Session, repository: str, output: str) -> None:
    """List repositories with their tags, or one repository's."""

    async def fetch() -> list[Json]:
        places = asyncio.Semaphore(AT_ONCE)
        async with session.client() as client, open_registry(client, session.target) as (images, registry):
            names = [parse_repository(repository, registry)] if repository else await images.repositories()

            async def one(name: str, tag: str) -> Json | None:
                async with places:
                    try:
                        return await _listed(images, name, tag)
                    except NotFound:  # deleted meanwhile, or an upstream's that was never pulled
                        return None

            wanted = [(name, tag) for name in names for tag in await _tags(images, name)]
            return [row for row in await asyncio.gather(*(one(*pair) for pair in wanted)) if row]

    show(output, session.run(fetch()), COLUMNS, lambda i: f"{i['repository']}:{i['tag']}")


async def _tags(images: RegistryClient, name: str) -> list[str]:
    try:
        return await images.tags(name)
    except NotFound:
        raise NotFound(f"there is no repository {name}", hint="faas image ls lists all of them") from None


async def _listed(images: RegistryClient, name: str, tag: str) -> Json:
    """A row of the list. What a config cannot tell, since it is an artifact's or of an unknown form, is left out.

    Raises NotFound for a tag that is not here: asked for what it knows, the registry fetches nothing from an upstream,
    whose tags it lists all the same."""
    known = await images.image(name, tag)
    manifest = await images.get_manifest(name, known["digest"])
    if manifest.is_index:
        platforms = [str(Platform(*child.platform)) for child in manifest.manifests if child.platform]
    else:
        own = platform_of(await read_config(images, name, manifest))
        platforms = [own] if own else []
    return {
        "repository": name,
        "tag": tag,
        "digest": known["digest"],
        "bytes": known["bytes"],
        "created_at": known["created_at"],
        "platforms": [each for each in platforms if each != NO_PLATFORM],
    }


@image.command("rm", short_help="Delete tags or images.")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...", shell_complete=complete_references)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def image_rm(session: Session, references: tuple[str, ...], yes: bool) -> None:
    """Delete images: NAME:TAG takes the tag away, NAME@DIGEST the image with all its tags; print what went.

    What a function needs, now or for a rollback, stays. Bytes are freed by the next collection.
    """
    for text in references:
        parse_image(text, "")  # before the question
    if not yes and at_terminal():
        click.confirm(f"delete {', '.join(references)}?", abort=True, err=True)

    async def work() -> None:
        async with session.client() as client, open_registry(client, session.target) as (images, registry):
            for reference in [parse_image(text, registry) for text in references]:
                with looking_up(reference):
                    try:
                        await images.delete_manifest(reference.repository, reference.target)
                    except Conflict as error:
                        raise Conflict(
                            error.message, hint="faas rm NAME deletes a function with its revisions"
                        ) from None
                click.echo(str(reference))

    session.run(work())


@image.command("gc", short_help="Collect garbage now.")
@click.option("--dry-run", is_flag=True, help="Only say what a collection would free.")
@output_option
@pass_session
def image_gc(session: Session, dry_run: bool, output: str) -> None:
    """Collect garbage now: images that nothing names, and bytes that no image needs."""

    async def work() -> dict[str, int]:
        async with staged(session, "collect"), images_of(session) as images:
            return await images.collect_garbage(dry_run=dry_run)

    found = session.run(work())
    if output == "json":
        click.echo(as_json(found))
        return
    would = "would free" if dry_run else "freed"
    note(f"{found['manifests']} images, {found['blobs']} blobs, {found['files']} files that belong to none")
    click.echo(found["bytes"] if output == "name" else f"{would} {size(found['bytes'])}")


# Commands with a file of their own, one line each.
image.add_command(describe)
image.add_command(export)
image.add_command(import_)
image.add_command(policy)
image.add_command(quota)
image.add_command(retention)
image.add_command(scrub)
