"""`faas config`: each setting's value and where it came from."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click

from faas import settings as settings_module
from faas.cli.options import pass_session
from faas.cli.output import Column, Json, as_json, output_option, show
from faas.cli.session import Session
from faas.errors import FaasError

COLUMNS: tuple[Column, ...] = (
    ("SETTING", lambda s: s["name"]),
    ("VALUE", lambda s: s["value"]),
    ("SOURCE", lambda s: s["source"]),
)
HIDDEN = "(hidden)"
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@,\s]*@")


def server_settings(data: Path | None) -> list[Json]:
    """What `faas serve` would start with here. Raises InvalidInput."""
    loaded = settings_module.load({"data": data})
    return [
        {"name": field.name, "value": _plain(getattr(loaded, field.name)), "source": loaded.sources[field.name]}
        for field in fields(loaded)
        if "hidden" not in field.metadata
    ]


def _plain(value: object) -> object:
    """Who writes a login into a URL is refused by the server, and must not be betrayed here."""
    return value if isinstance(value, bool | int) else _LOGIN_IN_URL.sub(f"{HIDDEN}@", str(value))


def client_settings(session: Session) -> list[Json]:
    """Which server commands would talk to."""
    try:
        target = session.target
    except FaasError as error:
        return [{"name": "client.url", "value": "", "source": error.message}]
    return [
        {"name": "client.url", "value": target.url, "source": target.url_source},
        {"name": "client.token", "value": HIDDEN if target.token else "", "source": target.token_source},
        {"name": "client.user", "value": target.user, "source": target.token_source},
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="The server's data folder.")
@click.option("--running", is_flag=True, help="What the running server has, instead of what would be started here.")
@output_option
@pass_session
def config(session: Session, data: Path | None, running: bool, output: str) -> None:
    """Show each setting of a server on this machine, and of the connection, with where it came from."""
    rows = session.run(_running(session)) if running else [*server_settings(data), *client_settings(session)]
    show(output, rows, COLUMNS, lambda s: s["name"])


async def _running(session: Session) -> list[Json]:
    async with session.client() as client:
        answer = await client.settings()
    rows = answer.get("settings", answer) if isinstance(answer, dict) else answer
    if isinstance(rows, dict):
        rows = [{"name": name, **entry} for name, entry in rows.items() if isinstance(entry, dict)]
    if not isinstance(rows, list):
        raise FaasError(f"the server's settings came in an unknown form: {as_json(answer)[:200]}")
    return [{"name": r.get("name", ""), "value": r.get("value", ""), "source": r.get("source", "")} for r in rows]
