"""`Maintenance`: functions, or all of them, that are not served for a while; durable, and looked up in memory.

Requests are answered 503 at once. An administrator who shows a token in `X-Faas-Bypass` comes through, to look whether
all is well again; that field reaches no function. Schedules, queued events and the control API go on.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable

from aiohttp import hdrs, web

from faas import errors
from faas.attempts import Attempts
from faas.auth import Authenticator, Permission
from faas.errors import Conflict, NotFound, Throttled, Unauthenticated
from faas.remote import client_address
from faas.state.session import Database
from faas.web import REQUEST_ID, error_headers, error_response
from gateway.edge.entry import Entry
from gateway.router import function_label
from gateway.store import maintenance
from gateway.store.maintenance import Notice

EVERYTHING = "*"
BYPASS_HEADER = "X-Faas-Bypass"
MOST_NOTICES = 1000
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Maintenance</title>
<h1>Maintenance</h1><p>{}</p></html>
"""


class Maintenance:
    """`start`ed once. `changed` is called where it begins or ends for anything."""

    def __init__(self, database: Database, changed: Callable[[], None]) -> None:
        self._database = database
        self._changed = changed
        self._of_functions: dict[str, Notice] = {}  # by label
        self._of_everything: Notice | None = None
        self._changes = asyncio.Lock()  # of what is stored: memory follows in the same order

    async def start(self) -> None:
        async with self._database.read() as tx:
            for notice in await maintenance.every(tx):
                self._show(notice)

    def covers(self, label: str) -> bool:
        """Whether the function with that label (`name`, or `name.namespace`) is not served now. Cheap."""
        return self._of_everything is not None or label in self._of_functions

    def notice(self, label: str) -> Notice | None:
        """What the callers of that function are told; its own words first."""
        return self._of_functions.get(label) or self._of_everything

    def every(self) -> list[Notice]:
        """That of everything first."""
        notices = [notice for _, notice in sorted(self._of_functions.items())]
        return [self._of_everything, *notices] if self._of_everything else notices

    async def put(self, notice: Notice) -> bool:
        """Begin, or say other words; whether it begins. Raises Conflict where there are too many, Unavailable."""
        async with self._changes:
            is_new = not self._has(notice.namespace, notice.function)
            if is_new and len(self._of_functions) >= MOST_NOTICES and notice.function != EVERYTHING:
                raise Conflict(f"at most {MOST_NOTICES} functions at once", hint="faas maintenance on --all")
            async with self._database.write() as tx:
                await maintenance.put(tx, notice)
            self._show(notice)
        return is_new

    async def remove(self, namespace: str, function: str) -> None:
        """End it. Raises NotFound, Unavailable."""
        async with self._changes:
            if not self._has(namespace, function):
                raise NotFound("there is no maintenance of this", hint="see faas maintenance ls")
            async with self._database.write() as tx:
                await maintenance.remove(tx, namespace, function)
            if function == EVERYTHING:
                self._of_everything = None
            else:
                del self._of_functions[function_label(namespace, function)]
            self._changed()

    def _has(self, namespace: str, function: str) -> bool:
        if function == EVERYTHING:
            return self._of_everything is not None
        return function_label(namespace, function) in self._of_functions

    def _show(self, notice: Notice) -> None:
        if notice.function == EVERYTHING:
            self._of_everything = notice
        else:
            self._of_functions[function_label(notice.namespace, notice.function)] = notice
        self._changed()


async def bypasses(request: web.Request, entry: Entry, authenticator: Authenticator, attempts: Attempts) -> bool:
    """Whether the request shows an administrator's token in its own field: `Authorization` is the function's. Wrong
    ones are slowed down as failed logins are."""
    token = request.headers.get(BYPASS_HEADER, "")
    if not token or not token.isascii():
        return False
    try:
        principal = await attempts.admit(authenticator, token, None, client_address(request))
    except (Unauthenticated, Throttled):
        return False
    key = entry.route.revision.key
    return principal.may(Permission.ADMIN, key.namespace, key.function)


def refusal(request: web.Request, notice: Notice) -> web.Response:
    """The answer, as a page where the client would rather have one than our JSON."""
    error = errors.Maintenance(notice.message, retry_after=notice.retry_after)
    kind = _wanted(request.headers.get(hdrs.ACCEPT, ""))
    if kind == "application/json":
        response = error_response(error, request[REQUEST_ID])
    else:
        text = _PAGE.format(html.escape(error.message)) if kind == "text/html" else error.message + "\n"
        response = web.Response(text=text, content_type=kind, status=error.status, headers=error_headers(error))
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    return response


def _wanted(accept: str) -> str:
    """The first of our three types that `Accept` names with the highest weight; JSON where it names none."""
    best, most = "application/json", 0.0
    for element in accept.split(","):
        kind, _, parameters = element.strip().lower().partition(";")
        kind = kind.strip()
        if kind in ("text/html", "text/plain", "application/json") and (weight := _weight(parameters)) > most:
            best, most = kind, weight
    return best


def _weight(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, float(value))
            except ValueError:
                return 0.0
    return 1.0
