"""References of images on the command line: read, and completed by the shell."""

from __future__ import annotations

import asyncio

import click
from click.shell_completion import CompletionItem

from faas.cli.options import COMPLETION_SECONDS
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput, NotFound
from faas.oci.reference import Reference


def parse_reference(text: str, registry: str) -> Reference:
    """`repository[:tag][@digest]` in this registry. A host may be written: `registry`, or an upstream's, whose copies
    lie in a repository that begins with it. Raises InvalidInput."""
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        raise InvalidInput(f"{text}: {error}") from None
    repository = reference.repository if reference.is_at(registry) else reference.local
    return Reference("", repository, reference.tag, reference.digest)


def complete_references(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Repositories; behind a colon the tags of one. Whatever goes wrong, a shell gets no words and no message."""
    words = _written(ctx)
    repository, colon, tag = incomplete.rpartition(":")
    shown = f"{repository}:"
    if words and incomplete == ":":  # bash breaks words at colons: `hello:` comes as `hello` `:`
        repository, tag, shown = words[-1], "", ":"
    elif len(words) > 1 and words[-1] == ":":  # and `hello:v` as `hello` `:` `v`
        repository, colon, shown = words[-2], ":", ""
    try:
        names = asyncio.run(_names(ctx.ensure_object(Session), repository if colon else ""))
    except Exception:  # completion is silent: there is nobody to tell
        return []
    if not colon:
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [CompletionItem(shown + name) for name in names if name.startswith(tag)]


def _written(ctx: click.Context) -> list[str]:
    """The arguments before the one that is completed."""
    values = [ctx.params.get(p.name or "") for p in ctx.command.params if isinstance(p, click.Argument)]
    return [str(word) for value in values if value for word in (value if isinstance(value, tuple) else (value,))]


async def _names(session: Session, repository: str) -> list[str]:
    """Tags of `repository`; repositories where it is ""."""
    async with asyncio.timeout(COMPLETION_SECONDS), images_of(session) as images:
        try:
            return await images.tags(repository) if repository else await images.repositories()
        except NotFound:
            return []
