"""`faas alias weight`, also as `faas alias NAME ALIAS --weight v7=10`: a second revision behind an alias."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click

from faas.cli.failures import visible
from faas.cli.options import complete_names, pass_session, revision_number
from faas.cli.output import Json, age, note
from faas.cli.session import Session

_REVISION = re.compile(r"v?\d+")
DEFAULT = "weight"


class AliasGroup(click.Group):
    """What is no subcommand is a function's name: `faas alias NAME ALIAS …`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return DEFAULT, self.commands[DEFAULT], args
        return super().resolve_command(ctx, args)


def described(canary: Json) -> str:
    """`v7 has 10 %, sticky by cookie; back when errors=5%`, or why it was taken back."""
    ((name, percent),) = canary["weights"].items()
    if canary.get("ended_at"):
        return visible(f"{name} was taken back {age(canary['ended_at'])} ago: {canary.get('reason')}")
    text = f"{name} has {percent:g} %"
    if canary.get("sticky"):
        text += f", sticky by {canary['sticky']}"
    if canary.get("rollback"):
        text += f"; taken back at {canary['rollback']}"
    return visible(text)


def _weight(ctx: click.Context, param: click.Parameter, text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    name, equals, percent = text.partition("=")
    try:
        share = float(percent.removesuffix("%"))
    except ValueError:
        share = -1.0
    if not equals or not 0 <= share <= 100:
        raise click.BadParameter(f"{text!r} is none: v7=10, for 10 percent to v7")
    return {f"v{revision_number(name)}": share}


def _named(words: tuple[str, ...]) -> tuple[str, str, int | None]:
    """[NAME] ALIAS [REVISION] → its parts; the name is the folder's `faas.toml`'s where it is left out."""
    rest = list(words)
    number = revision_number(rest.pop()) if len(rest) > 1 and _REVISION.fullmatch(rest[-1]) else None
    if len(rest) == 1:
        try:
            rest.insert(0, str(tomllib.loads(Path("faas.toml").read_text())["name"]))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError):
            raise click.UsageError("name the function: there is no faas.toml with a name here") from None
    if len(rest) != 2:
        raise click.UsageError("faas alias [NAME] ALIAS [REVISION] --weight v7=10")
    return rest[0], rest[1], number


@click.command(DEFAULT)
@click.argument("words", metavar="[NAME] ALIAS [REVISION]", nargs=-1, required=True, shell_complete=complete_names)
@click.option("--weight", callback=_weight, metavar="vN=PERCENT", help="Percent of the calls that go to revision vN.")
@click.option("--sticky", default=None, help="cookie, sub (a JWT's) or header:NAME: who was there stays there.")
@click.option("--override/--no-override", default=None, help="Whether anybody may choose with X-Faas-Revision.")
@click.option("--rollback", default=None, help="Take vN back by itself: errors=5%,latency=1.5x,least=50,window=5m.")
@click.option("--promote", is_flag=True, help="All calls go to the second revision from now on.")
@click.option("--clear", is_flag=True, help="All calls go to the first revision again.")
@pass_session
def weight(
    session: Session,
    words: tuple[str, ...],
    weight: dict[str, float] | None,
    sticky: str | None,
    override: bool | None,
    rollback: str | None,
    promote: bool,
    clear: bool,
) -> None:
    """Give a second revision a share of an alias's calls; REVISION moves the alias itself first.

    NAME may be left out in a function's folder. `faas alias NAME ALIAS …` is the same.
    """
    name, alias, number = _named(words)
    wish: dict[str, Any] = {"sticky": sticky, "override": override, "rollback": rollback}
    wish = {key: value for key, value in wish.items() if value is not None}
    if sum((weight is not None, promote, clear)) > 1 or (wish and weight is None) or (promote and number is not None):
        raise click.UsageError("one of --weight, --promote, --clear; --sticky, --override, --rollback go with --weight")
    if promote:
        wish = {"promote": True}
    elif weight is not None or clear:
        wish["weights"] = weight or {}
    if number is not None:
        wish["revision"] = number
    if not wish:
        raise click.UsageError("say what is to change: REVISION, --weight v7=10, --promote or --clear")

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_alias(name, alias, wish)

    told = session.run(work())
    also = f"; {described(told)}" if told.get("weights") else ""
    note(f"{alias} of {name} is v{told['revision']}{also}")
    click.echo(f"{name}:{alias}")
