"""`faas usage`: what functions used in a month, or since a time, with the bill by the server's price list."""

from __future__ import annotations

import csv
import io
import time

import click

from faas.cli.budget import summary
from faas.cli.logs import since_when
from faas.cli.options import complete_names, full_name, pass_session
from faas.cli.output import FORMATS, Column, Json, as_json, note, show
from faas.cli.session import Session

FIGURES = ("requests", "errors", "cold_starts", "duration_ms", "billed_ms", "mb_ms", "gb_seconds", "max_memory_mb")
COLUMNS: tuple[Column, ...] = (
    ("REQUESTS", lambda u: f"{u['requests']:,}"),
    ("ERRORS", lambda u: f"{u['errors']:,}"),
    ("COLD STARTS", lambda u: f"{u['cold_starts']:,}"),
    ("BILLED", lambda u: f"{u['billed_ms'] / 1000:,.3f} s"),
    ("GB-SECONDS", lambda u: f"{u['gb_seconds']:,.3f}"),
    ("MAX MEMORY", lambda u: f"{u['max_memory_mb']} MB"),
    ("COST", lambda u: f"{float(u['cost']):,.6f}"),
)
KEYS = {"function": ("namespace", "function"), "namespace": ("namespace",), "day": ("day",)}


def _name(item: Json) -> str:
    return str(item.get("day") or (full_name(item) if "function" in item else item.get("namespace", "total")))


@click.command()
@click.argument("name", required=False, default="", metavar="[NAME]", shell_complete=complete_names)
@click.option("--month", default="", metavar="YYYY-MM", help="Another month than this one (UTC).")
@click.option("--since", metavar="WHEN", help="Instead of a month: 7d ago, or a time such as 2030-01-31T12:00.")
@click.option("--by", type=click.Choice(list(KEYS)), default="function", show_default=True, help="What to add up by.")
@click.option("--namespace", default="", help="Only this namespace's.")
@click.option(
    "-o", "--output", type=click.Choice((*FORMATS, "csv")), default="table", show_default=True,
    help="Form of the answer.",
)  # fmt: skip
@pass_session
def usage(session: Session, name: str, month: str, since: str | None, by: str, namespace: str, output: str) -> None:
    """Show what functions used, and what that would cost.

    A month by default, with the bill as a last line: by the server's price list, which is AWS Lambda's public one
    unless the administrator wrote another. It is a comparison: the machine is yours.
    """
    if month and since:
        raise click.UsageError("--month and --since exclude each other")
    start = "" if since is None else f"{since_when(since, time.time()):.3f}"

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.usage(function=name, month=month, since=start, by=by, namespace=namespace)

    found = session.run(fetch())
    if output == "json":
        click.echo(as_json(found))
    elif output == "csv":
        click.echo(_csv(found["usage"], KEYS[by], found["currency"]), nl=False)
    elif output == "name":
        show("name", found["usage"], (), _name)
    else:
        rows = [*found["usage"], found["total"]]
        show("table", rows, ((by.upper(), _name), *COLUMNS), _name)
        for budget in found["budgets"]:
            note(summary(budget))
        click.echo(_bill_line(found))


def _csv(items: list[Json], keys: tuple[str, ...], currency: str) -> str:
    """RFC 4180: a head, a row for each item, exact numbers; no total."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow((*keys, *FIGURES, f"cost_{currency.lower()}"))
    table.writerows([*(item[key] for key in (*keys, *FIGURES)), item["cost"]] for item in items)
    return written.getvalue()


def _bill_line(found: Json) -> str:
    """What it comes to, last."""
    currency, bill = found["currency"], found["bill"]
    if bill is None:
        return f"{float(found['total']['cost']):.6f} {currency} by the price list, no allowance taken off"
    requests, gb_seconds = bill["requests"], bill["gb_seconds"]
    return (
        f"{found['month']}: {float(bill['cost']):.2f} {currency}"
        f" ({requests['free']:,.0f} of {requests['allowance']:,} free requests"
        f" and {gb_seconds['free']:,.3f} of {gb_seconds['allowance']:,} free GB-seconds used)"
    )
