"""`faas trigger ls`."""

from __future__ import annotations

import click

from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, output_option, show
from faas.cli.session import Session

COLUMNS: tuple[Column, ...] = (
    ("FUNCTION", full_name),
    ("FOLDER", lambda t: t.get("watch")),
    ("PATTERN", lambda t: t.get("pattern")),
    ("PROBLEM", lambda t: t.get("problem")),
)


@click.group()
def trigger() -> None:
    """Watched folders, written as [[trigger]] in faas.toml."""


@trigger.command("ls")
@click.option("--namespace", default="", help="Only this namespace's triggers.")
@output_option
@pass_session
def trigger_ls(session: Session, namespace: str, output: str) -> None:
    """List watched folders and the functions that get their files."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.triggers(namespace)

    show(output, session.run(fetch()), COLUMNS, lambda t: f"{full_name(t)}:{t.get('watch')}")
