"""An API's name on the command line, completed by the shell from the server's list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from faas.cli.options import completing, full_name
from faas.cli.output import Json

F = TypeVar("F", bound=Callable[..., Any])


complete_apis = completing(lambda client: client.apis())


def api_argument(command: F) -> F:
    """NAME: `name` or `name.namespace`."""
    return click.argument("name", metavar="NAME", shell_complete=complete_apis)(command)


def api_of(route: Json) -> str:
    """The API of a route: `name`, or `name.namespace` outside `default`."""
    return full_name({"name": route["api"], "namespace": route["namespace"]})
