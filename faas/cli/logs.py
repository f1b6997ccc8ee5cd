"""`faas logs`."""

from __future__ import annotations

import contextlib
import json
import math
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
STREAMS = ("stdout", "stderr", "system")
UNIX = 1e8  # a bare number from here on is a moment, not so many seconds ago


def since_when(text: str, now: float) -> float:
    """`10m` ago, a date and time (ISO 8601, local time without a zone), or Unix seconds as `-o json` has them; in Unix
    seconds. Raises BadParameter."""
    with contextlib.suppress(ValueError):
        if UNIX <= (moment := float(text)) < math.inf:
            return moment
    with contextlib.suppress(ValueError):
        return now - parse_duration(text).total_seconds()
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a duration (10m) nor a time (2030-01-31T12:00)") from None


def line(record: Json, terminal: bool, long: bool = False) -> str:
    """`TIME MESSAGE`, with `long` `TIME STREAM INSTANCE REQUEST-ID MESSAGE`; on a terminal colours tell the streams
    apart, and foreign control characters are made visible."""
    message = str(record.get("message", "")).rstrip("\n")
    stamp = log_time(record.get("time"))
    if long:
        stamp += f" {record.get('stream', ''):<6} {record.get('instance') or '-'} {record.get('request_id') or '-'}"
    if not terminal:
        return f"{stamp} {message}"
    return f"{click.style(stamp, dim=True)} {click.style(visible(message), fg=_COLOURS.get(str(record.get('stream'))))}"


@click.command()
@function_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come; Ctrl-C ends it.")
@click.option("--since", metavar="WHEN", help="10m ago, or a time such as 2030-01-31T12:00.")
@click.option("--until", metavar="WHEN", help="The same: lines before it.")
@click.option("--filter", "contains", default="", metavar="TEXT", help="Only lines that contain TEXT.")
@click.option("--request-id", default="", metavar="ID", help="Only the lines of one invocation.")
@click.option("--instance", default="", metavar="ID", help="Only the lines of one instance; its id, or how it begins.")
@click.option("--stream", type=click.Choice(STREAMS), help="Only the lines of one stream.")
@click.option("--long", is_flag=True, help="With stream, instance and request id.")
@click.option("-n", "--lines", type=click.IntRange(1), help="At most so many lines.")
@output_option
@pass_session
def logs(
    session: Session,
    name: str,
    follow: bool,
    since: str | None,
    until: str | None,
    contains: str,
    request_id: str,
    instance: str,
    stream: str | None,
    long: bool,
    lines: int | None,
    output: str,
) -> None:
    """Print what a function wrote, one line per record.

    `-o json` gives one JSON object per line, `-o name` the request ids.
    """
    now = time.time()
    start, end = (None if when is None else since_when(when, now) for when in (since, until))
    if follow and end is not None:
        raise click.UsageError("--follow goes on without an end: leave --until out")
    terminal = sys.stdout.isatty()

    async def work() -> None:
        seen = ""
        async with session.client() as client:
            records = client.logs(
                name,
                since=start,
                until=end,
                filter=contains,
                request_id=request_id,
                instance=instance,
                stream=stream or "",
                follow=follow,
                limit=lines,
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
                        text = line(record, terminal, long)
                    click.echo(text)

    session.run(work())
