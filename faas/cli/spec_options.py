"""Flags for every key of `faas.toml`, made from the spec's own defaults, and back: flags → the file's form."""

from __future__ import annotations

import dataclasses
import enum
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import click

from faas.checks import format_duration
from faas.rules.rules import TABLES as RULE_TABLES
from faas.rules.rules import Rules
from faas.spec import AsyncSpec, FunctionSpec, ScaleSpec
from faas.spec_file import flag_name

TABLES: dict[str, ScaleSpec | AsyncSpec] = {"scale": ScaleSpec(), "async": AsyncSpec()}
HELP = {
    "name": "The function's name.",
    "runtime": "python, python3.x, node, nodeX or provided.",
    "image": "An image instead of a folder: a tag of the registry, an OCI archive, or an image of the local engine.",
    "handler": "module.function, called as handler(event, context).",
    "app": "module:object, an ASGI or WSGI application.",
    "interface": "How the container takes its work; auto finds out.",
    "memory": "MB, 128 to 10240; 1769 MB are one CPU.",
    "timeout": "Seconds that an invocation may take, 1 to 900.",
    "init_timeout": "Seconds that an instance may take to become ready.",
    "queue_timeout": "Seconds that a request may wait for an instance.",
    "concurrency": "Requests at once in one instance; above 1 for http functions.",
    "ephemeral_storage": "MB of /tmp.",
    "writable_root": "Whether the root file system can be written.",
    "network": "What the instance may reach.",
    "port": "Where an http function listens.",
    "health": "A path that must answer 2xx before traffic comes.",
    "public": "Whether anyone may call it, or a token is needed.",
    "follow": "A tag of the function's own repository: a push to it deploys.",
    "command": "Instead of the image's command, in a shell's quoting.",
    "entrypoint": "Instead of the image's entry point, in a shell's quoting.",
    "workdir": "Instead of the image's working directory.",
    "env": "One variable of the environment; may be repeated.",
    "secrets": "One variable that holds a stored secret, by its name; may be repeated.",
    "schedule": "NAME=CRON, or a TOML table {name = …, cron = …}; may be repeated; replaces the file's.",
    "trigger": "FOLDER, or a TOML table {watch = …, pattern = …}; may be repeated; replaces the file's.",
    "websocket": "What is asked of WebSocket connections.",
    "throttle": "How many requests may come in.",
    "circuit": "Calls are refused for a while once too many failed.",
    "auth": "Who may call it: API keys, JWTs, an authorizer function.",
    "route": '"GET /users/{id}", or a TOML table {path = …, methods = …}; may be repeated; replaces the file\'s.',
    "scale.min": "Instances kept ready.",
    "scale.max": "Most instances.",
    "scale.reserved": "Instances kept for this function alone, and then its most; 0 = none.",
    "scale.target": "Share of the concurrency that the autoscaler aims at.",
    "scale.idle": 'How long an unused instance stays, or "learn".',
    "async.retries": "Tries after the first one failed, 0 to 2.",
    "async.max_age": "An event older than this is given up.",
    "async.on_failure": 'A function, or "dlq".',
    "compress": "Whether answers are compressed for clients that take gzip or zstd.",
    "payload": "The format of a Lambda-style function's event and answer.",
    "cors": "Which web pages may call from a browser.",
}
ARRAYS = ("schedule", "trigger", "route")
PAIRS = {"env": "NAME=VALUE", "secrets": "VARIABLE=NAME"}


def keys() -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every key, in the spec's order."""
    for field in dataclasses.fields(FunctionSpec):
        if field.name in ("scale", "asynchronous", "schedules", "triggers", "routes", "rules"):
            continue
        default = {} if field.name in PAIRS else "" if field.default is dataclasses.MISSING else field.default
        yield field.name, default
    for key in ARRAYS:
        yield key, ()
    yield from ((field.name, field.default) for field in dataclasses.fields(Rules))
    for table, value in TABLES.items():
        yield from ((f"{table}.{name}", default) for name, default in dataclasses.asdict(value).items())


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag per key. None, or nothing, means not given."""
    for key, default in reversed(list(keys())):
        command = _option(key, default)(command)
    return command


def parameter(key: str) -> str:
    """The name of a key's Python parameter: `spec_scale_max`."""
    return "spec_" + key.replace(".", "_")


