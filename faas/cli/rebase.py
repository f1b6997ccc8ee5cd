"""`faas rebase`: functions onto the runtime base as the server makes it now, without their source."""

from __future__ import annotations

import click

from faas.cli.bars import Display, display_of, ticking
from faas.cli.failures import FAILED
from faas.cli.options import complete_names, full_name, pass_session
from faas.cli.output import Column, Json, note, output_option, show
from faas.cli.session import Session
from faas.errors import FaasError

COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("REVISION", lambda r: f"v{r['revision']}" if r.get("revision") else ""),
    ("RESULT", lambda r: r["result"]),
)


@click.command("rebase", short_help="Put functions on the runtime base as it is now.")
@click.argument("name", required=False, metavar="[NAME]", shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="Every function that is stale.")
@click.option("--namespace", default="", help="With --all: only this namespace's functions.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@output_option
@pass_session
@click.pass_context
def rebase(
    ctx: click.Context,
    session: Session,
    name: str | None,
    everything: bool,
    namespace: str,
    dry_run: bool,
    output: str,
) -> None:
    """Put a function, or with --all every stale one, on its runtime base as the server's interpreter and libraries are
    now. Its code and dependencies stay; no source is needed.

    Each becomes a revision that is checked as any other; one that fails stays as it was, and the others go on. `faas
    rollback` goes back.
    """
    if bool(name) == everything:
        raise click.UsageError("name a function, or pass --all", ctx)
    with display_of(session) as display:
        results = session.run(_rebase(session, display, name, namespace, dry_run))
    show(output, results, COLUMNS, full_name)
    if not results and output == "table":
        note("no function is stale")
    if any(result["failed"] for result in results):
        ctx.exit(FAILED)


async def _rebase(session: Session, display: Display, name: str | None, namespace: str, dry_run: bool) -> list[Json]:
    async with ticking(display), session.client() as client:
        names = [name] if name else [full_name(f) for f in await client.functions(namespace) if f.get("stale")]
        results: list[Json] = []
        for number, wanted in enumerate(names, 1):
            display.stage(f"rebase {number}/{len(names)}")
            display.detail(wanted)
            try:
                done = await client.rebase(wanted, dry_run=dry_run)
            except FaasError as error:
                if name:
                    raise
                short, _, space = wanted.partition(".")
                row = {"name": short, "namespace": space or "default", "failed": True}
                results.append({**row, "result": f"failed: {error.message}"})
                continue
            results.append({**done, "failed": False, "result": _said(done, dry_run)})
        return results


def _said(done: Json, dry_run: bool) -> str:
    if done["changed"]:
        return "rebased"
    if not done["stale"]:
        return "up to date"
    return str(done["stale"]) if dry_run else "unchanged"
