"""`faas ls`, `describe`, `rm`, `scale`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from faas.checks import rough_duration
from faas.cli import conditions
from faas.cli.canary import described
from faas.cli.options import full_name, function_argument, pass_session
from faas.cli.output import Column, Json, age, as_json, at_terminal, local_time, note, output_option, show, size
from faas.cli.session import Session
from faas.log import one_line


def _count(function: Json) -> str:
    """`2` instances, `2 (1 starting)`."""
    counts = function.get("instances") or {}
    total = sum(int(n) for n in counts.values())
    starting = counts.get("starting")
    return f"{total} ({starting} starting)" if starting else str(total)


def _made_of(function: Json) -> str:
    """The runtime, or the image without its digest's 64 digits."""
    if function.get("runtime") not in (None, "", "image"):
        return str(function["runtime"]) + (" (stale)" if function.get("stale") else "")
    repository, _, digest = str(function.get("image") or "").partition("@")
    return f"{repository}@{digest.removeprefix('sha256:')[:12]}" if digest else repository


COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("REVISION", lambda f: f"v{f['revision']}" if f.get("revision") else ""),
    ("READY", conditions.readiness),
    ("REASON", conditions.short_reason),
    ("INSTANCES", _count),
    ("MEMORY", lambda f: f"{f.get('memory')} MB"),
    ("IMAGE/RUNTIME", _made_of),
    ("AGE", lambda f: age(f.get("created_at"))),
    ("URL", lambda f: f.get("url")),
)

DEV_COLUMNS: tuple[Column, ...] = (
    ("NAME", full_name),
    ("BY", lambda f: f.get("by")),
    ("AGE", lambda f: age(f.get("since"))),
    ("URL", lambda f: f.get("url")),
)


@click.command()
@click.option("--namespace", default="", help="Only this namespace's functions.")
@click.option("--dev", is_flag=True, help="Those that a faas dev keeps, instead.")
@output_option
@pass_session
def ls(session: Session, namespace: str, dev: bool, output: str) -> None:
    """List functions."""

    async def fetch() -> list[Json]:
        async with session.client() as client:
            if not dev:
                return await client.functions(namespace)
            return [f for f in await client.dev_functions() if namespace in ("", f.get("namespace"))]

    functions = session.run(fetch())
    show(output, functions, DEV_COLUMNS if dev else COLUMNS, full_name)
    if not functions and output == "table" and not dev:
        note("no functions yet: faas new NAME, then faas push NAME")


@click.command()
@function_argument
@output_option
@pass_session
def describe(session: Session, name: str, output: str) -> None:
    """Show everything about a function.

    Values of its environment are left out; `-o json` has them, for administrators.
    """

    async def fetch() -> Json:
        async with session.client() as client:
            return await client.function(name)

    function = session.run(fetch())
    if output == "json":
        click.echo(as_json(function))
    elif output == "name":
        click.echo(full_name(function))
    else:
        show_page(function)


def show_page(function: Json) -> None:
    click.echo(click.style(full_name(function), bold=True))
    for label, value in _page(function):
        click.echo(f"  {label:<12} {value}".rstrip() if label else f"  {value}")


def _needed(function: Json) -> str:
    """What its callers must show."""
    auth = function.get("spec", {}).get("auth") or {"token": True, "key": True}
    words = {"token": "a token", "key": "an API key", "jwt": "a JWT", "authorizer": "its authorizer's word"}
    return f"{' or '.join(word for way, word in words.items() if auth.get(way))} is needed"