def _option(key: str, default: Any) -> Callable[..., Any]:
    flag, name, about = flag_name(key), parameter(key), HELP[key]
    if key in RULE_TABLES:
        return click.option(flag, name, metavar="TABLE", help=f"{about} A TOML table; its keys win over the file's.")
    if isinstance(default, bool):
        opposite = "--private" if key == "public" else f"--no-{flag[2:]}"
        return click.option(f"{flag}/{opposite}", name, default=None, help=about)
    if isinstance(default, enum.Enum):
        shown = f"{about}  [default: {default.value}]"
        return click.option(flag, name, type=click.Choice([str(c.value) for c in type(default)]), help=shown)
    if key in PAIRS:
        return click.option(flag, name, multiple=True, metavar=PAIRS[key], help=about)
    if isinstance(default, tuple):
        metavar = {"schedule": "NAME=CRON", "trigger": "FOLDER", "route": "METHODS PATH"}.get(key, "WORDS")
        return click.option(flag, name, multiple=True, metavar=metavar, help=about)
    if isinstance(default, timedelta):
        return click.option(flag, name, metavar="TIME", help=f"{about}  [default: {format_duration(default)}]")
    shown = f"{about}  [default: {default}]" if default != "" else about
    kind = {int: click.INT, float: click.FLOAT}.get(type(default), click.STRING)
    return click.option(flag, name, type=kind, help=shown)


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that were given by flags, in the file's form; takes them from a command's parameters."""
    result: dict[str, Any] = {}
    for key, default in keys():
        value = parameters[parameter(key)]
        if value is None or value == ():
            continue
        table, dot, name = key.partition(".")
        if dot:
            result.setdefault(table, {})[name] = value
        else:
            result[key] = _in_file(key, default, value)
    return result


def _in_file(key: str, default: Any, value: Any) -> Any:
    if key in RULE_TABLES:
        return _table(key, value)
    if key in PAIRS:
        return dict(_pair(key, text) for text in value)
    if key in ARRAYS:
        return [_row(key, text) for text in value]
    if isinstance(default, tuple):
        try:
            return [word for text in value for word in shlex.split(text)]
        except ValueError as error:
            raise click.UsageError(f"{flag_name(key)}: {error}") from None
    return value


def _pair(key: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        shown = "" if key == "secrets" else f", not {text!r}"  # it may be a value that somebody took for a name
        raise click.UsageError(f"{flag_name(key)} must be {PAIRS[key]}{shown}")
    return name, value


def _table(key: str, text: str) -> dict[str, Any]:
    """An inline table, as in the file."""
    try:
        row = tomllib.loads(f"row = {text}")["row"]
    except tomllib.TOMLDecodeError as error:
        reason = re.sub(r" \(at .*\)$", "", str(error))
        raise click.UsageError(f"{flag_name(key)} is no TOML table ({reason}): {text}") from None
    if not isinstance(row, dict):
        raise click.UsageError(f"{flag_name(key)} is no TOML table: {text}")
    return row


def _row(key: str, text: str) -> dict[str, Any]:
    """One schedule, trigger or route: a TOML table, or the short form."""
    if text.lstrip().startswith("{"):
        return _table(key, text)
    if key == "trigger":
        return {"watch": text}
    if key == "route":
        methods, _, path = text.strip().rpartition(" ")
        return {"path": path, **({"methods": methods.split(",")} if methods else {})}
    name, equals, cron = text.partition("=")
    if not equals:
        raise click.UsageError(f"--schedule must be NAME=CRON, not {text!r}")
    return {"name": name, "cron": cron.strip()}
