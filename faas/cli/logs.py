"""`faas logs`."""

from __future__ import annotations

import json
import sys
import time
from contextlib import aclosing
from datetime import datetime

import click

from faas.checks import parse_duration
from faas.cli.failures import visible
from faas.cli.options import function_argument, pass_session
from faas.cli.output import Json, log_time, output_option
from faas.cli.session import Session

_COLOURS = {"stderr": "yellow", "system": "cyan"}


def since_when(text: str, now: float) -> float:
    """`10m` ago, or a date and time (ISO 8601, local time without a zone), as Unix seconds. Raises BadParameter."""
    try:
        return now - parse_duration(text).total_seconds()
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a duration (10m) nor a time (2030-01-31T12:00)") from None


def line(record: Json, terminal: bool) -> str:
    """`TIME MESSAGE`; on a terminal colours tell the streams apart, and foreign control characters are made visible."""
    message = str(record.get("message", "")).rstrip("\n")
    stamp = log_time(record.get("time"))
    if not terminal:
        return f"{stamp} {message}"
    return f"{click.style(stamp, dim=True)} {click.style(visible(message), fg=_COLOURS.get(str(record.get('stream'))))}"


@click.command()
@function_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come; Ctrl-C ends it.")
@click.option("--since", metavar="WHEN", help="10m ago, or a time such as 2030-01-31T12:00.")
@click.option("--filter", "contains", default="", metavar="TEXT", help="Only lines that contain TEXT.")
@click.option("--request-id", default="", metavar="ID", help="Only the lines of one invocation.")
@click.option("-n", "--lines", type=click.IntRange(1), help="At most so many lines.")
@output_option
@pass_session
def logs(
    session: Session,
    name: str,
    follow: bool,
    since: str | None,
    contains: str,
    request_id: str,
    lines: int | None,
    output: str,
) -> None:
    """Print what a function wrote, one line per record.

    `-o json` gives one JSON object per line, `-o name` the request ids.
    """
    start = None if since is None else since_when(since, time.time())
    terminal = sys.stdout.isatty()

    async def work() -> None:
        seen = ""
        async with session.client() as client:
            records = client.logs(
                name, since=start, contains=contains, request_id=request_id, follow=follow, limit=lines
            )
            async with aclosing(records):
                async for record in records:
                    if output == "json":
                        text = json.dumps(record, ensure_ascii=False)
                    elif output == "name":
                        if (current := str(record.get("request_id") or "")) in ("", seen):
                            continue
                        text = seen = current
                    else:
                        text = line(record, terminal)
                    click.echo(text)

    session.run(work())
