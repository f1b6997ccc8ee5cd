"""`faas top`: what functions use now, drawn anew each second on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import click
from click.core import ParameterSource

from faas.cli.failures import visible
from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, as_json, output_option, show, size, table
from faas.cli.session import Session

LOOK_SECONDS = 1.0
BAR_WIDTH = 30
TERMINATED = 143  # 128 + SIGTERM, as shells count
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor; and back


@dataclass(frozen=True)
class Look:
    """One answer of the API. `functions` carry what was counted since the one before."""

    at: float
    memory: Json | None
    functions: Sequence[Json]
    lanes: str = ""


def compared(now: Json, before: Json | None) -> Look:
    """`now` with the differences to `before`, busiest first. A count that fell began anew: all of it is new."""
    at = float(now["at"])
    seconds = at - float(before["at"]) if before else 0.0
    known = {full_name(row): row for row in (before or {}).get("functions", ())}
    rows = []
    for row in now["functions"]:
        last = known.get(full_name(row), {})
        new: dict[str, int | None] = {}
        for count in ("invocations", "errors", "refused"):
            past = int(last.get(count, 0))
            new[count] = None if before is None else int(row[count]) - (past if past <= int(row[count]) else 0)
        invoked = new["invocations"]
        rate = round(invoked / seconds, 1) if invoked is not None and seconds > 0 else None
        rows.append({**row, "new_errors": new["errors"], "new_refused": new["refused"], "requests_per_second": rate})
    rows.sort(key=lambda row: (-row["instances"]["busy"], -(row["requests_per_second"] or 0.0), full_name(row)))
    return Look(at, now.get("memory"), rows, str(now.get("lanes") or ""))


def _state(name: str) -> Column:
    return name.upper(), lambda row: str(row["instances"][name])


def _told(name: str, key: str) -> Column:
    return name, lambda row: None if row[key] is None else str(row[key])


COLUMNS: tuple[Column, ...] = (
    ("FUNCTION", full_name),
    _state("busy"),
    _state("idle"),
    _state("starting"),
    ("QUEUE", lambda row: str(row["queue"])),
    ("MEMORY", lambda row: size(row["memory_bytes"])),
    ("CHARGED", lambda row: size(row["charged_bytes"])),
    ("CPUS", lambda row: None if row["cpus"] is None else f"{row['cpus']:.2f}"),
    _told("REQ/S", "requests_per_second"),
    _told("ERRORS", "new_errors"),
    _told("REFUSED", "new_refused"),
)


def head(memory: Json | None, *, bar: bool, lanes: str = "") -> str:
    """The machine in one line; nothing for those who may not read all namespaces."""
    if memory is None:
        return ""
    budget, charged = int(memory["budget_bytes"]), sum(map(int, memory["charged_bytes"].values()))
    share = charged / budget if budget else 1.0
    words = [f"memory {share:4.0%}  {size(charged)} of {size(budget)}"]
    if bar:
        filled = min(BAR_WIDTH, round(share * BAR_WIDTH))
        words.insert(0, f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]")
    words += [f"{memory['evictions']} evictions", f"{memory['waiting']} starts wait for memory", lanes]
    return "  ".join(filter(None, words))


def frame(look: Look, columns: int, rows: int, *, colour: bool) -> str:
    """A whole screen, drawn over the one before: as many functions as there are rows for."""
    cells = [[visible(str(value(row) or "-")) for _, value in COLUMNS] for row in look.functions]
    titles, *lines = table([title for title, _ in COLUMNS], cells)
    titles = click.unstyle(titles)[:columns]
    above = [line for line in (head(look.memory, bar=colour, lanes=look.lanes)[:columns],) if line]
    room = max(0, rows - len(above) - 1)
    if len(lines) > room:
        lines = [*lines[: max(0, room - 1)], f"… and {len(lines) - max(0, room - 1)} more"][:room]
    drawn = [*above, click.style(titles, bold=True) if colour else titles, *(line[:columns] for line in lines)]
    return "\x1b[H" + "\n".join(f"{line}\x1b[K" for line in drawn[:rows]) + "\x1b[J"


@contextlib.contextmanager
def other_screen(stream: TextIO) -> Iterator[None]:
    """The terminal's other screen; whatever happens, its own one is back at the end as it was."""
    stream.write(_ENTER)
    stream.flush()
    try:
        yield
    finally:
        stream.write(_LEAVE)
        stream.flush()


async def watch(session: Session, namespace: str) -> None:
    """Draw until interrupted, or sent SIGTERM or SIGHUP: then it returns."""
    loop, own = asyncio.get_running_loop(), asyncio.current_task()
    assert own is not None
    drawing = asyncio.create_task(_draw(session, namespace))
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, drawing.cancel)
    try:
        await drawing
    except asyncio.CancelledError:
        if own.cancelling():  # Ctrl-C
            raise


async def _draw(session: Session, namespace: str) -> None:
    """For ever; a terminal that changes its size is drawn anew at once."""
    loop, resized = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    before: Json | None = None
    async with session.client() as client:
        with other_screen(sys.stdout):
            while True:
                now = await client.top(namespace)
                look, before = compared(now, before), now
                due = loop.time() + LOOK_SECONDS
                while True:
                    resized.clear()
                    columns, rows = _terminal_size()
                    sys.stdout.write(frame(look, columns, rows, colour=not session.settings.no_color))
                    sys.stdout.flush()
                    try:
                        async with asyncio.timeout_at(due):
                            await resized.wait()
                    except TimeoutError:
                        break


def _terminal_size() -> tuple[int, int]:
    """As it is now: COLUMNS and LINES would hide a change."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return shutil.get_terminal_size()


async def look_once(session: Session, namespace: str) -> Look:
    """Two answers, a second apart: rates need both."""
    async with session.client() as client:
        before = await client.top(namespace)
        await asyncio.sleep(LOOK_SECONDS)
        return compared(await client.top(namespace), before)


@click.command()
@click.option("--namespace", default="", help="Only this namespace's functions.")
@output_option
@pass_session
@click.pass_context
def top(ctx: click.Context, session: Session, namespace: str, output: str) -> None:
    """Show what functions use now.

    On a terminal drawn anew each second, until Ctrl-C; elsewhere, or with -o, printed once.
    """
    if sys.stdout.isatty() and ctx.get_parameter_source("output") is ParameterSource.DEFAULT:
        session.run(watch(session, namespace))
        raise SystemExit(TERMINATED)
    look = session.run(look_once(session, namespace))
    if output == "json":
        click.echo(as_json({"at": look.at, "memory": look.memory, "functions": look.functions}))
        return
    if output == "table" and (line := head(look.memory, bar=False)):
        click.echo(line)
    show(output, look.functions, COLUMNS, full_name)