def _page(function: Json) -> Iterator[tuple[str, str]]:
    spec: Json = function.get("spec") or {}
    yield "URL", str(function.get("url") or "-") + ("" if function.get("public") else f"  ({_needed(function)})")
    yield "State", conditions.state(function)
    yield from _rows("Why", conditions.why(function))
    yield from _rows("It wrote", conditions.written(function))
    aliases = function.get("aliases") or {}
    also = ", ".join(f"{alias} v{number}" for alias, number in sorted(aliases.items()))
    yield "Revision", f"v{function.get('revision')}" + (f"  ({also})" if also else "")
    for alias, canary in (function.get("canaries") or {}).items():
        yield "Canary", f"{alias}: {described(canary)}"
    yield "Image", str(function.get("image") or "-")
    if follow := function.get("follow"):
        yield "Follows", _followed(follow)
    if function.get("runtime") not in (None, "", "image"):
        yield "Runtime", f"{function['runtime']}  {spec.get('handler') or spec.get('app') or ''}".rstrip()
    if stale := function.get("stale"):
        yield "Stale", f"{stale}: faas rebase {full_name(function)}"
    yield "Interface", str(function.get("interface") or "-")
    yield (
        "Limits",
        (
            f"{function.get('memory')} MB memory, {function.get('timeout')} s, "
            f"{spec.get('ephemeral_storage', '-')} MB /tmp, network {spec.get('network', '-')}"
        ),
    )
    scale = spec.get("scale") or {}
    reserved = scale.get("reserved")
    most = f"{reserved}, reserved" if reserved else scale.get("max", "-")
    yield "Scale", f"{scale.get('min', '-')} to {most}, idle {scale.get('idle', '-')}"
    if circuit := function.get("circuit"):
        yield "Circuit", str(circuit)
    if learned := function.get("learned"):
        yield "Learned", _learned(learned)
    yield "Created", f"{local_time(function.get('created_at'))}, changed {age(function.get('updated_at'))} ago"
    yield from _rows("Env", [f"{name}=***" for name in sorted(spec.get("env") or {})])  # a page is shown around
    secrets = sorted((spec.get("secrets") or {}).items())
    yield from _rows("Secrets", [f"{variable} = {name}" for variable, name in secrets])
    yield from _rows("Schedules", [f"{s['name']}: {s['cron']} {s['timezone']}" for s in spec.get("schedule") or ()])
    yield from _rows("Routes", [_route(r) for r in spec.get("route") or ()])
    yield from _rows("Triggers", [f"{t['watch']}/{t['pattern']}" for t in spec.get("trigger") or ()])
    instances = [_instance(i) for i in function.get("instances_list") or ()]
    yield from _rows("Instances", instances or [conditions.activity(function) or "none"])
    yield from _rows("Failures", list(conditions.failures(function)))


def _followed(follow: Json) -> str:
    """`prod: failed 3m ago, sha256:0123456789ab: why`."""
    words = f"{follow['tag']}: {follow['state']}"
    if follow.get("at"):
        words += f" {age(follow['at'])} ago, {follow.get('digest', '')[:19]}"
    return words + (f": {one_line(follow['error'])}" if follow.get("error") else "")  # the image may have written it


def _learned(learned: Json) -> str:
    """`leaves 1m after a call, is back after 53m, until 1h02m: why`."""
    prewarm, keep = float(learned["prewarm_seconds"]), float(learned["keep_seconds"])
    if prewarm:
        back = f"is back after {rough_duration(prewarm)}, until {rough_duration(prewarm + keep)}"
        words = f"leaves {rough_duration(learned['linger_seconds'])} after a call, {back}"
    else:
        words = f"leaves {rough_duration(max(keep, float(learned['linger_seconds'])))} after a call"
    return f"{words}: {learned['reason']}"


def _route(route: Json) -> str:
    return f"{','.join(route.get('methods') or ['ANY'])} {route.get('host', '')}{route['path']}"


def _rows(label: str, rows: list[str]) -> Iterator[tuple[str, str]]:
    for index, row in enumerate(rows):
        yield ("" if index else label), (f"{'':<12} {row}" if index else row)


def _instance(instance: dict[str, Any]) -> str:
    used = size(float(instance.get("memory_bytes") or 0))
    since = age(instance.get("started_at"))
    return (
        f"{instance.get('id')}  {instance.get('state')}  {since}  {instance.get('invocations', 0)} invocations  {used}"
    )


@click.command()
@function_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def rm(session: Session, name: str, yes: bool) -> None:
    """Delete a function: its revisions, schedules and logs. Its images stay in the registry."""
    if not yes and at_terminal():
        click.confirm(f"delete {name} with all its revisions?", abort=True, err=True)

    async def delete() -> None:
        async with session.client() as client:
            await client.delete(name)

    session.run(delete())
    click.echo(name)


@click.command()
@function_argument
@click.argument("instances", metavar="N", type=click.IntRange(0, 1000))
@pass_session
def scale(session: Session, name: str, instances: int) -> None:
    """Set the number of instances now; the autoscaler goes on from there."""

    async def work() -> int:
        async with session.client() as client:
            return await client.scale(name, instances)

    click.echo(session.run(work()))
