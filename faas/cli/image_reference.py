"""Names of images, repositories and patterns on the command line: read, looked up, and completed by the shell."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import click
from click.shell_completion import CompletionItem

from faas.cli.options import COMPLETION_SECONDS
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput, NotFound
from faas.oci.client import RegistryClient
from faas.oci.reference import Reference

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def parse_reference(text: str, registry: str) -> Reference:
    """`repository[:tag][@digest]` in this registry. A host may be written: `registry`, or an upstream's, whose copies
    lie in a repository that begins with it. Raises InvalidInput."""
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        raise InvalidInput(f"{text}: {error}") from None
    repository = reference.repository if reference.is_at(registry) else reference.local
    return Reference("", repository, reference.tag, reference.digest)


def parse_image(text: str, registry: str) -> Reference:
    """The same of what names one image: a tag or a digest is written. Raises InvalidInput."""
    reference = parse_reference(text, registry)
    if not _names_image(text, reference):
        raise InvalidInput(f"{text} names no image", hint=f"{text}:TAG or {text}@DIGEST; see faas image ls {text}")
    return reference


def parse_repository(text: str, registry: str) -> str:
    """The same of what names no image: neither is written. Raises InvalidInput."""
    reference = parse_reference(text, registry)
    if _names_image(text, reference):
        raise InvalidInput(f"{text} names an image, not a repository", hint=f"faas image describe {text}")
    return reference.repository


def _names_image(text: str, reference: Reference) -> bool:
    return reference.digest is not None or text.endswith(f":{reference.tag}")


@contextmanager
def looking_up(reference: Reference) -> Iterator[None]:
    """Where the registry does not have what the block asks for, it is the image that is not there. Raises NotFound."""
    try:
        yield
    except NotFound:
        repository = reference.repository
        raise NotFound(f"there is no image {reference}", hint=f"see faas image ls {repository}") from None


def completing(names: Callable[[RegistryClient], Awaitable[list[str]]]) -> Completer:
    """Completes what `names` tells, silently as `complete_references`."""

    async def told(session: Session) -> list[str]:
        async with asyncio.timeout(COMPLETION_SECONDS), images_of(session) as images:
            return await names(images)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = asyncio.run(told(ctx.ensure_object(Session)))
        except Exception:  # completion is silent: there is nobody to tell
            return []
        return [CompletionItem(name) for name in sorted(set(found)) if name.startswith(incomplete)]

    return complete


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
