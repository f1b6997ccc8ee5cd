"""Errors as the user sees them: what failed, one thing to do, the request id with its command; and the exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from faas.errors import (
    FaasError,
    Forbidden,
    FunctionError,
    ImageUnusable,
    InitFailed,
    InvalidInput,
    NotFound,
    ShuttingDown,
    TimedOut,
    Unauthenticated,
)
from faas.log import one_line

if TYPE_CHECKING:
    from faas.cli.session import Session

FAILED, USAGE, NOT_FOUND, NOT_ALLOWED, UNREACHABLE, TIMED_OUT, FUNCTION_FAILED = 1, 2, 3, 4, 5, 6, 7
INTERRUPTED = 130
# Errors of the API's and the registry's client by code: importing these would cost every command a tenth of a second.
_OF_CLIENTS = {
    "Unreachable": UNREACHABLE,
    "RegistryUnreachable": UNREACHABLE,
    "Untrusted": UNREACHABLE,
    "NoAnswer": TIMED_OUT,
}


class FunctionFailed(FaasError):
    """The invoked function answered an error; what it said has been printed."""

    code = "FunctionFailed"


def exit_code(error: BaseException) -> int:
    """Contract §4."""
    if isinstance(error, click.UsageError):
        return USAGE
    if isinstance(error, FunctionFailed):
        return FUNCTION_FAILED
    if isinstance(error, FaasError) and error.code in _OF_CLIENTS:
        return _OF_CLIENTS[error.code]
    for kinds, code in (
        ((ImageUnusable,), FAILED),
        ((InvalidInput,), USAGE),
        ((NotFound,), NOT_FOUND),
        ((Unauthenticated, Forbidden), NOT_ALLOWED),
        ((ShuttingDown,), UNREACHABLE),
        ((TimedOut,), TIMED_OUT),
    ):
        if isinstance(error, kinds):
            return code
    return FAILED


def report(error: Exception, session: Session) -> int:
    """Print `error` on stderr, for people; returns the exit code."""
    if session.debug:
        traceback.print_exception(error, file=sys.stderr)
    for line in _lines(error):
        click.echo(line, err=True, color=False if session.settings.no_color else None)
    return exit_code(error)


def _lines(error: Exception) -> Iterator[str]:
    label = click.style("error:", fg="red", bold=True)
    if isinstance(error, click.UsageError):
        yield f"{label} {error.format_message()}"
        if error.ctx is not None:
            yield f"  see {error.ctx.command_path} --help"
    elif isinstance(error, click.ClickException):
        yield f"{label} {error.format_message()}"
    elif isinstance(error, FaasError):
        yield from _of_ours(error, label)
    elif isinstance(error, OSError):
        yield f"{label} {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    else:
        yield f"{label} our fault: {type(error).__name__}: {error}"
        yield "  run it again with --debug for the traceback"


def _of_ours(error: FaasError, label: str) -> Iterator[str]:
    cause = error.__cause__
    tail = getattr(cause, "log_tail", "") or (error.log_tail if isinstance(error, InitFailed) else "")
    if tail:
        yield "the function wrote:"
        yield from (f"  | {visible(line)}" for line in tail.rstrip("\n").splitlines())
    yield f"{label} {visible(error.message)}"
    yield from (f"  {visible(line)}" for line in error.hint.splitlines())
    request_id, function = getattr(cause, "request_id", ""), getattr(cause, "function", "")
    if not request_id or request_id in error.hint:
        return
    if function and isinstance(error, FunctionError | FunctionFailed) and not isinstance(error, InitFailed):
        yield f"  request id {request_id}: faas logs {function} --request-id {request_id}"
    else:  # a call of the control API: what it says is in no function's log
        yield f"  request id {request_id}" + (" (in the server's log)" if error.status == FaasError.status else "")


def visible(text: str) -> str:
    """One line of foreign text, safe for a terminal; tabs stay."""
    return "\t".join(one_line(part) for part in text.split("\t"))
