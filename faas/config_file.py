"""Changing single settings in DIR/config.toml; every other line stays as it was written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping

from faas.errors import InvalidInput

_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")


def edited(text: str, changes: Mapping[str, str | None]) -> str:
    """`text` with these settings, or without those that are None. Raises InvalidInput where lines are not enough."""
    left = dict(changes)
    lines: list[str] = []
    for line in text.splitlines():
        found = _KEY.match(line)
        if found is None or found[1] not in changes:
            lines.append(line)
        elif (value := left.pop(found[1], None)) is not None:
            lines.append(_line(found[1], value))
    lines += [_line(key, value) for key, value in left.items() if value is not None]
    result = "".join(f"{line}\n" for line in lines)
    try:
        before, after = tomllib.loads(text), tomllib.loads(result)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"config.toml: {error}", hint="mend it by hand") from None
    wanted = {key: value for key, value in {**before, **changes}.items() if value is not None}
    if after != wanted:
        words = ", ".join(key if value is None else _line(key, value) for key, value in changes.items())
        raise InvalidInput("config.toml has values of several lines", hint=f"change it by hand: {words}")
    return result


def _line(key: str, value: str) -> str:
    """A JSON text without escaped characters beyond ASCII is a TOML text."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"
