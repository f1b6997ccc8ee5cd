"""`faas serve`: every setting as a flag, made from the settings' own table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from faas import settings as settings_module
from faas.settings import Settings


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per setting. None means not given, so that the environment and the file have their say."""
    for setting in reversed(fields(Settings)):
        if "hidden" in setting.metadata:
            continue
        default = setting.metadata.get("default", "/var/lib/faas as root")
        about = f"{setting.metadata['help'][0].upper()}{setting.metadata['help'][1:]}."
        flag = "--" + setting.name.replace("_", "-")
        if isinstance(default, bool):
            option = click.option(flag, setting.name, is_flag=True, default=None, help=about)
        else:
            option = click.option(
                flag, setting.name, metavar=_metavar(setting.name), help=about, show_default=str(default) or False
            )
        command = option(command)
    return command


def _metavar(name: str) -> str:
    if name.endswith("listen"):
        return "HOST:PORT"
    known = {
        "data": "DIR",
        "trigger_roots": "DIR:DIR",
        "tls_cert": "FILE",
        "tls_key": "FILE",
        "processes": "N",
        "stems": "N",
        "precreated": "N",
    }
    return known.get(name, "URL" if name.endswith("url") else "VALUE")


@click.command()
@setting_options
def serve(**flags: Any) -> int:
    """Run the server until SIGTERM.

    Precedence: flag, then FAAS_… in the environment, then DIR/config.toml, then the default; see faas config.
    """
    settings = settings_module.load(flags)
    from faas.server.main import serve as run  # late: everything that the server needs

    return run(settings)
