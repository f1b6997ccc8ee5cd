"""`faas notify add|ls|rm|test`: who is told of what goes wrong, by a web hook or by e-mail."""

from __future__ import annotations

from pathlib import Path

import click

from faas.checks import parse_duration
from faas.cli.options import completing, full_name, pass_session
from faas.cli.output import Column, Json, age, note, output_option, show
from faas.cli.session import Session
from faas.errors import InvalidInput

KINDS = ("function", "schedule", "dead-letter", "budget", "disk", "certificate", "blob", "backup")
OF_MAIL = ("server", "security", "sender", "user", "password_secret")  # flags that go with --mail
OF_WEBHOOK = ("url", "url_secret", "signing_secret")


def _way(target: Json) -> str:
    if (hook := target.get("webhook")) is not None:
        return str(hook["url"] or f"webhook of the secret {hook['url_secret']}")
    return ", ".join(target["mail"]["to"])


COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("WAY", _way),
    ("OF", lambda t: "everywhere" if t["everywhere"] else t["namespace"]),
    ("ON", lambda t: ",".join(t["on"])),
    ("FIRING", lambda t: t["firing"]),
    ("LAST SENT", lambda t: age(t["sent_at"]) if t["sent_at"] else ""),
    ("ERROR", lambda t: t["error"] or ""),
)
complete_targets = completing(lambda client: client.notifications())


@click.group()
def notify() -> None:
    """Who is told of what goes wrong: once when it begins, again while it lasts, and when it is over."""


def _kinds(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    kinds = [kind.strip() for kind in text.split(",")]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else int(parse_duration(text).total_seconds())
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is {error}") from None


@notify.command("add")
@click.argument("name")
@click.option("--url", default="", help="A web hook: JSON is posted there, signed.")
@click.option("--url-from", "url_secret", default="", metavar="SECRET", help="The same, its URL being a stored secret.")
@click.option("--signed-with", "signing_secret", default="", metavar="SECRET", help="Sign with this stored secret.")
@click.option("--mail", "to", multiple=True, metavar="ADDRESS", help="E-mail to this address; may be repeated.")
@click.option("--server", default="", metavar="HOST[:PORT]", help="The mail server.")
@click.option("--security", type=click.Choice(["starttls", "tls", "none"]), help="To the mail server; starttls.")
@click.option("--from", "sender", default="", metavar="ADDRESS", help="Whom mail is from; else the first --mail.")
@click.option("--user", default="", help="Log in to the mail server as this user.")
@click.option("--password-from", "password_secret", default="", metavar="SECRET", help="With this stored secret.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="Trust the receiver by this CA's file (PEM).")
@click.option("--on", callback=_kinds, metavar="KIND,…", help=f"Only of these: {', '.join(KINDS)}.")
@click.option("--everywhere", is_flag=True, help="Of all namespaces, and of the machine.")
@click.option("--errors", type=click.IntRange(1, 100), help="So many percent of a function's invocations fail; 25.")
@click.option("--repeat", callback=_seconds, metavar="TIME", help="Say it again while it lasts; 4h.")
@pass_session
def notify_add(
    session: Session,
    /,
    name: str,
    to: tuple[str, ...],
    ca: str | None,
    on: list[str] | None,
    everywhere: bool,
    errors: int | None,
    repeat: int | None,
    **flags: str | None,
) -> None:
    """Make or replace the target NAME, or NAME.NAMESPACE outside `default`.

    A new web hook's secret for signatures is printed, this once; --signed-with takes a stored one. Without --everywhere
    it hears of its own namespace: functions, schedules, dead letters and budgets.
    """
    wish = _wished(to, {key: value for key, value in flags.items() if value}, ca)
    given = {"on": on, "errors": errors, "repeat": repeat}
    wish |= {key: value for key, value in given.items() if value is not None} | {"everywhere": everywhere}

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_notification(name, wish)

    made = session.run(work())
    note(f"{full_name(made)} hears of: {', '.join(made['on'])}")
    if secret := made.get("secret"):
        note("what signs its messages, shown once:")
    click.echo(secret or full_name(made))


def _wished(to: tuple[str, ...], flags: dict[str, str], ca: str | None) -> Json:
    """`webhook` or `mail`. Raises click's usage error where flags of both are there, or of none."""
    hook = {key: flags[key] for key in OF_WEBHOOK if key in flags}
    mail = {key: flags[key] for key in OF_MAIL if key in flags}
    if bool(hook) == bool(to or mail):
        raise click.UsageError("a target is a web hook (--url, --url-from) or e-mail (--mail, --server)")
    trusted = {"ca": _read(Path(ca))} if ca else {}
    if hook:
        return {"webhook": {**hook, **trusted}}
    if not to or "server" not in mail:
        raise click.UsageError("e-mail needs --mail and --server")
    return {"mail": {"sender": to[0], **mail, "to": list(to), **trusted}}


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(f"cannot read {path} as PEM") from None


@notify.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def notify_ls(session: Session, namespace: str, output: str) -> None:
    """List targets, what is wrong for each, and whether the last message came through."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.notifications(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@notify.command("rm")
@click.argument("name", shell_complete=complete_targets)
@pass_session
def notify_rm(session: Session, name: str) -> None:
    """Remove the target NAME, and the secret that was made for it."""

    async def work() -> None:
        async with session.client() as client:
            await client.delete_notification(name)

    session.run(work())
    click.echo(name)


@notify.command("test")
@click.argument("name", shell_complete=complete_targets)
@pass_session
def notify_test(session: Session, name: str) -> None:
    """Send NAME a message that says it is a test; an error says why it was not taken."""

    async def work() -> None:
        async with session.client() as client:
            await client.test_notification(name)

    session.run(work())
    click.echo(name)
