"""`faas user create|ls|show|set-role|rm`: people and machines, and what each is in which namespace."""

from __future__ import annotations

import click

from faas.auth import ALL_NAMESPACES
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, age, as_json, local_time, note, output_option, show
from faas.cli.session import Session
from faas.cli.token import ROLES, complete_users

NONE = "none"


def _roles(user: Json) -> str:
    roles = user.get("roles") or {}
    return ", ".join(f"{'all' if of == ALL_NAMESPACES else of}: {role}" for of, role in sorted(roles.items())) or NONE


COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda u: u["name"]),
    ("ROLES", _roles),
    ("BY", lambda u: u.get("created_by")),
    ("AGE", lambda u: age(u.get("created_at"))),
)


@click.group()
def user() -> None:
    """People and machines: their roles in namespaces. What they log in with: faas token."""


@user.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="What it is; else nothing yet: faas user set-role.")
@click.option("--namespace", "-n", default=ALL_NAMESPACES, show_default="all", help="Where it is that.")
@pass_session
def user_create(session: Session, name: str, role: str | None, namespace: str) -> None:
    """Make a user. It logs in with a token of its own: faas token create laptop --user NAME."""

    async def work() -> None:
        async with session.client() as client:
            await client.create_user(name, {namespace: role} if role else {})

    session.run(work())
    note(f"what it logs in with: faas token create NAME --user {name}")
    click.echo(name)


@user.command("ls")
@output_option
@pass_session
def user_ls(session: Session, output: str) -> None:
    """List users with their roles, in the namespaces that you administer."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.users()

    show(output, session.run(fetch()), COLUMNS, lambda u: u["name"])


@user.command("show")
@click.argument("name", shell_complete=complete_users)
@output_option
@pass_session
def user_show(session: Session, name: str, output: str) -> None:
    """Show a user's roles and tokens."""

    async def fetch() -> Json:
        async with session.client() as client:
            found = await client.user(name)
            return found | {"tokens": [one for one in await client.tokens() if one.get("user") == name]}

    found = session.run(fetch())
    if output == "json":
        click.echo(as_json(found))
    elif output == "name":
        click.echo(found["name"])
    else:
        click.echo(f"{found['name']}  {_roles(found)}")
        for one in found["tokens"]:
            used = local_time(one["last_used_at"]) if one.get("last_used_at") else "never"
            click.echo(f"  {one['name']}  {one['state']}, last used {used}")


@user.command("set-role")
@click.argument("name", shell_complete=complete_users)
@click.argument("role", type=click.Choice([*ROLES, NONE]))
@click.option("--namespace", "-n", default=ALL_NAMESPACES, show_default="all", help="Where it is that.")
@pass_session
def user_set_role(session: Session, name: str, role: str, namespace: str) -> None:
    """Say what a user is in a namespace; `none` takes its role away. It holds at once, for all of its tokens."""

    async def work() -> Json:
        async with session.client() as client:
            return await client.set_roles(name, {namespace: None if role == NONE else role})

    note(_roles(session.run(work())))
    click.echo(name)


@user.command("rm")
@click.argument("name", shell_complete=complete_users)
@pass_session
def user_rm(session: Session, name: str) -> None:
    """Remove a user; its tokens open nothing from then on."""

    async def work() -> None:
        async with session.client() as client:
            await client.remove_user(name)

    session.run(work())
    click.echo(name)
