"""`faas.toml` → `FunctionSpec`: what was written, where it was written, and flags that override it.

`faas.spec` says what is wrong with a value; this module says in which file and line, or by which flag.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faas import spec
from faas.errors import NotFound, SpecError
from faas.rules.rules import TABLES

NAME = "faas.toml"
SIZE_LIMIT = 1_048_576  # bytes; a larger file is not one that somebody wrote

_KEY_PART = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_SKIPPED = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_VALUE_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]",
    re.DOTALL,
)
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A `faas.toml` as it was read. `lines` maps dotted keys (`scale.max`, `schedule[0].cron`) to line numbers."""

    path: Path
    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """`FILE:LINE` of a key, or of the table that it stands in; `FILE` where it is nowhere."""
        while key:
            if key in self.lines:
                return f"{self.path}:{self.lines[key]}"
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return str(self.path)


def read(path: Path) -> SpecFile:
    """Raises NotFound, or SpecError with the place where it is no TOML."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise SpecError(f"{path} is larger than {SIZE_LIMIT} bytes")
        text = path.read_bytes().decode().replace("\r\n", "\n")
    except FileNotFoundError:
        raise NotFound(f"there is no {path}", hint="make one with faas new, or pass --image") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_PLACE.search(str(error))
        line = (found and found[1]) or str(text.count("\n") + 1)
        reason = _TOML_PLACE.sub("", str(error))
        hint = 'texts stand in quotes: key = "value"' if reason == "Invalid value" else ""
        raise SpecError(f"{path}:{line}: not TOML: {reason}", hint=hint) from None
    except ValueError as error:  # a number of thousands of digits
        raise SpecError(f"{path}: not TOML: {error}") from None
    return SpecFile(path, data, dict(key_lines(text)))


def parse(file: SpecFile | None, flags: Mapping[str, Any] | None = None) -> spec.FunctionSpec:
    """The spec that `file` and `flags` give together; `flags` has the file's form and wins.

    Tables (env, scale, async) are merged key by key, everything else is replaced. Raises SpecError whose message
    begins with `FILE:LINE` or with the flag.
    """
    written = file.data if file else {}
    given = flags or {}
    try:
        return spec.parse(merged(written, given))
    except SpecError as error:
        raise located(error, file, given) from None


def located(error: SpecError, file: SpecFile | None, flags: Mapping[str, Any]) -> SpecError:
    """`error` with the flag or the `FILE:LINE` of its key before its message."""
    place = _flag(error.key, flags) or (file.place(error.key) if file else "")
    message = f"{place}: {error.message}" if place else error.message
    return SpecError(message, key=error.key, hint=error.hint)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            result[key] = merged(under, value)
        else:
            result[key] = value
    return result


def flag_name(key: str) -> str:
    """The flag of a dotted key: `scale.max` → `--scale-max`."""
    if key == "secrets":
        return "--secret"  # each names one
    return "--" + key.replace(".", "-").replace("_", "-")


def _flag(key: str, given: Mapping[str, Any]) -> str:
    """The flag that a wrong key was given by, or ""."""
    top, _, rest = key.partition(".")
    top = top.partition("[")[0]
    if top not in given:
        return ""
    if isinstance(given[top], Mapping) and top not in ("env", "secrets", *TABLES):
        return flag_name(key) if rest in given[top] else ""
    return flag_name(top)


def key_lines(text: str) -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every table header and key of `text`, which is valid TOML.

    Keys inside inline tables are left out: they stand where their table stands, nearly always on its line.
    """
    position, table = 0, ""
    rows: dict[str, int] = {}  # array of tables -> how many there are
    while (position := _end(_SKIPPED, text, position)) < len(text):
        line = text.count("\n", 0, position) + 1
        if text[position] == "[":
            is_array = text.startswith("[[", position)
            parts, position = _key(text, position + 1 + is_array)
            table = _placed(parts, rows, is_array)
            position = text.find("\n", position)
            position = len(text) if position < 0 else position
            if table.endswith("[0]"):
                yield table.removesuffix("[0]"), line  # what is wrong with the array as a whole stands at its first row
            yield table, line
        else:
            parts, position = _key(text, position)
            position = _value_end(text, position + 1)
            yield ".".join([table, *parts] if table else parts), line


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _key(text: str, position: int) -> tuple[list[str], int]:
    """A dotted key's parts, and where it ends."""
    parts = []
    while found := _KEY_PART.match(text, position):
        parts.append(found[1].strip("\"'"))
        position = found.end()
        if not text.startswith(".", position):
            break
        position += 1
    return parts, position


def _placed(parts: list[str], rows: dict[str, int], is_array: bool) -> str:
    """A table header's dotted key, with the index of the last row wherever it leads through an array of tables."""
    path = ""
    for depth, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if is_array and depth == len(parts) - 1:
            rows[path] = rows.get(path, 0) + 1
        if path in rows:
            path = f"{path}[{rows[path] - 1}]"
    return path


def _value_end(text: str, position: int) -> int:
    depth = 0
    for token in _VALUE_TOKEN.finditer(text, position):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            return token.end()
    return len(text)
