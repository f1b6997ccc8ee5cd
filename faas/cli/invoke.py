"""`faas invoke`."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, BinaryIO

import click

from faas.cli.failures import FunctionFailed, visible
from faas.cli.options import function_argument, pass_session
from faas.cli.output import note
from faas.cli.session import Session
from faas.errors import FaasError, FunctionError, TimedOut

if TYPE_CHECKING:
    from faas.client import Answer, Client

TRACE_LINES = 30
LOOK_SECONDS, LOOK_MOST_SECONDS = 0.1, 2.0  # between two looks at one that is waited for


@click.command()
@function_argument
@click.option("-d", "--data", help="The event, as JSON.")
@click.option("--file", type=click.File("rb"), metavar="FILE", help="The event from FILE; - is standard input.")
@click.option("--async", "is_async", is_flag=True, help="Queue it and print its id instead of waiting.")
@click.option("--wait", is_flag=True, help="With --async: wait until it has ended, its retries included.")
@click.option("--dry-run", is_flag=True, help="Only check that it could be invoked.")
@click.option("--log", is_flag=True, help="Print the end of its log on stderr, with the REPORT line.")
@click.option("--qualifier", default="", metavar="Q", help="A revision (v7) or an alias; also NAME:Q.")
@pass_session
def invoke(
    session: Session,
    name: str,
    data: str | None,
    file: BinaryIO | None,
    is_async: bool,
    wait: bool,
    dry_run: bool,
    log: bool,
    qualifier: str,
) -> None:
    """Invoke a function and print its answer as it is. Without --data and --file the event is {}.

    Exit code 7: the function answered an error, which is on stderr.
    """
    if data is not None and file is not None:
        raise click.UsageError("--data and --file exclude each other")
    if wait and not is_async:
        raise click.UsageError("--wait goes with --async; without it the answer is waited for anyway")
    if is_async and (dry_run or (log and not wait)):
        raise click.UsageError("--async goes not with --dry-run, and with --log only where you --wait for its end")
    payload = file.read() if file is not None else (data if data is not None else "{}").encode()
    kind = "Event" if is_async else "DryRun" if dry_run else "RequestResponse"
    name, _, written = name.partition(":")

    async def work() -> None:
        async with session.client() as client:
            try:
                answer = await client.invoke(name, payload, qualifier=qualifier or written, kind=kind, log=log)
            except FunctionError as error:
                if isinstance(error, TimedOut):
                    raise
                raise _failed(f"{error.error_type}: {error.message}", error) from error.__cause__
            if is_async:
                click.echo(_id(answer.payload) or answer.request_id)
            if wait:
                await _waited(client, name, _id(answer.payload) or answer.request_id, log)
        if is_async:
            note(f"queued; see faas logs {name} -f" if not wait else f"{name} has ended well")
        elif dry_run:
            note(f"{name} could be invoked")
        else:
            _print(name, answer)

    session.run(work())


def _print(name: str, answer: Answer) -> None:
    """Raises FunctionFailed where it is an error."""
    if answer.log_tail:
        for line in answer.log_tail.rstrip("\n").splitlines():
            note(visible(line))
    if answer.error_type:
        for line in explained(answer.payload, answer.error_type):
            note(visible(line))
        hint = f"see faas logs {name} --request-id {answer.request_id}" if answer.request_id else ""
        raise FunctionFailed(f"{name} answered an error ({answer.error_type})", hint=hint)
    click.echo(answer.payload, nl=False)


async def _waited(client: Client, name: str, invocation: str, log: bool) -> None:
    """Until an asynchronous invocation has ended, its log on stderr. Raises FunctionFailed where it failed for good."""
    seen, pause = 0, LOOK_SECONDS
    while (told := await client.invocation(invocation))["status"] in ("pending", "running"):
        if (attempts := int(told.get("attempts") or 0)) > seen:
            seen = attempts
            note(f"try {attempts} failed; it is tried again")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LOOK_MOST_SECONDS)
    if log:
        async with aclosing(client.logs(name, request_id=invocation)) as records:
            async for record in records:
                note(visible(str(record.get("message", ""))))
    if told["status"] == "error":
        words = f"{told.get('error_type') or 'error'}: {told.get('error_message') or 'it said nothing'}"
        hint = f"see faas logs {name} --request-id {invocation}, and faas dlq ls"
        raise FunctionFailed(f"{name} failed for good, after {told.get('attempts')} tries: {words}", hint=hint)


def _failed(message: str, error: FaasError) -> FunctionFailed:
    return FunctionFailed(message, hint=error.hint)


def _id(payload: bytes) -> str:
    try:
        return str(json.loads(payload)["id"])
    except (ValueError, KeyError, TypeError):
        return ""


def explained(payload: bytes, error_type: str) -> list[str]:
    """Lambda's error object as a traceback reads; anything else as it is."""
    try:
        error = json.loads(payload)
        kind, message = str(error.get("errorType") or error_type), str(error.get("errorMessage") or "")
        trace = error.get("stackTrace") or error.get("trace") or []
    except (ValueError, AttributeError):
        return payload.decode(errors="replace").splitlines()[:TRACE_LINES]
    lines = [line for entry in trace for line in str(entry).rstrip("\n").splitlines()]
    return [*lines[-TRACE_LINES:], f"{kind}: {message}"]
