"""`faas new`: a function from a template."""

from __future__ import annotations

from pathlib import Path

import click

from faas.cli.options import pass_session
from faas.cli.output import note
from faas.cli.session import Session
from faas.errors import Conflict
from faas.spec import NAME_PATTERN

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDER = "function-name"
SUFFIX = ".in"  # so that a template's code is nobody's module, and nothing checks or compiles it
RUNTIMES = ("python", "node", "web", "cron", "container", "shell", "provided")
NEXT = {"provided": "make -C {0} && faas push {0}"}  # what must be done before a push, where something must


@click.command()
@click.argument("name")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="python", show_default=True, help="The template.")
@pass_session
def new(session: Session, name: str, runtime: str) -> None:
    """Make the folder NAME with a function that can be pushed as it is.

    \b
    python, node   handler(event, context), as on Lambda
    web            an ASGI application
    cron           a handler that a schedule calls
    container      a Dockerfile; the container listens on $PORT
    shell          a shell script
    provided       a program named `bootstrap` that polls the Runtime API, in C
    """
    folder = Path(name)
    if not NAME_PATTERN.fullmatch(folder.name):
        raise click.BadParameter(
            f"{folder.name!r} is no function name: 1 to 63 of a-z, 0-9 and -, neither first nor last a -",
            param_hint="NAME",
        )
    write(TEMPLATES / runtime, folder)
    note("next: " + NEXT.get(runtime, "faas push {0}").format(folder))
    click.echo(str(folder))


def write(template: Path, folder: Path) -> None:
    """Copy a template. Raises Conflict rather than touch what is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder} is there already", hint="choose another name, or empty it")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(template.iterdir()):
        target = folder / source.name.removesuffix(SUFFIX)
        target.write_text(source.read_text().replace(PLACEHOLDER, folder.name))
