"""`faas image scrub`: check every stored blob and manifest against its digest."""

from __future__ import annotations

import asyncio

import click

from faas.cli.bars import Display, display_of, ticking
from faas.cli.failures import FAILED
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, as_json, note, output_option, show, size
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import Unavailable

POLL_SECONDS = 0.3


def _images(item: Json) -> str:
    """`team/app:v1, other@sha256:0123456789ab`."""
    return ", ".join(f"{i['repository']}:{i['tags'][0]}" if i["tags"] else f"{i['repository']}@{i['digest'][:19]}"
                     for i in item["images"])  # fmt: skip


COLUMNS: tuple[Column, ...] = (
    ("DIGEST", lambda i: i["digest"]),
    ("SIZE", lambda i: size(i["size"]) if i["size"] else None),
    ("NEEDED BY", _images),
)


@click.command("scrub", short_help="Check everything that is stored.")
@click.option("--status", is_flag=True, help="Check nothing now: only say what was found so far.")
@output_option
@pass_session
@click.pass_context
def scrub(ctx: click.Context, session: Session, status: bool, output: str) -> None:
    """Check everything that is stored; what is damaged is listed, and the exit code is 1. A push mends it."""
    with display_of(session) as display:
        found = session.run(_scrub(session, display, begin=not status))
    if output == "json":
        click.echo(as_json(found))
    else:
        last = found["pass"]
        if last is not None:
            note(f"checked {last['checked_blobs']} blobs, {size(last['checked_bytes'])}, "
                 f"and {last['checked_manifests']} manifests")  # fmt: skip
        damaged = [*found["damaged"], *({**m, "size": 0, "images": [m]} for m in found["damaged_manifests"])]
        show(output, damaged, COLUMNS, lambda i: i["digest"])
    if found["damaged"] or found["damaged_manifests"]:
        ctx.exit(FAILED)


async def _scrub(session: Session, display: Display, *, begin: bool) -> Json:
    async with ticking(display), images_of(session) as images:
        found = await images.scrub(begin=begin)
        if not begin:
            return found
        display.stage("scrub")
        while found["pass"]["ended_at"] is None:
            if found["pass"]["bytes"]:  # until it has looked, nobody knows how many
                display.layer("blobs", "blobs", found["pass"]["checked_bytes"], found["pass"]["bytes"], "downloading")
            await asyncio.sleep(POLL_SECONDS)
            found = await images.scrub(begin=False)
            if found["pass"] is None:
                raise Unavailable("the registry was restarted meanwhile", hint="faas image scrub once more")
        display.layer("blobs", "blobs", found["pass"]["checked_bytes"], found["pass"]["bytes"], "done")
        return found
