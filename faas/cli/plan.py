"""`faas plan ls|set|rm|usage`: how often and how much each API key of a usage plan may call."""

from __future__ import annotations

import click

from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, as_json, local_time, note, output_option, show
from faas.cli.session import Session

PERIODS = ("day", "week", "month")


def _rate(plan: Json) -> str:
    return f"{plan['rate']:g}/s, {plan['burst']} at once" if plan.get("rate") else "any"


def _quota(plan: Json) -> str:
    return f"{plan['quota']:,} a {plan['period']}" if plan.get("quota") else "any"


def _covers(plan: Json) -> str:
    covered = [*plan.get("functions", ()), *(f"api {name}" for name in plan.get("apis", ()))]
    return ", ".join(covered) or f"all of {plan['namespace']}"


COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("RATE", _rate),
    ("QUOTA", _quota),
    ("COVERS", _covers),
)
USAGE: tuple[Column, ...] = (
    ("KEY", lambda row: row["name"] or row["key"]),
    ("USED", lambda row: f"{row['used']:,}"),
    ("LEFT", lambda row: "any" if row["left"] is None else f"{row['left']:,}"),
)


@click.group()
def plan() -> None:
    """How often and how much each API key of a usage plan may call."""


@plan.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def plan_ls(session: Session, namespace: str, output: str) -> None:
    """List usage plans."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.plans(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@plan.command("set")
@click.argument("name")
@click.option("--rate", type=float, help="So many requests a second, of each key.")
@click.option("--burst", type=int, help="So many of them at once; one second's where it is left out.")
@click.option("--quota", type=int, help="So many requests in each period, of each key.")
@click.option("--period", type=click.Choice(PERIODS), default="month", show_default=True, help="The quota's, UTC.")
@click.option("--function", "functions", multiple=True, metavar="NAME", help="For this function; may be repeated.")
@click.option("--api", "apis", multiple=True, metavar="NAME", help="For this API; may be repeated.")
@pass_session
def plan_set(
    session: Session,
    name: str,
    rate: float | None,
    burst: int | None,
    quota: int | None,
    period: str,
    functions: tuple[str, ...],
    apis: tuple[str, ...],
) -> None:
    """Make or replace the usage plan NAME, or NAME.NAMESPACE outside `default`; what was used stays.

    Without --function and --api it is for everything of its namespace.
    """
    if rate is None and quota is None:
        raise click.UsageError("a usage plan has a --rate, a --quota, or both")
    if burst is not None and rate is None:
        raise click.UsageError("--burst goes with --rate")
    limits = {"rate": rate, "burst": burst, "quota": quota}
    wish = {key: value for key, value in limits.items() if value is not None}

    async def work() -> Json:
        async with session.client() as client:
            whole = {**wish, "period": period, "functions": list(functions), "apis": list(apis)}
            return await client.put_plan(name, whole)

    made = session.run(work())
    note(f"each key of {full_name(made)}: rate {_rate(made)}; quota {_quota(made)}")
    click.echo(name)


@plan.command("rm")
@click.argument("name")
@pass_session
def plan_rm(session: Session, name: str) -> None:
    """Delete the usage plan NAME, which no key has any more, with what was used of it."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_plan(name)

    session.run(work())
    click.echo(name)


@plan.command("usage")
@click.argument("name")
@click.option("--key", default="", metavar="KEY", help="Only this key's; its name or its id.")
@output_option
@pass_session
def plan_usage(session: Session, name: str, key: str, output: str) -> None:
    """Show what the plan's keys have used in the period that runs."""

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.plan_usage(name, key)

    found = session.run(fetch())
    if output == "json":
        click.echo(as_json(found))
        return
    show(output, found["usage"], USAGE, lambda row: str(row["name"] or row["key"]))
    if output == "table":
        note(f"since {local_time(found['since'])}; begins anew {local_time(found['resets_at'])}")
