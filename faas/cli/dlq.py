"""`faas dlq ls|show|retry|rm`: dead letters, the events that were given up."""

from __future__ import annotations

import base64
import binascii
import json

import click

from faas.cli.failures import visible
from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, age, as_json, at_terminal, local_time, note, output_option, show, size
from faas.cli.session import Session

COLUMNS: tuple[Column, ...] = (
    ("ID", lambda d: d["id"]),
    ("FUNCTION", full_name),
    ("ERROR", lambda d: d.get("error_type")),
    ("MESSAGE", lambda d: str(d.get("error_message") or "")[:60]),
    ("ATTEMPTS", lambda d: d.get("attempts")),
    ("SIZE", lambda d: size(float(d.get("size") or 0))),
    ("DIED", lambda d: age(d.get("died_at"))),
)


@click.group()
def dlq() -> None:
    """Dead letters: events that failed every attempt, or grew too old."""


@dlq.command("ls")
@click.option("--function", "function", default="", metavar="NAME", help="Only this function's.")
@output_option
@pass_session
def dlq_ls(session: Session, function: str, output: str) -> None:
    """List dead letters."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.dead_letters(function)

    show(output, session.run(fetch()), COLUMNS, lambda d: d["id"])


def payload(letter: Json) -> bytes:
    """The event of a dead letter; the API gives it as base64."""
    try:
        return base64.b64decode(str(letter.get("payload") or ""), validate=True)
    except (binascii.Error, ValueError):
        return str(letter["payload"]).encode()


@dlq.command("show")
@click.argument("letter")
@output_option
@pass_session
def dlq_show(session: Session, letter: str, output: str) -> None:
    """Show one dead letter: why it died on stderr, its event on stdout. `-o json` gives both."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.dead_letter(letter)

    found = session.run(fetch())
    event = payload(found)
    if output == "json":
        try:
            content = {"event": json.loads(event)}
        except ValueError:
            content = {"event_base64": base64.b64encode(event).decode()}
        click.echo(as_json({k: v for k, v in found.items() if k != "payload"} | content))
    elif output == "name":
        click.echo(found["id"])
    else:
        note(f"{full_name(found)}: {found.get('error_type')}: {visible(str(found.get('error_message') or ''))}")
        note(f"accepted {local_time(found.get('created_at'))}, given up {local_time(found.get('died_at'))}")
        click.echo(event, nl=not event.endswith(b"\n"))


@dlq.command("retry")
@click.argument("letters", nargs=-1, required=True, metavar="LETTER...")
@pass_session
def dlq_retry(session: Session, letters: tuple[str, ...]) -> None:
    """Queue dead letters again."""

    async def work() -> None:
        async with session.client() as client:
            for letter in letters:
                await client.retry_dead_letter(letter)
                click.echo(letter)

    session.run(work())


@dlq.command("rm")
@click.argument("letters", nargs=-1, required=True, metavar="LETTER...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def dlq_rm(session: Session, letters: tuple[str, ...], yes: bool) -> None:
    """Delete dead letters with their events, for good."""
    if not yes and at_terminal():
        click.confirm(f"delete {len(letters)} dead letter(s) for good?", abort=True, err=True)

    async def work() -> None:
        async with session.client() as client:
            for letter in letters:
                await client.delete_dead_letter(letter)
                click.echo(letter)

    session.run(work())
