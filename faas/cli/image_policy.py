"""`faas image policy ls|set|rm`: what holds for the repositories that a pattern fits."""

from __future__ import annotations

import click

from faas.cli.image_reference import completing
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, note, output_option, show
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput
from faas.oci.client import RegistryClient

COLUMNS: tuple[Column, ...] = (
    ("PATTERN", lambda p: p["pattern"]),
    ("PUBLIC", lambda p: p["public"]),
    ("SPARSE", lambda p: p["sparse"]),
)


async def _patterns(images: RegistryClient) -> list[str]:
    return [policy["pattern"] for policy in await images.policies()]


async def _offered(images: RegistryClient) -> list[str]:
    return [*await _patterns(images), *await images.repositories()]


@click.group(short_help="Who pulls, and what may be sparse: ls, set, rm.")
def policy() -> None:
    """What holds for repositories by pattern, such as 'team/*'; of several that fit, the one that says most."""


@policy.command("ls")
@output_option
@pass_session
def policy_ls(session: Session, output: str) -> None:
    """List policies."""

    async def fetch() -> list[Json]:
        async with images_of(session) as images:
            return await images.policies()

    show(output, session.run(fetch()), COLUMNS, lambda p: p["pattern"])


@policy.command("set", short_help="Make or change a policy.")
@click.argument("pattern", metavar="PATTERN", shell_complete=completing(_offered))
@click.option("--public/--no-public", default=None, help="Pulled by everybody, without a login.")
@click.option(
    "--sparse/--no-sparse", default=None, help="What a manifest names, layers or platforms, need not be there."
)
@pass_session
def policy_set(session: Session, pattern: str, public: bool | None, sparse: bool | None) -> None:
    """Make or change the policy of PATTERN, such as 'team/*' or team/app; what is not said stays as it is."""
    wanted = {key: value for key, value in (("public", public), ("sparse", sparse)) if value is not None}
    if not wanted:
        raise InvalidInput("nothing is said about it", hint="--public, --no-public, --sparse or --no-sparse")

    async def work() -> None:
        async with images_of(session) as images:
            known = {row.pop("pattern"): row for row in await images.policies()}
            await images.put_policy(pattern, {**known.get(pattern, {}), **wanted})

    session.run(work())
    if public:
        note(f"everybody who reaches the registry may pull {pattern}")
    click.echo(pattern)


@policy.command("rm", short_help="Remove a policy.")
@click.argument("pattern", metavar="PATTERN", shell_complete=completing(_patterns))
@pass_session
def policy_rm(session: Session, pattern: str) -> None:
    """Remove the policy of PATTERN; a wider one holds then, or none."""

    async def work() -> None:
        async with images_of(session) as images:
            await images.remove_policy(pattern)

    session.run(work())
    click.echo(pattern)
