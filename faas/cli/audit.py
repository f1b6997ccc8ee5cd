"""`faas audit ls|export|verify`: who changed what."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from faas.cli.logs import since_when
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, local_time, note, output_option, show
from faas.cli.session import Session
from faas.client import Client
from faas.errors import FaasError, InvalidInput

PAGE = 1000  # records of one answer
LOOK_SECONDS = 1.0  # between two looks, with --follow
BROKEN = 1
F = TypeVar("F", bound=Callable[..., Any])


def _who(record: Json) -> str:
    token = record.get("token")
    return f"{record['by'] or 'unknown'}{f' ({token})' if token else ''}"


COLUMNS: tuple[Column, ...] = (
    ("SEQ", lambda r: r["seq"]),
    ("TIME", lambda r: local_time(r["time"])),
    ("BY", _who),
    ("FROM", lambda r: r.get("address")),
    ("ACTION", lambda r: r["action"]),
    ("OBJECT", lambda r: r["object"]),
    ("OUTCOME", lambda r: r["outcome"] + (f" ×{r['count']}" if r.get("count", 1) > 1 else "")),
    ("REQUEST", lambda r: r.get("request_id")),
)


def filters(command: F) -> F:
    """Which records."""
    for option in (
        click.option("--namespace", "-n", default="", help="Only what was done in this namespace."),
        click.option("--object", "object_", default="", metavar="NAME", help="Only this: functions/hello, 'team/*'."),
        click.option("--action", default="", help="Only this: functions.put, 'tokens*'."),
        click.option("--by", default="", metavar="NAME", help="Only what this user or token did."),
        click.option("--until", metavar="WHEN", help="The same: records before it."),
        click.option("--since", metavar="WHEN", help="10m ago, or a time such as 2030-01-31T12:00."),
    ):
        command = option(command)
    return command


def _asked(since: str | None, until: str | None, **texts: str) -> dict[str, str]:
    now = time.time()
    times = {key: str(since_when(text, now)) for key, text in (("since", since), ("until", until)) if text}
    return times | {key: text for key, text in texts.items() if text}


@click.group()
def audit() -> None:
    """Who changed what, and who was refused."""


@audit.command("ls")
@filters
@click.option("-f", "--follow", is_flag=True, help="Go on as new records come, as lines of JSON; Ctrl-C ends it.")
@click.option("--limit", type=click.IntRange(1, PAGE), default=50, show_default=True, help="The newest so many.")
@output_option
@pass_session
def audit_ls(
    session: Session,
    since: str | None,
    until: str | None,
    by: str,
    action: str,
    object_: str,
    namespace: str,
    follow: bool,
    limit: int,
    output: str,
) -> None:
    """List the newest records, the oldest of them first."""
    asked = _asked(since, until, by=by, action=action, object=object_, namespace=namespace)

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.audit(**asked, order="newest", limit=str(limit))

    found = session.run(fetch())
    if not follow:
        show(output, found, COLUMNS, lambda r: r["seq"])
        return
    for record in found:
        click.echo(_line(record))
    session.run(_follow(session, asked, found[-1]["seq"] if found else 0))


async def _follow(session: Session, asked: dict[str, str], after: int) -> None:
    import asyncio

    async with session.client() as client:
        while True:
            async for record in _every(client, asked, after):
                click.echo(_line(record))
                after = record["seq"]
            await asyncio.sleep(LOOK_SECONDS)


async def _every(client: Client, asked: dict[str, str], after: int) -> AsyncGenerator[Json, None]:
    """All behind `after`, page by page."""
    while True:
        found = await client.audit(**asked, after=str(after), limit=str(PAGE))
        for record in found:
            yield record
        if len(found) < PAGE:
            return
        after = found[-1]["seq"]


def _line(record: Json) -> str:
    return json.dumps(record, ensure_ascii=False)


@audit.command("export")
@filters
@pass_session
def audit_export(
    session: Session, since: str | None, until: str | None, by: str, action: str, object_: str, namespace: str
) -> None:
    """Print all records as lines of JSON, the oldest first, each with the hash of the one before.

    Without filters they are a chain, that `faas audit verify FILE` checks anywhere.
    """
    asked = _asked(since, until, by=by, action=action, object=object_, namespace=namespace)

    async def work() -> None:
        async with session.client() as client:
            async for record in _every(client, asked, 0):
                click.echo(_line(record))

    session.run(work())


@audit.command("verify")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--head", default="", metavar="SEQ:HASH", help="What an earlier check printed: it must still be there.")
@pass_session
def audit_verify(session: Session, file: Path | None, head: str) -> None:
    """Check that nobody has changed the audit log or taken from it; or the same of an exported FILE.

    Prints the head, as SEQ:HASH. Keep it elsewhere: with it even a log that was written anew as a whole is found out.
    """
    if file is not None:
        click.echo(_verify_file(file, head))
        return

    async def work() -> Json:
        async with session.client() as client:
            return await client.verify_audit(head)

    told = session.run(work())
    if not told["ok"]:
        raise FaasError(f"the audit log is broken: {told['broken']}", hint="compare it with an export that you kept")
    note(f"{told['count']} records are as they were written")
    if cut := told.get("cut"):
        note(f"what came up to {cut['seq']} was cut off on {local_time(cut['at'])}, for the log's bound")
    newest = told.get("head")
    click.echo(f"{newest['seq']}:{newest['hash']}" if newest else "empty")


def _verify_file(file: Path, head: str) -> str:
    """The head. Raises InvalidInput, FaasError where the chain breaks."""
    from faas.audit import Check, Record

    check, seen = Check(), not head
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                written = json.loads(line)
                record = Record.read(written)
            except ValueError as error:
                raise InvalidInput(f"{file}, line {number}: {error}") from None
            if not check.add(record, str(written.get("hash"))):
                raise FaasError(f"{file} is broken: {check.broken}", hint="an export with filters is no chain")
            seen = seen or head == f"{check.seq}:{check.hash}"
    if not seen:
        raise FaasError(f"{file} is broken: {head.partition(':')[0]} is not the record that was noted")
    note(f"{check.count} records are as they were written")
    return f"{check.seq}:{check.hash}" if check.count else "empty"
