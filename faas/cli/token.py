"""`faas token create|ls|rotate|revoke`: what opens, for oneself and for others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from faas.auth import ALL_NAMESPACES, Role
from faas.cli.options import completing, pass_session
from faas.cli.output import Column, Json, age, local_time, note, output_option, show
from faas.cli.session import Session

if TYPE_CHECKING:
    from faas.client import Client

ROLES = [role.value for role in Role if role is not Role.ANONYMOUS]


def _role(token: Json) -> str:
    """A user's token that narrows nothing says so: what it may is in `faas user show`."""
    return "its user's" if token.get("user") and token.get("role") == "admin" else str(token.get("role"))


COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda t: t["name"]),
    ("ROLE", _role),
    ("NAMESPACE", lambda t: "all" if t.get("namespace") == ALL_NAMESPACES else t.get("namespace")),
    ("FUNCTIONS", lambda t: ", ".join(t.get("functions") or ()) or "all"),
    ("REPOSITORIES", lambda t: ", ".join(t.get("repositories") or ()) or "all"),
    ("STATE", lambda t: t.get("state")),
    ("LAST USED", lambda t: local_time(t["last_used_at"]) if t.get("last_used_at") else "never"),
    ("EXPIRES", lambda t: local_time(t["expires_at"]) if t.get("expires_at") else "never"),
    ("AGE", lambda t: age(t.get("created_at"))),
)


async def _tokens(client: Client) -> list[Json]:
    return [{"name": one["name"]} for one in await client.tokens()]


complete_tokens = completing(_tokens)
complete_users = completing(lambda client: client.users())


@click.group()
def token() -> None:
    """What opens: of users, and of programs that stand alone."""


@token.command("create")
@click.argument("name")
@click.option("--user", default="", metavar="USER", shell_complete=complete_users, help="Whose it is: NAME@USER.")
@click.option("--mine", is_flag=True, help="Your own: --user with your name.")
@click.option("--role", type=click.Choice(ROLES), help="What it may do; a user's: no more than this.")
@click.option("--namespace", "-n", default=ALL_NAMESPACES, show_default="all", help="Where it may do that.")
@click.option("--function", "functions", multiple=True, metavar="PATTERN", help="Only these functions: hello, 'api-*'.")
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    metavar="PATTERN",
    help="A viewer's or deployer's: images of these repositories only, such as 'team/*'.",
)
@click.option("--expires", default="", metavar="TIME", help='When it ends by itself: "90d". Else never.')
@pass_session
def token_create(
    session: Session,
    name: str,
    user: str,
    mine: bool,
    role: str | None,
    namespace: str,
    functions: tuple[str, ...],
    repositories: tuple[str, ...],
    expires: str,
) -> None:
    """Make a token and print it. It is shown this once: the server keeps only its hash.

    Without --user and --mine it stands alone and needs a --role. A user's may do what its user may do at that time, and
    no more than is said here.
    """
    if mine and user:
        raise click.UsageError("--mine and --user are two ways to say whose it is; pass one")
    if not role and not user and not mine:
        raise click.UsageError("a token that stands alone needs a --role; --mine or --user makes a user's")
    wish = {
        "role": role,
        "namespace": namespace,
        "functions": list(functions),
        "repositories": list(repositories),
        "expires": expires,
    }

    async def work() -> Json:
        async with session.client() as client:
            whose = str((await client.whoami())["name"]) if mine else user
            return await client.create_token(name, user=whose, **wish)

    made = session.run(work())
    note(f"{made['name']}: keep the token, it is not shown again")
    click.echo(made["token"])


@token.command("ls")
@output_option
@pass_session
def token_ls(session: Session, output: str) -> None:
    """List your own tokens and those that you manage; what opens is nowhere."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.tokens()

    show(output, session.run(fetch()), COLUMNS, lambda t: t["name"])


@token.command("rotate")
@click.argument("name", shell_complete=complete_tokens)
@click.option("--grace", default="1h", show_default=True, metavar="TIME", help="How long the old one opens; 0s: not.")
@pass_session
def token_rotate(session: Session, name: str, grace: str) -> None:
    """Put a new token in the place of NAME and print it, this once; the old one opens until the grace ends."""

    async def work() -> Json:
        async with session.client() as client:
            return await client.rotate_token(name, grace)

    made = session.run(work())
    ends = made.get("previous_expires_at")
    note(f"the old one opens until {local_time(ends)}" if ends else "the old one opens nothing any more")
    click.echo(made["token"])


@token.command("revoke")
@click.argument("name", shell_complete=complete_tokens)
@pass_session
def token_revoke(session: Session, name: str) -> None:
    """Make a token worthless at once."""

    async def work() -> None:
        async with session.client() as client:
            await client.revoke_token(name)

    session.run(work())
    click.echo(name)
