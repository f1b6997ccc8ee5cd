"""`faas versions`, `rollback`, `alias ls|set|rm`; `alias weight` is `faas.cli.canary`'s."""

from __future__ import annotations

import click

from faas.cli.canary import AliasGroup, described, weight
from faas.cli.options import function_argument, pass_session, revision_number
from faas.cli.output import Column, Json, age, note, output_option, show
from faas.cli.session import Session

COLUMNS: tuple[Column, ...] = (
    ("REVISION", lambda r: f"v{r['number']}"),
    ("ALIASES", lambda r: ", ".join(r.get("aliases") or ())),
    ("INTERFACE", lambda r: r.get("interface")),
    ("IMAGE", lambda r: r.get("image")),
    ("BY", lambda r: r.get("created_by")),
    ("AGE", lambda r: age(r.get("created_at"))),
)


@click.command()
@function_argument
@output_option
@pass_session
def versions(session: Session, name: str, output: str) -> None:
    """List a function's revisions, the newest first."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.revisions(name)

    revisions = sorted(session.run(fetch()), key=lambda r: -int(r["number"]))
    show(output, revisions, COLUMNS, lambda r: f"v{r['number']}")


@click.command()
@function_argument
@click.argument("to", required=False, metavar="[REVISION]")
@pass_session
def rollback(session: Session, name: str, to: str | None) -> None:
    """Move `live` back to REVISION (v7 or 7), or to the revision before the current one."""
    number = None if to is None else revision_number(to)

    async def work() -> Json:
        async with session.client() as client:
            return await client.rollback(name, number)

    function = session.run(work())
    note(f"{name} answers with this revision now")
    click.echo(f"v{function['revision']}")


@click.group(cls=AliasGroup)
def alias() -> None:
    """Names for revisions. A call of NAME:ALIAS reaches the revision; NAME alone means the alias `live`.

    `faas alias NAME ALIAS --weight v7=10` gives a second revision a share of the calls.
    """


alias.add_command(weight)


@alias.command("ls")
@function_argument
@output_option
@pass_session
def alias_ls(session: Session, name: str, output: str) -> None:
    """List a function's aliases."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.function(name)

    function = session.run(fetch())
    aliases, canaries = function.get("aliases") or {}, function.get("canaries") or {}
    rows = [{"alias": key, "revision": n, **canaries.get(key, {})} for key, n in sorted(aliases.items())]
    columns: tuple[Column, ...] = (
        ("ALIAS", lambda a: a["alias"]),
        ("REVISION", lambda a: f"v{a['revision']}"),
        ("CANARY", lambda a: described(a) if a.get("weights") else ""),
    )
    show(output, rows, columns, lambda a: a["alias"])


@alias.command("set")
@function_argument
@click.argument("alias_name", metavar="ALIAS")
@click.argument("revision")
@pass_session
def alias_set(session: Session, name: str, alias_name: str, revision: str) -> None:
    """Point ALIAS at REVISION (v7 or 7)."""
    number = revision_number(revision)

    async def work() -> None:
        async with session.client() as client:
            await client.set_alias(name, alias_name, number)

    session.run(work())
    note(f"{alias_name} of {name} is v{number}")
    click.echo(f"{name}:{alias_name}")


@alias.command("rm")
@function_argument
@click.argument("alias_name", metavar="ALIAS")
@pass_session
def alias_rm(session: Session, name: str, alias_name: str) -> None:
    """Remove ALIAS; the revision stays."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_alias(name, alias_name)

    session.run(work())
    click.echo(f"{name}:{alias_name}")
