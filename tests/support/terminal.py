"""README's picture of a terminal, of a session with a server of its own: `python -m tests.support.terminal`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path

from tests.support.howto import HowTo
from tests.support.server import RunningServer

PICTURE = Path(__file__).parents[2] / "deploy" / "terminal.svg"
ADDRESS = "localhost:8080"
COMMANDS = (
    "faas new weather --runtime python",
    "faas push weather",
    f"curl -s '{ADDRESS}/function/weather?name=Ada'",
    "echo 'import rain' >> weather/app.py",
    "faas push weather",
    f"curl -s '{ADDRESS}/function/weather?name=Bea'",
    "faas logs weather --stream stdout --since 5m",
)
SIZE, LINE, LETTER, EDGE = 13, 18, 7.83, 16  # pixels; a letter's width is said to the viewer, whatever font it has
COLOURS = {"$ ": "#f0f6fc", "error: ": "#ff7b72", "http": "#7ee787"}  # by how a line begins; others are grey
# What differs from one session to the next, or from one machine to another.
MASKED = (
    (r"\d+\.\d+ (s|KB)\b", r"N \1"),
    (r"\b\d{4}-\d\d-\d\dT[\d:.+]+", "TIME"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"python3\.\d+ \w+", "PYTHON"),
    (r"\bline \d+", "line N"),
    (r" {2,}", "  "),
)


def session(server: RunningServer, folder: Path) -> list[str]:
    """The commands as they are typed, each with what it wrote, at the address where a server listens by itself."""
    shell, lines = HowTo(folder, server), []
    for command in COMMANDS:
        written = shell.run(f"{command} || true", folder).replace(server.public.partition("//")[2], ADDRESS)
        lines += [f"$ {command}", *written.rstrip("\n").splitlines()]
    return lines


def masked(lines: Sequence[str]) -> list[str]:
    text = "\n".join(lines)
    for pattern, word in MASKED:
        text = re.sub(pattern, word, text)
    return text.splitlines()


def drawn(lines: Sequence[str]) -> str:
    """An SVG whose text is text: it can be selected and searched for."""
    columns = max(map(len, lines))
    width, height = round(columns * LETTER) + 2 * EDGE, len(lines) * LINE + 2 * EDGE
    rows = []
    for number, line in enumerate(lines):
        colour = next((colour for start, colour in COLOURS.items() if line.startswith(start)), "#9da7b3")
        size = f'x="{EDGE}" y="{EDGE + (number + 1) * LINE - 5}" textLength="{len(line) * LETTER:.1f}"'
        rows.append(f'<text {size} fill="{colour}">{escape(line, quote=False)}</text>\n')
    style = f'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="{SIZE}" xml:space="preserve"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n<g {style}>\n{"".join(rows)}</g>\n</svg>\n'
    )


def lines_of(picture: str) -> list[str]:
    return [unescape(line) for line in re.findall(r"<text [^>]*>(.*)</text>", picture)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, RunningServer(Path(name) / "data", "--driver", "oci") as running:
        (work := Path(name) / "work").mkdir()
        PICTURE.write_text(drawn(session(running, work)))
