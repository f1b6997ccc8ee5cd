"""`faas dev`: a folder's function, deployed for its developer alone at each save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from faas.cli.options import pass_session
from faas.cli.session import Session
from faas.cli.spec_options import given, spec_options
from faas.spec import NAME_PATTERN


@click.command()
@click.argument(
    "folder", required=False, metavar="[DIR]", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--as", "who", default="", metavar="WHO", help="Call the function NAME--dev-WHO, not after your token.")
@click.option("--namespace", default="default", show_default=True, help="The function's namespace.")
@spec_options
@pass_session
def dev(session: Session, /, folder: Path | None, who: str, namespace: str, **parameters: Any) -> None:
    """Run DIR's function (this folder's where none is named) as NAME--dev-WHO, and its new code at each save.

    Prints the URL, then what the function writes, until Ctrl-C; then it is gone. The function NAME itself, its
    revisions and its aliases stay as they are. Takes the flags of faas push.
    """
    if not NAME_PATTERN.fullmatch(namespace):
        raise click.BadParameter(f"{namespace!r} is no namespace: a-z, 0-9 and -", param_hint="--namespace")
    from faas.cli.dev_loop import DevLoop

    session.run(DevLoop(session, folder, given(parameters), namespace, who).run())
