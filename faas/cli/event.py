"""`faas event`: one command per kind of `faas.cli.sample_events`."""

from __future__ import annotations

import secrets
import time
from typing import Any

import click

from faas.cli.output import as_json
from faas.cli.sample_events import SAMPLES, Now, Sample

MOST = 10_000  # of what is counted


def _option(name: str, default: Any, text: str) -> click.Option:
    if isinstance(default, tuple):
        return click.Option([f"--{name}"], type=click.Choice(default), default=default[0], show_default=True, help=text)
    if isinstance(default, list):
        return click.Option([f"--{name}"], multiple=True, help=text)
    kind = click.IntRange(0, MOST) if isinstance(default, int) else click.STRING
    if name == "size":
        kind = click.IntRange(0)
    return click.Option([f"--{name}"], type=kind, default=default, show_default=default != "", help=text)


def _command(name: str, sample: Sample) -> click.Command:
    def run(**options: Any) -> None:
        click.echo(as_json(sample.make(options, Now(time.time(), lambda: secrets.token_hex(16)))))

    params: list[click.Parameter] = [_option(key, *value) for key, value in sample.options.items()]
    return click.Command(name, callback=run, params=params, help=sample.help, short_help=sample.help)


@click.group()
def event() -> None:
    """Print a sample event as AWS's services send it, with the time of now.

    \b
    faas event s3-put --bucket photos --key cat.jpg | faas invoke thumbnail --file -
    """


for _name, _sample in SAMPLES.items():
    event.add_command(_command(_name, _sample))
