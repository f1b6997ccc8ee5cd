"""`faas route ls|add|rm`."""

from __future__ import annotations

import tomllib

import click

from faas.cli.api_name import api_of, complete_apis
from faas.cli.failures import visible
from faas.cli.options import complete_names, pass_session
from faas.cli.output import Column, Json, note, output_option, show
from faas.cli.session import Session
from faas.errors import Conflict, NotFound

COLUMNS: tuple[Column, ...] = (
    ("ID", lambda r: r["id"]),
    ("METHODS", lambda r: ",".join(r["methods"])),
    ("PATH", lambda r: r["base_path"] + r["path"] if r["path"].startswith("/") else r["path"]),
    ("HOSTS", lambda r: ", ".join(r["hosts"])),
    ("FUNCTION", lambda r: r["function"]),
    ("API", api_of),
    ("FROM", lambda r: "faas.toml" if r["owner"] == "function" else "api"),
)


@click.group()
def route() -> None:
    """Routes: method and path that lead to a function. Those of a function itself are written as [[route]] in
    faas.toml, and move with its versions.
    """


@route.command("ls")
@click.option("--namespace", default="", help="Only this namespace's routes.")
@click.option("--api", "api", default="", shell_complete=complete_apis, help="Only this API's routes.")
@output_option
@pass_session
def route_ls(session: Session, namespace: str, api: str, output: str) -> None:
    """List routes of functions and of APIs."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.api_routes(api) if api else await client.routes(namespace)

    show(output, session.run(fetch()), COLUMNS, lambda r: r["id"])


@route.command("add")
@click.argument("route_text", metavar="ROUTE")
@click.argument("function", metavar="FUNCTION", shell_complete=complete_names)
@click.option("--api", "api", default="default", show_default=True, shell_complete=complete_apis, help="To which API.")
@click.option("--rewrite", help="The path that the function sees, such as /internal/{id}.")
@click.option("--timeout", help="Until the answer is there, such as 2s; then 504.")
@click.option("--body-limit", type=int, help="Bytes that a request may have; beyond it 413.")
@click.option("--public/--private", default=None, help="Whether anyone may call; else as the function says.")
@click.option("--with", "more", metavar="TABLE", help="Further keys of [[route]], as a TOML table.")
@pass_session
def route_add(
    session: Session, route_text: str, function: str, api: str, rewrite: str | None, timeout: str | None,
    body_limit: int | None, public: bool | None, more: str | None,
) -> None:  # fmt: skip
    """Add a route to an API and print its id.

    ROUTE is `GET /users/{id}`, `GET,POST /users`, `/files/{path+}` for any method, or `$default`. FUNCTION is NAME,
    NAME:ALIAS or NAME:v7, of the API's namespace.
    """
    methods, _, path = route_text.strip().rpartition(" ")
    wish: Json = {"path": path, "function": function}
    if methods:
        wish["methods"] = [method.strip() for method in methods.split(",")]
    given = {"rewrite": rewrite, "timeout": timeout, "body_limit": body_limit, "public": public}
    wish |= {key: value for key, value in given.items() if value is not None}
    wish |= _table(more) if more else {}

    async def work() -> Json:
        async with session.client() as client:
            return await client.add_route(api, wish)

    found = session.run(work())
    for warning in found.get("warnings", ()):
        note(visible(f"warning: {warning}"))
    click.echo(found["id"])


def _table(text: str) -> Json:
    try:
        row = tomllib.loads(f"row = {text}")["row"]
    except tomllib.TOMLDecodeError:
        row = None
    if not isinstance(row, dict):
        raise click.UsageError(f'--with must be a TOML table such as {{ payload = "1.0" }}, not {text!r}')
    return row


@route.command("rm")
@click.argument("route_id", metavar="ID")
@click.option("--api", "api", default="", shell_complete=complete_apis, help="Of which API, where several have it.")
@pass_session
def route_rm(session: Session, route_id: str, api: str) -> None:
    """Delete a route of an API, by its id. A function's own routes are in its faas.toml."""

    async def work() -> None:
        async with session.client() as client:
            found = [r for r in await client.routes() if r["id"] == route_id and (not api or api_of(r) == api)]
            if not found:
                raise NotFound(f"there is no route {route_id}", hint="see faas route ls")
            own = [r for r in found if r["owner"] == "api"]
            if not own:
                raise Conflict(
                    f"the route {route_id} is {found[0]['function']}'s own",
                    hint="take its [[route]] out of faas.toml and push",
                )
            if len(own) > 1:
                raise Conflict(f"several APIs have a route {route_id}", hint="say which: --api")
            await client.delete_route(api_of(own[0]), route_id)

    session.run(work())
    click.echo(route_id)
