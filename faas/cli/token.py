"""`faas token create|ls|revoke`: credentials of others."""

from __future__ import annotations

import click

from faas.auth import ALL_NAMESPACES, Role
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, age, note, output_option, show
from faas.cli.session import Session

ROLES = [role.value for role in Role if role is not Role.ANONYMOUS]
COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda t: t["name"]),
    ("ROLE", lambda t: t.get("role")),
    ("NAMESPACE", lambda t: "all" if t.get("namespace") == ALL_NAMESPACES else t.get("namespace")),
    ("FUNCTIONS", lambda t: ", ".join(t.get("functions") or ()) or "all"),
    ("REPOSITORIES", lambda t: ", ".join(t.get("repositories") or ()) or "all"),
    ("AGE", lambda t: age(t.get("created_at"))),
)


@click.group()
def token() -> None:
    """Credentials: what a name may do, in which namespace."""


@token.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
@click.option("--namespace", default=ALL_NAMESPACES, show_default="all", help="Where it may do that.")
@click.option("--function", "functions", multiple=True, metavar="NAME", help="A caller's: only these functions.")
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    metavar="PATTERN",
    help="A viewer's or deployer's: images of these repositories only, such as 'team/*'.",
)
@pass_session
def token_create(
    session: Session, name: str, role: str, namespace: str, functions: tuple[str, ...], repositories: tuple[str, ...]
) -> None:
    """Make a token and print it. It is shown this once: the server keeps only its hash."""

    async def work() -> str:
        async with session.client() as client:
            return await client.create_token(name, role, namespace, functions=functions, repositories=repositories)

    made = session.run(work())
    note(f"{name} may {role}; keep the token, it is not shown again")
    click.echo(made)


@token.command("ls")
@output_option
@pass_session
def token_ls(session: Session, output: str) -> None:
    """List tokens by name; the tokens themselves are nowhere."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.tokens()

    show(output, session.run(fetch()), COLUMNS, lambda t: t["name"])


@token.command("revoke")
@click.argument("name")
@pass_session
def token_revoke(session: Session, name: str) -> None:
    """Make a token worthless at once."""

    async def work() -> None:
        async with session.client() as client:
            await client.revoke_token(name)

    session.run(work())
    click.echo(name)
