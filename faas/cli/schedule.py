"""`faas schedule ls|history`."""

from __future__ import annotations

import click

from faas.cli.options import full_name, function_argument, pass_session
from faas.cli.output import Column, Json, local_time, output_option, show
from faas.cli.session import Session


def _last(schedule: Json) -> str:
    last = schedule.get("last") or {}
    return f"{local_time(last.get('fire_time'))} {last.get('status', '')}".strip() if last else ""


COLUMNS: tuple[Column, ...] = (
    ("FUNCTION", full_name),
    ("NAME", lambda s: s["name"]),
    ("CRON", lambda s: s.get("cron")),
    ("TIMEZONE", lambda s: s.get("timezone")),
    ("NEXT", lambda s: local_time((s.get("next") or [None])[0])),
    ("LAST", _last),
)
FIRES: tuple[Column, ...] = (
    ("FIRE TIME", lambda f: local_time(f.get("fire_time"))),
    ("STATUS", lambda f: f.get("status")),
    ("STARTED", lambda f: local_time(f.get("started_at"))),
    ("DURATION", lambda f: f"{f['duration']:.3f} s" if isinstance(f.get("duration"), int | float) else ""),
    ("ERROR", lambda f: f.get("error")),
)


@click.group()
def schedule() -> None:
    """Schedules, written as [[schedule]] in faas.toml."""


@schedule.command("ls")
@click.option("--namespace", default="", help="Only this namespace's schedules.")
@output_option
@pass_session
def schedule_ls(session: Session, namespace: str, output: str) -> None:
    """List schedules with their next fire time and what became of the last one."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.schedules(namespace)

    show(output, session.run(fetch()), COLUMNS, lambda s: f"{full_name(s)}/{s['name']}")


@schedule.command("history")
@function_argument
@click.argument("schedule_name", metavar="SCHEDULE")
@output_option
@pass_session
def schedule_history(session: Session, name: str, schedule_name: str, output: str) -> None:
    """What became of a schedule's past fire times."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.schedule_history(name, schedule_name)

    show(output, session.run(fetch()), FIRES, lambda f: f.get("fire_time"))
