"""`faas debug`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from faas.checks import parse_duration
from faas.cli.options import function_argument, pass_session
from faas.cli.output import note
from faas.cli.session import Session

if TYPE_CHECKING:
    from faas.client_debug import DebugSession

READ_BYTES = 16_384
END_OF_INPUT = b"\x04"  # Ctrl-D: what a terminal has for it


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parse_duration(text).total_seconds())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(context_settings={"ignore_unknown_options": True})
@function_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--idle", callback=_seconds, metavar="TIME", help="End it when nothing happens for so long (15m).")
@click.option("--lifetime", callback=_seconds, metavar="TIME", help="End it after so long (1h).")
@pass_session
@click.pass_context
def debug(
    ctx: click.Context, session: Session, name: str, command: tuple[str, ...], idle: int | None, lifetime: int | None
) -> None:
    """Open a shell in a throw-away instance of a function, or run COMMAND there (after --).

    It has the function's image, environment, limits, network and /tmp; no invocation reaches it, and it goes when you
    leave. The exit code is the program's. From a pipe, what comes is typed.
    """
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    columns, rows = _size()
    wish: dict[str, Any] = {"command": list(command), "columns": columns, "rows": rows, "plain": not at_terminal}
    wish |= {key: value for key, value in (("idle", idle), ("lifetime", lifetime)) if value is not None}
    if at_terminal and (term := session.settings.term):
        wish["term"] = term

    async def work() -> int:
        async with session.client() as client, client.debug(name, wish) as opened:
            with _raw() if at_terminal else contextlib.nullcontext():
                await _carry(opened, at_terminal)
            assert opened.ended is not None
            if opened.ended["out_of_memory"]:
                note("it was killed: out of memory")
            return int(opened.ended["exit"])

    ctx.exit(session.run(work()))


def _size() -> tuple[int, int]:
    """(columns, rows); what a terminal usually has where there is none."""
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 80, 24
    return max(1, found.columns), max(1, found.lines)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Each key goes to the program at once, Ctrl-C too."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _carry(session: DebugSession, at_terminal: bool) -> None:
    """Both ways, until the program has ended."""
    loop, waiting = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def resized() -> None:
        task = loop.create_task(session.resize(*_size()))
        waiting.add(task)
        task.add_done_callback(waiting.discard)

    if at_terminal:
        loop.add_signal_handler(signal.SIGWINCH, resized)
    typing = loop.create_task(_type(session, at_terminal))
    try:
        async for data in session:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)


async def _type(session: DebugSession, at_terminal: bool) -> None:
    """What comes on standard input, then the end of it. A thread of its own reads: a file cannot be waited for."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    room = asyncio.Semaphore(4)  # pieces that are read ahead

    def read() -> None:
        while True:
            try:
                data = os.read(sys.stdin.fileno(), READ_BYTES)
                loop.call_soon_threadsafe(pieces.put_nowait, data)
                asyncio.run_coroutine_threadsafe(room.acquire(), loop).result()
            except (OSError, RuntimeError):  # the loop has ended
                return
            if not data:
                return

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while data := await pieces.get():
        room.release()
        await session.type(data)
    if not at_terminal:
        await session.type(END_OF_INPUT * 2)  # the first ends a line that has begun
