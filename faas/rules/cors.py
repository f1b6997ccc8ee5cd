"""`Cors`: which web pages may call from a browser (`[cors]`), and how an origin is compared.

What is accepted can be kept: an origin is what a browser sends (scheme, host and port in lower case, no default port,
no path), and what a browser would not take (`*` together with credentials) is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from faas import checks
from faas.checks import Check
from faas.errors import SpecError
from faas.spec_table import table

ANY = "*"
NULL = "null"  # of sandboxed frames and local files: any page can be that
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")  # what `*` stands for
MOST = 100  # entries of a list
ORIGIN_CHARACTERS = 300  # a name has 253
MAX_AGE = timedelta(days=1)  # as Lambda; browsers keep answers for less

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ORIGIN = re.compile(
    rf"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>(?P<wild>\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>\d{{1,5}}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Cors:
    """`origins`: as browsers send them, `https://*.example.com` for every name below it, `*` for all."""

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = (ANY,)
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    credentials: bool = False
    max_age: timedelta = timedelta(0)

    def allows(self, origin: str) -> bool:
        """Whether a page of `origin`, as its browser sent it, may call: compared exactly, port and case included."""
        if ANY in self.origins:
            return True
        if len(origin) > ORIGIN_CHARACTERS:
            return False
        return origin in self._exact or any(pattern.fullmatch(origin) for pattern in self._below)

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(origin for origin in self.origins if "*" not in origin)

    @cached_property
    def _below(self) -> tuple[re.Pattern[str], ...]:
        """`https://*.example.com` is one or more labels before that name, never the name itself."""
        parts = [origin.split("*.") for origin in self.origins if "*." in origin]
        return tuple(re.compile(rf"{re.escape(a)}(?:{_LABEL}\.)+{re.escape(b)}") for a, b in parts)


def _origin(value: Any) -> str:
    if value in (ANY, NULL):
        return str(value)
    found = _ORIGIN.fullmatch(value.lower()) if isinstance(value, str) and len(value) <= ORIGIN_CHARACTERS else None
    if found is None:
        raise ValueError('origins such as "https://a.example:8443", "https://*.example.com", "null" or "*"')
    if found["port"] and found["port"] == _DEFAULT_PORTS.get(found["scheme"]):
        raise ValueError(f"origins as browsers send them: without :{found['port']} after {found['scheme']}")
    if found["port"] and not 1 <= int(found["port"]) <= 65_535:
        raise ValueError("origins with a port from 1 to 65535")
    if found["wild"] and "." not in found["host"][2:]:
        raise ValueError(f"origins of one owner: {value} would be everybody's below it")
    return str(value).lower()


def _token(value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError('names such as "Content-Type", or "*"')
    return value


def _method(value: Any) -> str:
    if not isinstance(value, str) or not (value == ANY or re.fullmatch(r"[A-Z][A-Z-]{0,31}", value)):
        raise ValueError('methods in capitals such as "GET", or "*"')
    return value


def _each(one: Check) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or len(value) > MOST:
            raise ValueError(f"a list of at most {MOST} texts")
        return tuple(dict.fromkeys(one(item) for item in value))

    return check


_KEYS: Mapping[str, Check] = {
    "origins": _each(_origin),
    "methods": _each(_method),
    "headers": _each(_token),
    "expose": _each(_token),
    "credentials": checks.boolean,
    "max_age": checks.duration(timedelta(0), MAX_AGE),
}


def read(where: str, value: Any) -> Cors:
    """The table at `where`. Raises SpecError."""
    rule = Cors(**table(where, value, _KEYS))
    if not rule.origins:
        raise SpecError(f"{where} needs origins", key=f"{where}.origins", hint='such as ["https://www.example.com"]')
    if not rule.methods:
        raise SpecError(f"{where}.methods is empty", key=f"{where}.methods", hint='leave it out for all: ["*"]')
    if rule.credentials:
        open_to_all = {"origins": {ANY, NULL}, "headers": {ANY}, "expose": {ANY}}
        for key, words in open_to_all.items():
            if found := words & set(getattr(rule, key)):
                raise SpecError(
                    f'{where}.{key} has "{found.pop()}", which no browser takes or anybody can be, beside credentials',
                    key=f"{where}.{key}",
                    hint="name them one by one, or drop credentials",
                )
    return rule
