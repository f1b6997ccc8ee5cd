"""`Caller`: who asks, what their credentials say of them, and what of the request is for us alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web

from faas.auth import ANONYMOUS, Principal
from gateway.edge.entry import Entry

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    `context`: `requestContext.authorizer` of an event in payload format 2.0. `key`, `plan`: an API key's id and usage
    plan, "" without one. `withheld`: a query parameter that does not reach the function (header fields: WITHHELD of
    `gateway.headers`).
    """

    principal: Principal = ANONYMOUS
    context: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    key: str = ""
    plan: str = ""
    withheld: str = ""

    @property
    def is_stranger(self) -> bool:
        """Nothing of theirs was checked: what they sent as credentials is the function's."""
        return self.principal is ANONYMOUS

    def seen(self, entry: Entry) -> Entry:
        """`entry` as the function may see it."""
        name, query = self.withheld, entry.target.query
        if not name or not query:
            return entry
        return dataclasses.replace(entry, target=dataclasses.replace(entry.target, query=without(query, name)))


STRANGER = Caller()
CALLER = web.RequestKey("caller", Caller)


def without(query: str, name: str) -> str:
    """A raw query without the parameter `name`, however it is written; the rest as it was."""
    return "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name)
