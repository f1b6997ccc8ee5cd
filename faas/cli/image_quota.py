"""`faas image quota ls|set|rm`: how many bytes of images a namespace may hold."""

from __future__ import annotations

import re

import click

from faas.cli.options import pass_session
from faas.cli.output import Column, Json, note, output_option, show, size
from faas.cli.registry import images_of
from faas.cli.session import Session

_SIZE = re.compile(r"(\d{1,15})(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _of(kind: str) -> Column:
    def cell(item: Json) -> str:
        limit = item[f"{kind}_bytes"]
        return f"{size(item['used'][f'{kind}_bytes'])} of {'any' if limit is None else size(limit)}"

    return kind.upper(), cell


COLUMNS: tuple[Column, ...] = (("NAMESPACE", lambda i: i["namespace"]), _of("logical"), _of("physical"))


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """`10G` → bytes (1,024 each). Raises click's usage error."""
    if text is None:
        return None
    if (match := _SIZE.fullmatch(text)) is None:
        raise click.BadParameter(f"{text!r} is no size: 500M, 10G, or a number of bytes")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


@click.group()
def quota() -> None:
    """How many bytes of images a namespace may hold."""


@quota.command("ls")
@output_option
@pass_session
def quota_ls(session: Session, output: str) -> None:
    """List the namespaces with what they hold and may hold."""

    async def fetch() -> list[Json]:
        async with images_of(session) as images:
            return await images.quotas()

    show(output, session.run(fetch()), COLUMNS, lambda i: i["namespace"])


@quota.command("set")
@click.argument("namespace")
@click.option(
    "--logical", callback=_bytes, help="As if every repository had its own copy, e.g. 10G; none if not given."
)
@click.option("--physical", callback=_bytes, help="Each blob counted once, e.g. 10G; no such limit if not given.")
@pass_session
def quota_set(session: Session, namespace: str, logical: int | None, physical: int | None) -> None:
    """Limit a namespace; what it holds already stays."""
    if logical is None and physical is None:
        raise click.UsageError("give --logical, --physical or both; faas image quota rm takes a quota away")

    async def work() -> None:
        async with images_of(session) as images:
            await images.put_quota(namespace, {"logical_bytes": logical, "physical_bytes": physical})

    session.run(work())
    click.echo(namespace)


@quota.command("rm")
@click.argument("namespace")
@pass_session
def quota_rm(session: Session, namespace: str) -> None:
    """Take a namespace's quota away."""

    async def work() -> None:
        async with images_of(session) as images:
            await images.remove_quota(namespace)

    session.run(work())
    note(f"{namespace} has no quota any more")
    click.echo(namespace)
