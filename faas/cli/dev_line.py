"""What `faas dev` writes on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import click

from faas.cli.failures import visible
from faas.cli.output import Json, moment, note
from faas.errors import FaasError, InitFailed

ID_DIGITS = 8  # of a request id: enough to tell a terminal's calls apart
_COLOURS = {"stderr": "yellow", "system": "cyan"}
_REPORT = re.compile(r"(REPORT) RequestId: \S+\s*")


def line(record: Json, terminal: bool) -> str:
    """`TIME REQUEST MESSAGE`; "" for what says only that an invocation began or ended."""
    message, request = str(record.get("message", "")).rstrip("\n"), str(record.get("request_id") or "")
    stream = str(record.get("stream"))
    if stream == "system":
        if message.startswith(("START ", "END ")):
            return ""
        message = _REPORT.sub(r"\1 ", message).replace("\t", "  ").rstrip()
    stamp = datetime.fromtimestamp(moment(record.get("time")) or 0.0).strftime("%H:%M:%S.%f")[:-3]
    head = f"{stamp} {request[:ID_DIGITS] or '-':<{ID_DIGITS}}"
    if not terminal:
        return f"{head} {message}"
    return f"{click.style(head, dim=True)} {click.style(visible(message), fg=_COLOURS.get(stream))}"


@contextmanager
def refused() -> Iterator[None]:
    """What could not be deployed is told, and the command goes on: the next save may be better."""
    try:
        yield
    except FaasError as error:
        trouble(error)


def trouble(error: FaasError | OSError) -> None:
    """What went wrong, in a few lines; what the function itself wrote comes with its log."""
    message, hint = (error.message, error.hint) if isinstance(error, FaasError) else (str(error), "")
    note(f"{click.style('error:', fg='red', bold=True)} {visible(message)}")
    for words in hint.splitlines():
        note(f"  {visible(words)}")
    if isinstance(error, InitFailed):
        note("  calls get this error, until it starts")
