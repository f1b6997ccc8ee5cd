"""`faas maintenance ls|on|off`: functions, or all of them, that are not served for a while."""

from __future__ import annotations

from typing import Any

import click

from faas.cli.options import complete_names, full_name, pass_session
from faas.cli.output import Column, Json, age, note, output_option, show
from faas.cli.session import Session

EVERYTHING = "*"


def _named(notice: Json) -> str:
    return EVERYTHING if notice["all"] else full_name(notice)


COLUMNS: tuple[Column, ...] = (
    ("OF", lambda n: "everything" if n["all"] else full_name(n)),
    ("SINCE", lambda n: age(n["since"])),
    ("RETRY AFTER", lambda n: f"{n['retry_after']} s"),
    ("BY", lambda n: n["by"]),
    ("MESSAGE", lambda n: n["message"]),
)
_FUNCTION = click.option(
    "--function", default="", metavar="NAME", shell_complete=complete_names, help="Of this function."
)
_ALL = click.option("--all", "everything", is_flag=True, help="Of everything.")


def _which(function: str, everything: bool) -> str:
    if bool(function) == everything:
        raise click.UsageError("say --function NAME, or --all")
    return EVERYTHING if everything else function


@click.group()
def maintenance() -> None:
    """Answer requests with 503 for a while: those to a function, or all."""


@maintenance.command("ls")
@output_option
@pass_session
def maintenance_ls(session: Session, output: str) -> None:
    """List what is not served now."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.maintenance()

    show(output, session.run(fetch()), COLUMNS, _named)


@maintenance.command("on")
@_FUNCTION
@_ALL
@click.option("--message", default="", help="What callers are told; one line.")
@click.option(
    "--retry-after",
    type=click.IntRange(1, 86_400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="When they should try again.",
)
@pass_session
def maintenance_on(session: Session, function: str, everything: bool, message: str, retry_after: int) -> None:
    """Begin, or say other words. Schedules and queued events go on.

    A request with an administrator's token in X-Faas-Bypass comes through.
    """
    which = _which(function, everything)
    wish: dict[str, Any] = {"retry_after": retry_after, **({"message": message} if message else {})}

    async def work() -> Json:
        async with session.client() as client:
            return await client.begin_maintenance(which, wish)

    note(f"callers are told: {session.run(work())['message']}")
    click.echo(which)


@maintenance.command("off")
@_FUNCTION
@_ALL
@pass_session
def maintenance_off(session: Session, function: str, everything: bool) -> None:
    """End it: what was begun with --function ends so, and what was begun with --all."""
    which = _which(function, everything)

    async def work() -> None:
        async with session.client() as client:
            await client.end_maintenance(which)

    session.run(work())
    click.echo(which)
