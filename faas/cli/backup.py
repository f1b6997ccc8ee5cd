"""`faas backup`: everything a server keeps, into a folder of backups or a tar file, while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from faas.backup.archive import SUFFIX, ArchiveTarget
from faas.backup.folder import FolderTarget
from faas.backup.manifest import Manifest
from faas.cli.bars import Display, display_of, ticking
from faas.cli.failures import FAILED
from faas.cli.options import pass_session
from faas.cli.output import note, size
from faas.cli.session import Session
from faas.errors import FaasError

if TYPE_CHECKING:
    from faas.backup.target import Target
    from faas.client import Client

RATE_MEGABYTES = 100


class Pace:
    """Holds a stream back to so many bytes a second; 0: no bound."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._until = 0.0

    async def of(self, count: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._until = max(self._until, now) + count / self._rate
            await asyncio.sleep(max(0.0, self._until - now))


@click.command("backup", short_help="Write everything the server keeps to a folder or a .tar file.")
@click.argument("target", metavar="DIR|FILE.tar", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), help="Then remove all backups of the folder but the N newest.")
@click.option("--verify", is_flag=True, help="First read every blob that the folder has already.")
@click.option("--with-secrets-key", is_flag=True, help="The key of the stored secrets too: who has both can read them.")
@click.option(
    "--rate", type=click.IntRange(0), default=RATE_MEGABYTES, show_default=True, metavar="MB/S",
    help="Read no faster; 0: as fast as it goes.",
)  # fmt: skip
@pass_session
@click.pass_context
def backup(
    ctx: click.Context,
    session: Session,
    target: Path,
    keep: int | None,
    verify: bool,
    with_secrets_key: bool,
    rate: int,
) -> None:
    """Write everything the server keeps to DIR, a folder of backups that share their blobs, or to one .tar file, while
    it serves; print the backup's path. A run that was broken off is begun again: blobs that came are there already.

    Databases, images, settings and prices are in it; functions' logs and the administrator's token are not, and the
    secrets' key only with --with-secrets-key.
    """
    if target.suffix == SUFFIX and (keep or verify):
        raise click.UsageError("--keep and --verify are for a folder of backups", ctx)
    with display_of(session) as display:
        made, manifest, gone = session.run(
            _backup(session, display, target, keep, verify, with_secrets_key, rate << 20)
        )
    for name, why in manifest.left_out.items():
        note(f"not in it: {name}: {why}")
    for name in gone:
        note(f"removed {target / name}")
    note(f"{len(manifest.blobs)} blobs, {size(manifest.bytes)} in all")
    click.echo(made)
    if manifest.missing:
        note(f"{len(manifest.missing)} blobs are damaged on the server and not in it: faas image scrub names them")
        ctx.exit(FAILED)


async def _backup(
    session: Session, display: Display, path: Path, keep: int | None, verify: bool, secrets_key: bool, rate: int
) -> tuple[Path, Manifest, list[str]]:
    async with ticking(display), session.client() as client:
        is_archive = path.suffix == SUFFIX
        target: Target = await asyncio.to_thread(ArchiveTarget if is_archive else FolderTarget, path)
        with contextlib.closing(target):
            if verify and isinstance(target, FolderTarget):
                await _verify(target, display)
            made, manifest = await _fetch(client, target, display, secrets_key, Pace(rate))
            gone: list[str] = []
            if keep is not None and isinstance(target, FolderTarget):
                display.stage("prune")
                gone = await asyncio.to_thread(target.prune, keep)
    return made, manifest, gone


async def _verify(target: FolderTarget, display: Display) -> None:
    display.stage("verify")
    done = 0

    def looked(count: int) -> None:
        nonlocal done
        done += count
        display.detail(size(done))

    for name in await asyncio.to_thread(target.verify, looked):
        display.line(f"{name} was damaged: it comes again")


async def _fetch(
    client: Client, target: Target, display: Display, secrets_key: bool, pace: Pace
) -> tuple[Path, Manifest]:
    display.stage("databases")
    begun = await client.begin_backup(secrets_key=secrets_key)
    backup_id, failed = str(begun["id"]), True
    try:
        manifest = Manifest.parse_answer(begun)

        async def paced(kind: str, name: str, label: str, total: int) -> AsyncGenerator[bytes, None]:
            done = 0
            async for chunk in client.backup_bytes(backup_id, kind, name):
                done += len(chunk)
                yield chunk
                display.layer(name, label, done, total, "downloading")
                await pace.of(len(chunk))
            display.layer(name, label, total, total, "done")

        for entry in manifest.files:
            await target.file(entry, paced("files", entry.name, entry.name, entry.size))
        display.stage("blobs")
        lacking = await asyncio.to_thread(target.lacks, manifest.blobs)
        for number, blob in enumerate(lacking, 1):
            display.detail(f"{number} of {len(lacking)}, {len(manifest.blobs) - len(lacking)} already there")
            await target.blob(blob, paced("blobs", str(blob.digest), "", blob.size))
        made = await target.finish(manifest)
        failed = False
    finally:
        with contextlib.suppress(FaasError):  # it ends by itself, too
            await client.end_backup(backup_id, failed=failed)
    return made, manifest
