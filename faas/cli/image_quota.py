"""`faas image quota ls|set|rm`: how many bytes of images a namespace may hold."""

from __future__ import annotations

import re
from typing import Any

import click

from faas.cli.image_reference import completing
from faas.cli.options import UNSAID, or_none, pass_session
from faas.cli.output import Column, Json, output_option, show, size
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput
from faas.oci.client import RegistryClient

_SIZE = re.compile(r"(\d{1,15})(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _of(kind: str) -> Column:
    def cell(item: Json) -> str:
        limit = item[f"{kind}_bytes"]
        return f"{size(item['used'][f'{kind}_bytes'])} of {'any' if limit is None else size(limit)}"

    return kind.upper(), cell


COLUMNS: tuple[Column, ...] = (("NAMESPACE", lambda i: i["namespace"]), _of("logical"), _of("physical"))


def _bytes(text: str) -> int:
    """`10G` → bytes, 1,024 each. Raises ValueError."""
    if (match := _SIZE.fullmatch(text)) is None:
        raise ValueError("no size: 500M, 10G, a number of bytes, or none")
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def _namespace(ctx: click.Context, param: click.Parameter, text: str) -> str:
    if "/" in text:
        first = text.partition("/")[0]
        raise click.BadParameter(f"{text} is a repository: quotas are for namespaces, such as {first or 'team'}")
    return text


async def _limited(images: RegistryClient) -> list[str]:
    rows = await images.quotas()
    return [row["namespace"] for row in rows if (row["logical_bytes"], row["physical_bytes"]) != (None, None)]


async def _all(images: RegistryClient) -> list[str]:
    return [row["namespace"] for row in await images.quotas()]


@click.group(short_help="How many bytes namespaces hold, and may hold: ls, set, rm.")
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


@quota.command("set", short_help="Make or change a quota.")
@click.argument("namespace", metavar="NAMESPACE", callback=_namespace, shell_complete=completing(_all))
@click.option(
    "--logical",
    metavar="SIZE|none",
    callback=or_none(_bytes),
    help="As if every repository had its own copy, e.g. 10G.",
)
@click.option("--physical", metavar="SIZE|none", callback=or_none(_bytes), help="Each blob counted once, e.g. 10G.")
@pass_session
def quota_set(session: Session, /, namespace: str, **said: Any) -> None:
    """Limit what the repositories below NAMESPACE/ hold together (those without a slash are in `default`).

    What is not said stays as it is, and none takes a limit away. Images that are there stay.
    """
    wanted = {f"{kind}_bytes": value for kind, value in said.items() if value is not UNSAID}
    if not wanted:
        raise InvalidInput("nothing is said about it", hint="--logical, --physical or both")

    async def work() -> None:
        async with images_of(session) as images:
            rows = {row["namespace"]: row for row in await images.quotas()}
            known = rows.get(namespace, {})
            limits = {key: wanted.get(key, known.get(key)) for key in ("logical_bytes", "physical_bytes")}
            if limits == {"logical_bytes": None, "physical_bytes": None}:
                raise InvalidInput("nothing would be limited", hint=f"faas image quota rm {namespace}")
            await images.put_quota(namespace, limits)

    session.run(work())
    click.echo(namespace)


@quota.command("rm", short_help="Remove a quota.")
@click.argument("namespace", metavar="NAMESPACE", shell_complete=completing(_limited))
@pass_session
def quota_rm(session: Session, namespace: str) -> None:
    """Remove the quota of NAMESPACE: it may hold as much as there is room for."""

    async def work() -> None:
        async with images_of(session) as images:
            await images.remove_quota(namespace)

    session.run(work())
    click.echo(namespace)
