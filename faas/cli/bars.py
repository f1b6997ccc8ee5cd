"""Progress on stderr while images move: stages with their times, and on a terminal a bar per layer."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TextIO

import click

from faas.cli.failures import visible
from faas.cli.output import size
from faas.cli.session import Session

BAR_WIDTH = 24
REDRAW_SECONDS = 0.05  # a terminal shows no more than this, and drawing costs the upload time
TICK_SECONDS = 0.1
LABEL_WIDTH = 12
NAMED = 4  # layers that a stage's last line names; more are summed up
_MOVED = ("uploading", "downloading", "done")


@dataclass
class _Layer:
    label: str
    done: int
    total: int
    state: str


@dataclass
class Display:
    """A `faas.build.progress.Progress`. `live`: a terminal that may be drawn on; else one line per finished stage.

    Use it as a context manager: a stage that an error ends is marked as failed, above the error's message.
    """

    stream: TextIO
    live: bool
    clock: Callable[[], float] = time.monotonic
    _stage: str = ""
    _began: float = 0.0
    _detail: str = ""
    _layers: dict[str, _Layer] = field(default_factory=dict)
    _drawn: int = 0
    _drawn_at: float = -1.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._end(failed=kind is not None)

    def stage(self, name: str) -> None:
        """A new stage begins, and the one before has ended."""
        with self._lock:
            if name != self._stage:
                self._end()
                self._stage, self._began = name, self.clock()
                self._draw(force=True)

    def detail(self, text: str) -> None:
        """What is said beside the current stage."""
        with self._lock:
            self._detail = text
            self._draw(force=True)

    async def tick(self) -> None:
        """Let the clock run on the screen while nothing happens; until cancelled."""
        while self.live:
            await asyncio.sleep(TICK_SECONDS)
            with self._lock:
                self._draw()

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None:
        """`state` is exists | mounted | uploading | downloading | done; `done` and `total` are bytes."""
        with self._lock:
            last = self._layers.get(digest)
            self._layers[digest] = _Layer(description or digest.partition(":")[2][:12], done, total, state)
            self._draw(force=last is None or last.state != state)

    def line(self, text: str) -> None:
        """A line that stays, such as a builder's output (it comes from a thread) or a warning."""
        with self._lock:
            self._clear()
            click.echo("\n".join(visible(part) for part in text.splitlines()), file=self.stream)
            self._draw(force=True)

    def _end(self, *, failed: bool = False) -> None:
        if not self._stage:
            return
        self._clear()
        stage, mark = f"{self._stage:<{LABEL_WIDTH}}", "failed" if failed else ""
        if self.live:
            stage, mark = click.style(stage, bold=True), click.style(mark, fg="red") if mark else ""
        words = [f"  {stage}{self.clock() - self._began:6.2f} s", self._detail, self._summary(), mark]
        click.echo("  ".join(word for word in words if word), file=self.stream)
        self._stage, self._detail = "", ""
        self._layers.clear()

    def _summary(self) -> str:
        """What became of the layers: `code 1.2 KB; 3 already there`."""
        moved = [layer for layer in self._layers.values() if layer.state in _MOVED]
        sent = [f"{layer.label} {size(layer.done)}" for layer in moved]
        if len(sent) > NAMED:
            sent = [f"{len(moved)} blobs, {size(sum(layer.done for layer in moved))}"]
        there = sum(layer.state not in _MOVED for layer in self._layers.values())
        return "; ".join([*sent, *([f"{there} already there"] if there else [])])

    def _draw(self, *, force: bool = False) -> None:
        now = self.clock()
        if not self.live or not self._stage or (not force and now - self._drawn_at < REDRAW_SECONDS):
            return
        self._clear()
        columns, rows = shutil.get_terminal_size()
        lines = [f"  {self._stage:<{LABEL_WIDTH}}{now - self._began:6.2f} s  {self._detail}"]
        lines += [f"    {layer.label[:LABEL_WIDTH]:<{LABEL_WIDTH}}  {_bar(layer)}" for layer in self._shown(rows - 2)]
        for line in lines:
            self.stream.write(line[: columns - 1] + "\n")
        self.stream.flush()
        self._drawn, self._drawn_at = len(lines), now

    def _shown(self, rows: int) -> list[_Layer]:
        """As many as fit, those that move last: what has scrolled away could no longer be drawn over."""
        layers = list(self._layers.values())
        if len(layers) > rows:
            layers.sort(key=lambda layer: layer.state in ("uploading", "downloading"))
        return layers[-max(rows, 1) :]

    def _clear(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def display_of(session: Session) -> Display:
    """Bars on stderr where it is a terminal and colours are wanted."""
    return Display(sys.stderr, sys.stderr.isatty() and not session.settings.no_color)


@asynccontextmanager
async def ticking(display: Display) -> AsyncIterator[None]:
    """The display's clock runs meanwhile."""
    ticks = asyncio.create_task(display.tick())
    try:
        yield
    finally:
        ticks.cancel()
        await asyncio.gather(ticks, return_exceptions=True)


@asynccontextmanager
async def staged(session: Session, name: str) -> AsyncIterator[Display]:
    """One stage of work, whose clock runs on a terminal, and which is a line when it has ended."""
    with display_of(session) as display:
        display.stage(name)
        async with ticking(display):
            yield display


def _bar(layer: _Layer) -> str:
    if layer.state not in _MOVED:
        return "already there"
    share = min(1.0, layer.done / layer.total) if layer.total else 1.0
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}  {size(layer.done)} of {size(layer.total)}"
