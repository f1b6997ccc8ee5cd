"""`faas whoami`."""

from __future__ import annotations

import click

from faas.auth import ALL_NAMESPACES
from faas.cli.options import pass_session
from faas.cli.output import Json, as_json, local_time, output_option
from faas.cli.session import Session


@click.command()
@output_option
@pass_session
def whoami(session: Session, output: str) -> None:
    """Show who you are on the server, by which token, and what you may where."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.whoami()

    told = session.run(fetch())
    if output == "json":
        click.echo(as_json(told))
    elif output == "name":
        click.echo(told["name"])
    else:
        click.echo("\n".join(_lines(told, session)))


def _lines(told: Json, session: Session) -> list[str]:
    lines = [told["name"] + (f" by the token {told['token']}" if told.get("token") else "")]
    for namespace, role in sorted(told["roles"].items()):
        lines.append(f"  {role} in {'all namespaces' if namespace == ALL_NAMESPACES else namespace}")
    narrowed = told["narrowed"]
    if told["is_user"] and narrowed["role"] != "admin":
        lines.append(f"  no more than a {narrowed['role']}")
    if narrowed["namespace"] != ALL_NAMESPACES:
        lines.append(f"  only in {narrowed['namespace']}")
    kinds = ("functions", "repositories")
    lines += [f"  only the {what} {', '.join(narrowed[what])}" for what in kinds if narrowed[what]]
    if told.get("expires_at"):
        lines.append(f"  until {local_time(told['expires_at'])}")
    return [*lines, f"at {session.target.url}"]
