"""`faas restore`: a backup becomes the data folder of a server that is not running."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from faas.cli.bars import Display, display_of
from faas.cli.options import pass_session
from faas.cli.output import note, size
from faas.cli.session import Session


@click.command("restore", short_help="Make a data folder of a backup.")
@click.argument("source", metavar="DIR|FILE.tar", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="The folder to fill, empty or new; default: the server's."
)
@pass_session
def restore(session: Session, source: Path, data: Path | None) -> None:
    """Make a data folder of a backup: a .tar file, one backup's folder, or a folder of backups, whose newest it is.

    Everything is compared with its digest before anything is written. Then start the server: functions answer as they
    did, queued events run, and a new administrator's token is made.
    """
    from faas.backup.restoring import Restoring
    from faas.backup.source import manifest_of, opened
    from faas.state import schema
    from registry.index.index import MIGRATIONS

    folder = (data or session.settings.data).expanduser().absolute()
    known = {"faas.db": schema.versions(), "registry.db": schema.versions(MIGRATIONS)}
    with display_of(session) as display, opened(source) as backup:
        manifest = manifest_of(backup)
        work = Restoring(backup, manifest, folder, known)
        work.check()
        display.stage("verify")
        work.verify(_bar(display, manifest.bytes))
        display.stage("restore")
        work.run(_bar(display, manifest.bytes))
    note(f"restored the backup of {manifest.created_at}, faas {manifest.version}: {size(manifest.bytes)}")
    for name, why in manifest.left_out.items():
        note(f"not in it: {name}: {why}")
    if any(file.name == "config.toml" for file in manifest.files):
        note(f"{folder / 'config.toml'} decides what the server does, as root: read it before the start")
    if os.geteuid() == 0:
        note("start the server: ./deploy/up, or faas serve")
    click.echo(folder)


def _bar(display: Display, total: int) -> Callable[[int], None]:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        display.layer("backup", "backup", done, total, "downloading" if done < total else "done")

    return told
