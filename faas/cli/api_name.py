"""An API's name on the command line, completed by the shell from the server's list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from faas.cli.options import COMPLETION_SECONDS, full_name
from faas.cli.output import Json
from faas.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])


def complete_apis(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names that the server knows. Whatever goes wrong, a shell gets no words and no message."""
    try:
        names = asyncio.run(_names(ctx.ensure_object(Session)))
    except Exception:  # completion is silent: there is nobody to tell
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


async def _names(session: Session) -> list[str]:
    async with asyncio.timeout(COMPLETION_SECONDS), session.client() as client:
        return [full_name(api) for api in await client.apis()]


def api_argument(command: F) -> F:
    """NAME: `name` or `name.namespace`."""
    return click.argument("name", metavar="NAME", shell_complete=complete_apis)(command)


def api_of(route: Json) -> str:
    """The API of a route: `name`, or `name.namespace` outside `default`."""
    return full_name({"name": route["api"], "namespace": route["namespace"]})
