"""`faas websocket ls|put|rm|connections|send|close`: WebSocket APIs, and who is connected."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

import click

from faas.cli.options import completing, full_name, pass_session
from faas.cli.output import Column, Json, age, note, output_option, show
from faas.cli.session import Session

COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("URL", lambda a: a["url"]),
    ("ROUTES", lambda a: ", ".join(f"{key}={route['function']}" for key, route in a["routes"].items())),
    ("PUBLIC", lambda a: a["public"]),
    ("OPEN", lambda a: f"{a['open']} of {a['connections']}"),
)
CONNECTIONS: tuple[Column, ...] = (
    ("ID", lambda c: c["id"]),
    ("FROM", lambda c: c["source_ip"]),
    ("AGE", lambda c: age(c["connected_at"])),
    ("LAST ACTIVE", lambda c: age(c["last_active_at"])),
    ("RECEIVED", lambda c: c["received"]),
    ("SENT", lambda c: c["sent"]),
)
RULES = ("origins", "idle", "lifetime", "max_message", "max_frame")


complete_websockets = completing(lambda client: client.websockets())


@click.group()
def websocket() -> None:
    """WebSocket APIs: each message of a connection invokes a function."""


@websocket.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def websocket_ls(session: Session, namespace: str, output: str) -> None:
    """List WebSocket APIs with their routes."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.websockets(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@websocket.command("put")
@click.argument("name", shell_complete=complete_websockets)
@click.option("--file", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="All of it: TOML or JSON.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="KEY=FUNCTION[,response]",
    help="Messages with this key go to FUNCTION; with `response` its answer goes back. May be repeated.",
)
@click.option("--public/--private", default=None, help="Whether anyone may connect, or a token is needed.")
@click.option("--path", help="Below /ws/; else /ws/NAME.")
@click.option("--stage", help="What events and the path of @connections call it.")
@click.option("--selection", help="Where a message's key is.  [default: $request.body.action]")
@click.option("--connections", type=int, help="Most at once.  [default: 1000]")
@click.option("--in-flight", type=int, help="Messages of one connection that run at once.  [default: 1, in order]")
@click.option("--origins", multiple=True, metavar="ORIGIN", help="Only pages of this one; may be repeated.")
@click.option("--idle", metavar="TIME", help="How long nothing may come.  [default: 10m]")
@click.option("--lifetime", metavar="TIME", help="How long a connection lasts at most.  [default: 2h]")
@click.option("--max-message", type=int, help="Bytes of a message.  [default: 131072]")
@click.option("--max-frame", type=int, help="Bytes of a frame.  [default: 32768]")
@pass_session
def websocket_put(session: Session, /, name: str, file: Path | None, routes: tuple[str, ...], **given: Any) -> None:
    """Make or replace the WebSocket API NAME, or NAME.NAMESPACE outside `default`; prints its URL."""
    definition = _read(file) if file is not None else {}
    if routes:
        definition["routes"] = dict(_route(text) for text in routes)
    wishes = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    said = {key: value for key, value in wishes.items() if value not in (None, [])}
    if limits := {key: said.pop(key) for key in RULES if key in said}:
        rules = definition.setdefault("rules", {})
        rules["websocket"] = {**rules.get("websocket", {}), **limits}

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_websocket(name, {**definition, **said})

    made = session.run(work())
    note(f"{len(made['routes'])} routes" + ("" if made["public"] else "; clients need a token that may invoke"))
    click.echo(made["url"])


def _read(file: Path) -> dict[str, Any]:
    text = file.read_text()
    try:
        value = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{file} holds no object")
    return value


def _route(text: str) -> tuple[str, dict[str, Any]]:
    """From behind: a key may have = in it, a function may not."""
    key, equals, function = text.rpartition("=")
    name, comma, word = function.partition(",")
    if not equals or (comma and word != "response"):
        raise click.UsageError(f"--route must be KEY=FUNCTION or KEY=FUNCTION,response, not {text!r}")
    return key, {"function": name, "response": bool(comma)}


@websocket.command("rm")
@click.argument("name", shell_complete=complete_websockets)
@pass_session
def websocket_rm(session: Session, name: str) -> None:
    """Delete the WebSocket API NAME and close its connections."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_websocket(name)

    session.run(work())
    click.echo(name)


@websocket.command("connections")
@click.argument("name", shell_complete=complete_websockets)
@output_option
@pass_session
def websocket_connections(session: Session, name: str, output: str) -> None:
    """List who is connected to NAME, the first 1,000."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.websocket_connections(name)

    show(output, session.run(fetch()), CONNECTIONS, lambda connection: connection["id"])


@websocket.command("send")
@click.argument("connection")
@click.argument("message", required=False)
@pass_session
def websocket_send(session: Session, connection: str, message: str | None) -> None:
    """Send MESSAGE, or what comes on standard input, to a connection."""
    source: BinaryIO = sys.stdin.buffer
    payload = source.read() if message is None else message.encode()

    async def work() -> None:
        async with session.client() as client:
            await client.send_to_connection(connection, payload)

    session.run(work())
    click.echo(connection)


@websocket.command("close")
@click.argument("connection")
@pass_session
def websocket_close(session: Session, connection: str) -> None:
    """Close a connection."""

    async def work() -> None:
        async with session.client() as client:
            await client.close_connection(connection)

    session.run(work())
    click.echo(connection)
