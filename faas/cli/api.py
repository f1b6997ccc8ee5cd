"""`faas api ls|describe|put|rm|import|export`."""

from __future__ import annotations

from typing import Any, TextIO

import click

from faas.cli.api_name import api_argument
from faas.cli.documents import document_in
from faas.cli.failures import visible
from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, as_json, note, output_option, show
from faas.cli.session import Session
from faas.errors import NotFound

COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("HOSTS", lambda a: ", ".join(a["hosts"])),
    ("BASE PATH", lambda a: a["base_path"]),
    ("STAGES", lambda a: ", ".join(a["stages"])),
    ("ROUTES", lambda a: a["route_count"]),
    ("URL", lambda a: a["urls"][0]),
)
ROUTES: tuple[Column, ...] = (
    ("ID", lambda r: r["id"]),
    ("METHODS", lambda r: ",".join(r.get("methods", ["ANY"]))),
    ("PATH", lambda r: r["path"]),
    ("FUNCTION", lambda r: r["function"]),
)
KEPT = ("hosts", "base_path", "stages")


@click.group()
def api() -> None:
    """APIs: hosts, base paths and stages in front of functions, as on API Gateway. The API `default` is always
    there: functions' own [[route]]s are in it.
    """


@api.command("ls")
@click.option("--namespace", default="", help="Only this namespace's APIs.")
@output_option
@pass_session
def api_ls(session: Session, namespace: str, output: str) -> None:
    """List APIs."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.apis(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@api.command("describe")
@api_argument
@output_option
@pass_session
def api_describe(session: Session, name: str, output: str) -> None:
    """Show an API, its stages, URLs and routes."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.api(name)

    found = session.run(fetch())
    if output == "json":
        click.echo(as_json(found))
        return
    if output == "table":
        for title, value in (("Hosts", ", ".join(found["hosts"])), ("Base path", found["base_path"])):
            click.echo(f"{title + ':':<11}{visible(value) or '-'}")
        for stage, details in found["stages"].items():
            variables = " ".join(f"{key}={value}" for key, value in details["variables"].items())
            click.echo(visible(f"Stage:     {stage} {variables}").rstrip())
        for url in found["urls"]:
            click.echo(visible(f"URL:       {url}"))
    show(output, found["routes"], ROUTES, lambda r: r["id"])


@api.command("put")
@api_argument
@click.option("--host", "hosts", multiple=True, help="A host name, or *.example.com; may be repeated.")
@click.option("--base-path", help='Where it begins, such as /shop; "" for the root of its hosts.')
@click.option(
    "--stage", "stages", multiple=True, metavar="NAME[:VAR=VALUE,…]",
    help="A stage with its variables; may be repeated; replaces those that it has.",
)  # fmt: skip
@click.option("--file", type=click.File(), help="A whole API as JSON (what describe -o json prints), - for stdin.")
@pass_session
def api_put(
    session: Session, name: str, hosts: tuple[str, ...], base_path: str | None, stages: tuple[str, ...],
    file: TextIO | None,
) -> None:  # fmt: skip
    """Make an API, or change it: what is not given stays as it is. Prints its URLs."""
    wish = _given(hosts, base_path, stages)

    async def work() -> Json:
        async with session.client() as client:
            if file is not None:
                written = document_in(file)
                kept = {key: value for key, value in written.items() if key in (*KEPT, "routes")}
                return await client.put_api(name, _without_ids({**kept, **wish}))
            try:
                known = await client.api(name)
            except NotFound:
                known = {}
            kept = {key: known[key] for key in (*KEPT, "routes") if key in known}
            return await client.put_api(name, _without_ids({**kept, **wish}))

    _told(session.run(work()))


def _given(hosts: tuple[str, ...], base_path: str | None, stages: tuple[str, ...]) -> dict[str, Any]:
    wish: dict[str, Any] = {}
    if hosts:
        wish["hosts"] = list(hosts)
    if base_path is not None:
        wish["base_path"] = base_path
    if stages:
        wish["stages"] = dict(_stage(text) for text in stages)
    return wish


def _stage(text: str) -> tuple[str, Json]:
    name, _, rest = text.partition(":")
    variables = {}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--stage must be NAME[:VAR=VALUE,…], not {text!r}")
        variables[key] = value
    return name, {"variables": variables}


def _without_ids(wish: Json) -> Json:
    routes = [{key: value for key, value in route.items() if key != "id"} for route in wish.get("routes", ())]
    return {**wish, "routes": routes}


def _told(found: Json) -> None:
    """Warnings to people, URLs to scripts."""
    for warning in found.get("warnings", ()):
        note(visible(f"warning: {warning}"))
    for url in found["urls"]:
        click.echo(visible(url))


@api.command("rm")
@api_argument
@pass_session
def api_rm(session: Session, name: str) -> None:
    """Delete an API with its routes. Functions stay, and so do their own routes."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_api(name)

    session.run(work())
    click.echo(name)


@api.command("export")
@api_argument
@pass_session
def api_export(session: Session, name: str) -> None:
    """Print an API's routes as an OpenAPI 3.1 document."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.api_document(name)

    click.echo(as_json(session.run(fetch())))


@api.command("import")
@api_argument
@click.argument("file", type=click.File())
@click.option("--host", "hosts", multiple=True, help="A host name; may be repeated; replaces what it has.")
@click.option("--base-path", help="Where it begins, such as /shop.")
@pass_session
def api_import(session: Session, name: str, file: TextIO, hosts: tuple[str, ...], base_path: str | None) -> None:
    """Make an API's routes those of an OpenAPI 3.0 or 3.1 document in JSON or YAML. Prints its URLs.

    An operation says where it leads: x-faas-function = NAME[:ALIAS], or API Gateway's own
    x-amazon-apigateway-integration with the function's name in its uri.
    """
    document = document_in(file)
    if hosts or base_path is not None:
        document = {**document, "x-faas-api": {**document.get("x-faas-api", {}), **_given(hosts, base_path, ())}}

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_api_document(name, document)

    _told(session.run(work()))
