"""`faas image retention ls|set|rm|preview|run`: which images stay, and which tags do not move."""

from __future__ import annotations

import click

from faas.cli.bars import staged
from faas.cli.image_reference import completing
from faas.cli.options import UNSAID, or_none, pass_session
from faas.cli.output import Column, Json, as_json, note, output_option, show, size
from faas.cli.registry import images_of
from faas.cli.session import Session
from faas.errors import InvalidInput
from faas.oci.client import RegistryClient


def _kept(rule: Json) -> str:
    parts = []
    if rule["keep_last"] is not None:
        parts.append(f"the last {rule['keep_last']}")
    if rule["keep_days"] is not None:
        parts.append(f"{rule['keep_days']:g} days")
    return " and ".join(parts) or "all"


def _fixed(rule: Json) -> str | bool:
    movable = ", ".join(rule["movable"])
    return f"all but {movable}" if rule["immutable"] and movable else bool(rule["immutable"])


COLUMNS: tuple[Column, ...] = (
    ("PATTERN", lambda r: r["pattern"]),
    ("TAGS KEPT", _kept),
    ("UNTAGGED", lambda r: "default" if r["untagged_days"] is None else f"{r['untagged_days']:g} days"),
    ("IMMUTABLE", _fixed),
)
GOING: tuple[Column, ...] = (
    ("REPOSITORY", lambda g: g["repository"]),
    ("TAG", lambda g: g["tag"]),
    ("DIGEST", lambda g: g["digest"][:19]),
    ("WHY", lambda g: g["why"]),
)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("neither a whole number nor none") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("neither a number nor none") from None


async def _patterns(images: RegistryClient) -> list[str]:
    return [rule["pattern"] for rule in await images.retention_rules()]


async def _offered(images: RegistryClient) -> list[str]:
    return [*await _patterns(images), *await images.repositories()]


@click.group(short_help="Which tags stay or may not move: ls, set, rm, preview, run.")
def retention() -> None:
    """Which tags and images stay in the repositories that a pattern fits, and which tags do not move."""


@retention.command("ls")
@output_option
@pass_session
def retention_ls(session: Session, output: str) -> None:
    """List the rules."""

    async def fetch() -> list[Json]:
        async with images_of(session) as images:
            return await images.retention_rules()

    show(output, session.run(fetch()), COLUMNS, lambda r: r["pattern"])


@retention.command("set", short_help="Make or change a rule.")
@click.argument("pattern", metavar="PATTERN", shell_complete=completing(_offered))
@click.option(
    "--keep-last", metavar="N|none", callback=or_none(_whole), help="So many tags stay, by when they were pushed last."
)
@click.option(
    "--keep-days",
    metavar="DAYS|none",
    callback=or_none(_number),
    help="Tags that were pushed within so many days stay.",
)
@click.option(
    "--untagged-days",
    metavar="DAYS|none",
    callback=or_none(_number),
    help="So long an image without a tag stays; none: 30 days.",
)
@click.option("--immutable/--no-immutable", default=None, help="A tag that is there moves to no other image.")
@click.option("--movable", metavar="TAGS", multiple=True, help="Tags that move all the same, e.g. latest or 'dev-*'.")
@pass_session
def retention_set(session: Session, /, pattern: str, movable: tuple[str, ...], **said: object) -> None:
    """Make or change the rule of PATTERN, such as 'team/*' or team/app.

    What is not said stays as it is, and none takes a number away; --movable may be given several times, and says all of
    them. With --keep-last and --keep-days a tag goes when neither keeps it. What a function needs stays in any case.
    """
    wanted = {key: value for key, value in said.items() if value is not UNSAID}
    if movable or wanted["immutable"] is False:
        wanted["movable"] = list(movable)
    if wanted["immutable"] is None:
        del wanted["immutable"]
    if not wanted:
        raise InvalidInput("nothing is said about it", hint="--keep-last, --keep-days, --untagged-days or --immutable")

    async def work() -> None:
        async with images_of(session) as images:
            known = {row.pop("pattern"): row for row in await images.retention_rules()}
            await images.put_retention_rule(pattern, {**known.get(pattern, {}), **wanted})

    session.run(work())
    if wanted.keys() & {"keep_last", "keep_days", "untagged_days"}:
        note("applied each hour; faas image retention preview shows what would go now")
    click.echo(pattern)


@retention.command("rm", short_help="Remove a rule.")
@click.argument("pattern", metavar="PATTERN", shell_complete=completing(_patterns))
@pass_session
def retention_rm(session: Session, pattern: str) -> None:
    """Remove the rule of PATTERN; a wider one holds then, or none."""

    async def work() -> None:
        async with images_of(session) as images:
            await images.remove_retention_rule(pattern)

    session.run(work())
    click.echo(pattern)


@retention.command("preview", short_help="Show what would go now, and why.")
@output_option
@pass_session
def retention_preview(session: Session, output: str) -> None:
    """Show the tags and images that would go now, why, and how many bytes that would free."""

    async def fetch() -> Json:
        async with staged(session, "preview"), images_of(session) as images:
            return await images.preview_retention()

    found = session.run(fetch())
    if output == "json":
        click.echo(as_json(found))
        return
    going = [*found["tags"], *found["manifests"]]
    show(output, going, GOING, lambda g: f"{g['repository']}{':' if g['tag'] else '@'}{g['tag'] or g['digest']}")
    counts = found["counts"]
    if (unnamed := counts["tags"] + counts["manifests"] - len(going)) > 0:
        note(f"and {unnamed} more")
    note(f"{_summary(counts)}; would free {size(counts['bytes'])}")


@retention.command("run", short_help="Apply the rules, and collect garbage now.")
@output_option
@pass_session
def retention_run(session: Session, output: str) -> None:
    """Apply the rules and collect garbage now; the registry does it each hour by itself."""

    async def work() -> dict[str, int]:
        async with staged(session, "retention"), images_of(session) as images:
            return await images.run_retention()

    counts = session.run(work())
    if output == "json":
        click.echo(as_json(counts))
        return
    note(_summary(counts))
    click.echo(counts["bytes"] if output == "name" else f"freed {size(counts['bytes'])}")


def _summary(counts: Json) -> str:
    return f"{counts['tags']} tags, {counts['manifests']} images, {counts['blobs']} blobs"
