"""The namespace that `faas login --namespace` remembers, for every command: in place of `--namespace`'s default, and
behind a NAME that says none (`hello` → `hello.team`; `hello.default` says one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from faas.cli.session import Session
from faas.errors import FaasError

OWN = frozenset({"new", "user", "token", "login", "event"})  # commands whose names and bounds are of no namespace


def remembered() -> str:
    """ "" where nothing is remembered, or no server is known: the command itself says so."""
    context = click.get_current_context(silent=True)
    if context is None:
        return ""
    try:
        return context.ensure_object(Session).target.namespace
    except FaasError:
        return ""


def qualified(name: str, namespace: str) -> str:
    """`name` in `namespace`, unless it says another. A qualifier (`name:v7`) stays behind it."""
    bare, colon, qualifier = name.partition(":")
    if not bare or not namespace or "." in bare:
        return name
    return f"{bare}.{namespace}{colon}{qualifier}"


def with_namespace(command: click.Command) -> click.Command:
    """A command that has --namespace says it there, any other one behind its NAME."""
    of_name = not any(param.name == "namespace" for param in command.params)
    for param in command.params:
        if isinstance(param, click.Option) and param.name == "namespace" and not callable(param.default):
            _remember(param)
        elif isinstance(param, click.Argument) and param.name == "name" and param.callback is None and of_name:
            param.callback = _behind
    if isinstance(command, click.Group):
        for child in command.commands.values():
            with_namespace(child)
    return command


def _remember(option: click.Option) -> None:
    usual: Any = option.default
    if option.show_default is True:
        option.show_default = str(usual)
    option.default = _or(usual)


def _or(usual: Any) -> Callable[[], Any]:
    return lambda: remembered() or usual


def _behind(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    return qualified(value, remembered()) if isinstance(value, str) else value
