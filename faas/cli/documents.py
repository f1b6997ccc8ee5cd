"""Documents that commands read from files: JSON, and YAML where the extra `yaml` is installed."""

from __future__ import annotations

import datetime
import json
from typing import Any, TextIO

from faas.cli.output import Json
from faas.errors import InvalidInput

MOST_BYTES = 4_194_304  # of a document, as the server takes them; of a YAML one with all its aliases written out
MOST_DEPTH = 64
EXTRA = "convert it to JSON, or pip install 'ownfaas[yaml]'"


def document_in(file: TextIO) -> Json:
    """The object in `file`. Raises InvalidInput."""
    text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise InvalidInput(f"{file.name} has more than {MOST_BYTES} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _yaml(file.name, text)
    if not isinstance(value, dict):
        raise InvalidInput(f"{file.name} must be an object, in JSON or YAML")
    return value


def _yaml(name: str, text: str) -> Any:
    """As JSON has it: names are texts, dates as they were written, what is named twice is there twice."""
    try:
        import yaml
    except ImportError:
        raise InvalidInput(f"{name} is no JSON", hint=f"if it is YAML: {EXTRA}") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(text, loader):  # without recursion, and before anything is built
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise InvalidInput(f"{name} is nested more than {MOST_DEPTH} deep")
        value = yaml.load(text, loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        raise InvalidInput(f"{name} is neither JSON nor YAML{line}") from None
    return json.loads(_written_out(name, value))


def _written_out(name: str, value: Any) -> str:
    """Raises InvalidInput where aliases make it larger than it may be, or without an end."""
    pieces, size = [], 0
    try:
        for piece in json.JSONEncoder(default=_as_text).iterencode(value):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise InvalidInput(f"{name} has more than {MOST_BYTES} characters, with its aliases written out")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} cannot be written as JSON: {error}") from None
    return "".join(pieces)


def _as_text(value: Any) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"a value of the kind {type(value).__name__}")
