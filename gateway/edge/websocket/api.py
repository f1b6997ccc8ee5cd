"""`WebSocketApi`: one WebSocket API as its owner wrote it, checked, and back as plain data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from faas import checks
from faas.checks import Check
from faas.errors import SpecError
from faas.rules import rules
from faas.rules.rules import NO_RULES, Rules
from faas.rules.websocket import USUAL, WebSocketRule
from faas.spec import plain
from faas.spec_table import table
from gateway.router import DEFAULT_NAMESPACE, function_label

PREFIX = "/ws/"  # of every API's path: nothing else on the public listener begins so
CONNECT, DISCONNECT, DEFAULT = "$connect", "$disconnect", "$default"
ROUTES = 100
FRAME_BYTES, MESSAGE_BYTES = 32_768, 131_072  # Amazon API Gateway's
CONNECTIONS, CONNECTIONS_MOST = 1000, 10_000
IN_FLIGHT_MOST = 100
BODY = "$request.body."
_PATH = re.compile(r"/ws/[A-Za-z0-9._~-]{1,64}(/[A-Za-z0-9._~-]{1,64}){0,3}")
_STAGE = re.compile(r"[A-Za-z0-9_$-]{1,128}")
_SELECTION = re.compile(r"\$request\.body\.[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}")
_KEY = re.compile(r"\$(connect|disconnect|default)|[^$\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,127}")
_FUNCTION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[A-Za-z0-9_-]{1,128})?")


@dataclass(frozen=True, slots=True)
class MessageRoute:
    """`function`: of the API's namespace, with `:alias` or `:v7` where it is not `live`. `response`: what it answers
    goes back to the client."""

    function: str
    response: bool = False

    @property
    def name(self) -> str:
        return self.function.partition(":")[0]

    @property
    def qualifier(self) -> str:
        return self.function.partition(":")[2]


@dataclass(frozen=True, slots=True)
class WebSocketApi:
    """`connections`: open at once; `in_flight`: messages of one connection whose functions run at once. With 1 they run
    in the order in which they came."""

    namespace: str
    name: str
    path: str
    routes: Mapping[str, MessageRoute]
    stage: str = DEFAULT
    selection: str = BODY + "action"
    public: bool = False
    connections: int = CONNECTIONS
    in_flight: int = 1
    rules: Rules = field(default=NO_RULES)

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def label(self) -> str:
        return function_label(self.namespace, self.name)

    @property
    def limits(self) -> WebSocketRule:
        return self.rules.websocket or USUAL

    @property
    def max_message(self) -> int:
        return self.limits.max_message or MESSAGE_BYTES

    @property
    def max_frame(self) -> int:
        return self.limits.max_frame or FRAME_BYTES

    @property
    def entrance(self) -> MessageRoute:
        """Whose function is asked before a connection is there, or would be: `$connect`'s, else `$default`'s, else the
        first one's."""
        return self.routes.get(CONNECT) or self.routes.get(DEFAULT) or next(iter(self.routes.values()))

    @property
    def functions(self) -> frozenset[str]:
        return frozenset(route.name for route in self.routes.values())

    def route_key(self, text: str | None) -> str | None:
        """The route of a message, by its `text`; None where none fits. A binary message has no text."""
        key = _selected(self.selection, text) if text is not None else None
        if key in self.routes and not (key or "").startswith("$"):
            return key
        return DEFAULT if DEFAULT in self.routes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the control API's keys; `parse` takes it back."""
        written: dict[str, Any] = {name: getattr(self, name) for name in _CHECKS}
        written["routes"] = {key: asdict(route) for key, route in self.routes.items()}
        written["rules"] = {key: value for key, value in plain(self.rules).items() if value is not None}
        return written


def _selected(selection: str, text: str) -> str | None:
    """What the expression finds in the message, where that is a JSON object with a text (or a number) there."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for name in selection.removeprefix(BODY).split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) if len(str(value)) <= 128 else None


_CHECKS: Mapping[str, Check] = {
    "path": checks.matching(_PATH, f"a path below {PREFIX}, such as {PREFIX}chat"),
    "stage": checks.matching(_STAGE, "1 to 128 letters, digits, _, - and $"),
    "selection": checks.matching(_SELECTION, "a place in a message, such as $request.body.action"),
    "public": checks.boolean,
    "connections": checks.integer(1, CONNECTIONS_MOST),
    "in_flight": checks.integer(1, IN_FLIGHT_MOST),
}
_ROUTE: Mapping[str, Check] = {
    "function": checks.matching(_FUNCTION, "the name of a function of the API's namespace, as hello or hello:prod"),
    "response": checks.boolean,
}


def parse(namespace: str, name: str, data: Mapping[str, Any]) -> WebSocketApi:
    """Raises SpecError, which names the key."""
    values = table("", data, _CHECKS, ("routes", "rules"))
    values.setdefault("path", PREFIX + function_label(namespace, name))
    _check_place(namespace, values["path"])
    api = WebSocketApi(namespace, name, routes=_routes(data.get("routes")), rules=_rules(data.get("rules")), **values)
    if api.max_frame > api.max_message:
        raise SpecError(
            f"a frame ({api.max_frame} bytes) may not be larger than a message ({api.max_message})",
            key="rules.websocket.max_frame",
            hint="raise max_message, or lower max_frame",
        )
    return api


def _check_place(namespace: str, path: str) -> None:
    """A path begins with a name of its namespace, so that none takes what is another's. Raises SpecError."""
    first = path.removeprefix(PREFIX).partition("/")[0]
    if (first.partition(".")[2] or DEFAULT_NAMESPACE) != namespace:
        raise SpecError(
            f"path must begin as names of the namespace {namespace} do: {PREFIX}{function_label(namespace, 'NAME')}",
            key="path", hint="leave path out for the API's own name",
        )  # fmt: skip


def _routes(written: Any) -> dict[str, MessageRoute]:
    if not isinstance(written, Mapping) or not 1 <= len(written) <= ROUTES:
        raise SpecError(
            f"routes must be a table of 1 to {ROUTES} route keys",
            key="routes",
            hint='such as {"$default": {"function": "hello"}}',
        )
    found = {}
    for key, value in written.items():
        if not _KEY.fullmatch(key):
            raise SpecError(
                f"routes: {key[:80]!r} is no route key: $connect, $disconnect, $default, or a text without $ before it",
                key="routes",
            )
        where = f"routes.{key}"
        values = table(where, {"function": value} if isinstance(value, str) else value, _ROUTE)
        if "function" not in values:
            raise SpecError(f"{where} needs function", key=where)
        if values.get("response") and key in (CONNECT, DISCONNECT):
            raise SpecError(f"{where}.response: there is nobody to answer", key=where, hint="leave response out")
        found[key] = MessageRoute(**values)
    return found


def _rules(written: Any) -> Rules:
    if written is None:
        return NO_RULES
    table("rules", written, {}, rules.KEYS)
    return rules.parse("rules", written)
