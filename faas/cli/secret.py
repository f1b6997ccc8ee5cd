"""`faas secret set|ls|rm|rotate-key`: secrets of functions. A value goes to the server and is never shown again."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from faas import secret as secrets
from faas.cli.options import completing, full_name, pass_session
from faas.cli.output import Column, Json, age, at_terminal, note, output_option, show
from faas.cli.session import Session
from faas.errors import FaasError, InvalidInput

STDIN = "-"
COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("VERSION", lambda s: s["version"]),
    ("STATE", lambda s: s["state"]),
    ("USED BY", lambda s: ", ".join(s["functions"])),
    ("SET BY", lambda s: s["set_by"]),
    ("AGE", lambda s: age(s["set_at"])),
)


complete_secrets = completing(lambda client: client.secrets())


@click.group()
def secret() -> None:
    """Secrets of functions: in their environment, and as files of /run/secrets."""


@secret.command("set")
@click.argument("name", shell_complete=complete_secrets)
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Take the value from there, byte for byte.",
)
@click.option("--now", is_flag=True, help="Replace running instances, new ones first; else each keeps what it has.")
@pass_session
def secret_set(session: Session, name: str, file: str | None, now: bool) -> None:
    """Set the secret NAME, or NAME.NAMESPACE outside `default`.

    The value is asked for, or comes from a file, or from standard input, there without the end of its last line. It is
    text of at most 64 KB; what is none goes in as base64.
    """
    try:
        value = secrets.checked_value(_value(file)).reveal()
    except ValueError as error:
        raise InvalidInput(f"the value must be {error}") from None

    async def work() -> Json:
        async with session.client() as client:
            return await client.set_secret(name, value, now=now)

    made = session.run(work())
    note(f"version {made['version']}; used by {', '.join(made['functions']) or 'no function yet'}")
    for one in made["replaced"]:
        note(f"{one['revision']}: {one['instances']} replaced")
    click.echo(full_name(made))
    if kept := made["kept"]:
        raise FaasError(
            "the secret is set, and some instances keep the old value: "
            + "; ".join(f"{one['revision']}: {one['error']}" for one in kept),
            hint="correct the value and set it again with --now",
        )


def _value(file: str | None) -> str:
    """Raises ValueError where it is no text, FaasError."""
    if file and file != STDIN:
        return _text(_read(Path(file)))
    if not sys.stdin.isatty():
        text = _text(sys.stdin.buffer.read(secrets.VALUE_BYTES + 3))
        return text.removesuffix("\n").removesuffix("\r")
    if not at_terminal():
        raise click.UsageError("nobody is here to ask for the value; pass --file, or write it to standard input")
    return str(click.prompt("Value", hide_input=True, confirmation_prompt=True, err=True))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(secrets.VALUE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError("UTF-8; encode what is not text, as base64 does") from None


@secret.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def secret_ls(session: Session, namespace: str, output: str) -> None:
    """List secrets by name, and which functions use them."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.secrets(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@secret.command("rm")
@click.argument("name", shell_complete=complete_secrets)
@click.option("--force", is_flag=True, help="Also where a function uses it: its next instances will not start.")
@pass_session
def secret_rm(session: Session, name: str, force: bool) -> None:
    """Remove the secret NAME."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_secret(name, force=force)

    session.run(work())
    click.echo(name)


@secret.command("rotate-key")
@pass_session
def secret_rotate_key(session: Session) -> None:
    """Seal all secrets of the server with a new key. Nothing that runs notices."""

    async def work() -> int:
        async with session.client() as client:
            return await client.rotate_secrets_key()

    click.echo(session.run(work()))
