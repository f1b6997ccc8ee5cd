"""`faas budget ls|set|rm`: how much a namespace, or one function of it, may use in a month."""

from __future__ import annotations

import click

from faas.cli.failures import visible
from faas.cli.options import full_name, pass_session
from faas.cli.output import Column, Json, local_time, note, output_option, show
from faas.cli.session import Session

UNITS = {"cost": "", "gb_seconds": " GB-seconds", "requests": " requests"}


def _named(budget: Json) -> str:
    return full_name({"name": budget["name"], "namespace": budget["namespace"]})


def _amount(budget: Json, value: float) -> str:
    unit = next(unit for unit in UNITS if budget.get(unit) is not None)
    return f"{value:,.2f} {budget['currency']}" if unit == "cost" else f"{value:,.15g}{UNITS[unit]}"


def _limit(budget: Json) -> float:
    return float(next(budget[unit] for unit in UNITS if budget.get(unit) is not None))


COLUMNS: tuple[Column, ...] = (
    ("NAME", _named),
    ("OF", lambda b: b["function"] or f"all of {b['namespace']}"),
    ("LIMIT", lambda b: _amount(b, _limit(b))),
    ("USED", lambda b: f"{b['used_percent']:g} %"),
    ("STATE", lambda b: b["state"]),
    ("WARNS AT", lambda b: f"{b['warn']} %"),
    ("THROTTLES", lambda b: b["throttle"]),
    ("BEGINS ANEW", lambda b: local_time(b["resets_at"])),
)


def summary(budget: Json) -> str:
    """One line: how a budget stands."""
    text = f"budget {_named(budget)}: {budget['used_percent']:g} % of {_amount(budget, _limit(budget))} used"
    if budget["state"] == "exceeded" and budget["throttle"]:
        return visible(f"{text}; calls are refused until {local_time(budget['resets_at'])}")
    return visible(text if budget["state"] == "ok" else f"{text}: {budget['state']}")


@click.group()
def budget() -> None:
    """How much a namespace, or one function of it, may use in a month (UTC)."""


@budget.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def budget_ls(session: Session, namespace: str, output: str) -> None:
    """List budgets with what is used of them."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.budgets(namespace)

    show(output, session.run(fetch()), COLUMNS, _named)


@budget.command("set")
@click.argument("name")
@click.option("--cost", type=float, help="So much money a month, by the server's price list, nothing free.")
@click.option("--gb-seconds", type=float, help="So many GB-seconds a month.")
@click.option("--requests", type=int, help="So many requests a month.")
@click.option("--function", default="", metavar="NAME", help="Of this function alone; else of the whole namespace.")
@click.option("--warn", type=click.IntRange(1, 100), default=80, show_default=True, help="Warn at so many percent.")
@click.option("--throttle", is_flag=True, help="Refuse calls with 429 once it is used up, until the month ends.")
@pass_session
def budget_set(
    session: Session,
    name: str,
    cost: float | None,
    gb_seconds: float | None,
    requests: int | None,
    function: str,
    warn: int,
    throttle: bool,
) -> None:
    """Make or replace the budget NAME, or NAME.NAMESPACE outside `default`: one limit."""
    limits = {"cost": cost, "gb_seconds": gb_seconds, "requests": requests}
    given = {unit: value for unit, value in limits.items() if value is not None}
    if len(given) != 1:
        raise click.UsageError("a budget has one limit: --cost, --gb-seconds or --requests")

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_budget(name, {**given, "function": function, "warn": warn, "throttle": throttle})

    note(summary(session.run(work())))
    click.echo(name)


@budget.command("rm")
@click.argument("name")
@pass_session
def budget_rm(session: Session, name: str) -> None:
    """Delete the budget NAME; what it refused is taken again at once."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_budget(name)

    session.run(work())
    click.echo(name)
