"""Arguments that several commands share: a function's name, completed by the shell from the server's list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from faas.cli.session import Session

if TYPE_CHECKING:
    from faas.client import Client

F = TypeVar("F", bound=Callable[..., Any])
COMPLETION_SECONDS = 1.0  # a shell that waits longer feels broken
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
UNSAID = object()  # an option that is not there, where None is what the word `none` means

pass_session = click.make_pass_decorator(Session, ensure=True)


def completing(list_of: Callable[[Client], Awaitable[list[dict[str, Any]]]]) -> Complete:
    """Completes the names of what `list_of` asks a server for. Whatever goes wrong, a shell gets no words and no
    message."""

    async def names(session: Session) -> list[str]:
        client = session.client()  # before the clock: what is imported for it takes its time, and is not the server's
        async with asyncio.timeout(COMPLETION_SECONDS), client:
            return [full_name(one) for one in await list_of(client)]

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = asyncio.run(names(ctx.ensure_object(Session)))
        except Exception:  # completion is silent: there is nobody to tell
            return []
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]

    return complete


def full_name(function: dict[str, Any]) -> str:
    """`name`, or `name.namespace` outside `default`."""
    namespace = function.get("namespace") or "default"
    name = str(function.get("function") or function.get("name") or "")  # a schedule has both: `name` is its own
    return name if namespace == "default" else f"{name}.{namespace}"


complete_names = completing(lambda client: client.functions())


def function_argument(command: F) -> F:
    """NAME: `name` or `name.namespace`, completed by the shell."""
    return click.argument("name", metavar="NAME", shell_complete=complete_names)(command)


def or_none(read: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], object]:
    """An option's callback: what `read` makes of its text, None of the word `none`, UNSAID where the option is not
    there. A ValueError of `read` says what the text "is"; it becomes click's usage error."""

    def callback(ctx: click.Context, param: click.Parameter, text: str | None) -> object:
        if text in (None, "none"):
            return UNSAID if text is None else None
        try:
            return read(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is {error}") from None

    return callback


def revision_number(text: str) -> int:
    """`v7` or `7` → 7. Raises click's usage error."""
    digits = text.removeprefix("v")
    if not digits.isdecimal() or int(digits) < 1:
        raise click.BadParameter(f"{text!r} is no revision: v7 or 7")
    return int(digits)
