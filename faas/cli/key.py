"""`faas key create|ls|rotate|plan|revoke`: API keys of those who call functions."""

from __future__ import annotations

import click

from faas.cli.options import complete_names, completing, full_name, pass_session
from faas.cli.output import Column, Json, age, local_time, note, output_option, show
from faas.cli.session import Session

COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("ID", lambda k: k["id"]),
    ("FUNCTIONS", lambda k: ", ".join(k["functions"]) or "all"),
    ("PLAN", lambda k: k.get("plan")),
    ("STATE", lambda k: k["state"]),
    ("SECRETS", lambda k: len(k["secrets"])),
    ("LAST USED", lambda k: local_time(k["last_used_at"]) if k.get("last_used_at") else "never"),
    ("EXPIRES", lambda k: local_time(k["expires_at"]) if k.get("expires_at") else "never"),
    ("AGE", lambda k: age(k.get("created_at"))),
)


complete_keys = completing(lambda client: client.keys())
complete_plans = completing(lambda client: client.plans())


@click.group()
def key() -> None:
    """API keys: who may call which functions, with X-Api-Key."""


@key.command("create")
@click.argument("name")
@click.option("--namespace", default="default", show_default=True, help="Of which namespace's functions.")
@click.option(
    "--function",
    "functions",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_names,
    help="Only this function; may be repeated. Else all of the namespace.",
)
@click.option("--plan", default="", help="The usage plan that it counts against.")
@click.option("--expires", default="", metavar="TIME", help='When it ends by itself: "90d". Else never.')
@pass_session
def key_create(
    session: Session, name: str, namespace: str, functions: tuple[str, ...], plan: str, expires: str
) -> None:
    """Make an API key and print it. It is shown this once: the server keeps only its hash."""
    wish = {"namespace": namespace, "functions": list(functions), "plan": plan, "expires": expires}

    async def work() -> Json:
        async with session.client() as client:
            return await client.create_key(name, **{k: v for k, v in wish.items() if v})

    made = session.run(work())
    note(f"send it as X-Api-Key; keep it, it is not shown again (id {made['id']})")
    click.echo(made["key"])


@key.command("ls")
@click.option("--namespace", default="", help="Only this namespace's.")
@output_option
@pass_session
def key_ls(session: Session, namespace: str, output: str) -> None:
    """List API keys; what opens is nowhere."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            return await client.keys(namespace)

    show(output, session.run(fetch()), COLUMNS, full_name)


@key.command("rotate")
@click.argument("name", shell_complete=complete_keys)
@click.option("--overlap", default="24h", show_default=True, metavar="TIME", help="How long the old one still opens.")
@pass_session
def key_rotate(session: Session, name: str, overlap: str) -> None:
    """Make a new secret for the key NAME and print it, this once; the old one opens until the overlap ends."""

    async def work() -> Json:
        async with session.client() as client:
            return await client.rotate_key(name, overlap)

    made = session.run(work())
    if ends := made.get("previous_expires_at"):
        note(f"the old one opens until {local_time(ends)}")
    else:
        note("the old one opens nothing any more")
    click.echo(made["key"])


@key.command("plan")
@click.argument("name", shell_complete=complete_keys)
@click.argument("plan", required=False, shell_complete=complete_plans)
@click.option("--none", "no_plan", is_flag=True, help="It counts against no plan any more.")
@pass_session
def key_plan(session: Session, name: str, plan: str | None, no_plan: bool) -> None:
    """Have the key NAME count against the usage plan PLAN, from its next request on. The key stays what it is."""
    if (plan is not None) == no_plan:
        raise click.UsageError("name a PLAN, or --none")

    async def work() -> Json:
        async with session.client() as client:
            return await client.put_key_plan(name, plan or "")

    changed = session.run(work())
    note(f"it counts against {changed['plan']}" if changed.get("plan") else "it counts against no plan")
    click.echo(name)


@key.command("revoke")
@click.argument("name", shell_complete=complete_keys)
@pass_session
def key_revoke(session: Session, name: str) -> None:
    """Make an API key worthless at once, both secrets of it."""

    async def work() -> None:
        async with session.client() as client:
            await client.revoke_key(name)

    session.run(work())
    click.echo(name)
