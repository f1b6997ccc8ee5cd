"""`HeaderChanges`: header fields that a route adds, sets or removes, of requests or of answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from faas.checks import Check
from faas.plain import written
from faas.spec_table import table

if TYPE_CHECKING:
    from multidict import CIMultiDict

MOST = 32  # fields in all
VALUE_BYTES = 4096
_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
# What frames a message, or what we say ourselves and functions may believe.
OURS = frozenset(
    {
        "connection", "content-encoding", "content-length", "expect", "forwarded", "host", "keep-alive",
        "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
        "upgrade", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip",
        "x-request-id",
    }
)  # fmt: skip
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """Removed first, then set (in place of what is there), then added (beside it)."""

    add: Mapping[str, str] = field(default_factory=lambda: _NONE)
    set: Mapping[str, str] = field(default_factory=lambda: _NONE)
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add or self.set or self.remove)

    def to_dict(self) -> dict[str, Any]:
        return written(self)

    def of_fields(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """A request's fields, with names in lower case, after the changes."""
        gone = {name.lower() for name in (*self.remove, *self.set)}
        kept = [one for one in fields if one[0] not in gone]
        return kept + [(name.lower(), value) for name, value in (*self.set.items(), *self.add.items())]

    def of_answer(self, headers: CIMultiDict[str]) -> None:
        """The same, of an answer's head, in place."""
        for name in self.remove:
            headers.popall(name, None)
        for name, value in self.set.items():
            headers[name] = value
        for name, value in self.add.items():
            headers.add(name, value)


NO_CHANGES = HeaderChanges()


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("names of header fields")
    if value.lower() in OURS:
        raise ValueError(f"names of header fields that are not ours: {value} is")
    return value


def _fields(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > MOST:
        raise ValueError(f"a table of at most {MOST} header fields")
    for name, text in value.items():
        try:
            _name(name)
        except ValueError as error:
            raise ValueError(f"a table of {error}") from None
        if not isinstance(text, str) or len(text) > VALUE_BYTES or not _VALUE.fullmatch(text):
            raise ValueError(f"a table of names and ASCII texts of at most {VALUE_BYTES} bytes ({name} is none)")
    return dict(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MOST:
        raise ValueError(f"a list of at most {MOST} names")
    try:
        return tuple(_name(name) for name in value)
    except ValueError as error:
        raise ValueError(f"a list of {error}") from None


_CHECKS: Mapping[str, Check] = {"add": _fields, "set": _fields, "remove": _names}


def read(where: str, value: Any) -> HeaderChanges:
    """The changes in the table at `where`. Raises SpecError."""
    return HeaderChanges(**table(where, value, _CHECKS))
