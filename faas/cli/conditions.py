"""Why a function is not ready, on the page of `faas describe` and in the list of `faas ls`."""

from __future__ import annotations

from collections.abc import Iterator

from faas.cli.failures import visible
from faas.cli.options import full_name
from faas.cli.output import Json, age
from faas.log import one_line

REASON_CHARACTERS = 28  # of a list's column
TAIL_LINES = 10  # of what an instance wrote


def readiness(function: Json) -> str:
    """`yes`, `no`, or `unchecked`: it was deployed without a check, and nobody has called it yet."""
    if function.get("ready") is False:
        return "no"
    return "unchecked" if function.get("state") == "unchecked" else "yes"


def short_reason(function: Json) -> str:
    """The one word of it: `faas describe` has the rest."""
    return str(function.get("reason") or "").partition(":")[0][:REASON_CHARACTERS]


def state(function: Json) -> str:
    """`ready`, or `not ready since 3m: CrashLoop`."""
    summary = next((one for one in function.get("conditions") or () if one["type"] == "Ready"), None)
    if summary is None or summary["status"] == "True":
        return str(function.get("state", "-"))
    since = f" since {age(summary['since'])}" if summary.get("since") else ""
    return f"not ready{since}: {summary['reason']}"


def why(function: Json) -> list[str]:
    """What is wrong, each with what to do; and, where nothing runs, that this is as it should be."""
    rows: list[str] = []
    for one in function.get("conditions") or ():
        if one["type"] == "Ready" or one["severity"] == "info" or one["status"] == "True":
            continue
        since = f" ({age(one['since'])} ago)" if one.get("since") else ""
        rows.append(f"{one['reason']}{since}: {one_line(one['message'])}")
        rows += [f"  do: {one_line(line)}" for line in str(one.get("action") or "").splitlines()]
    return rows


def activity(function: Json) -> str:
    """`no instances: the next call starts one`."""
    found = (one for one in function.get("conditions") or () if one["type"] == "Active")
    return next((one_line(one["message"]) for one in found), "")


def failures(function: Json) -> Iterator[str]:
    """The last ones, the newest first, each with the command that shows its log."""
    name = full_name(function)
    for one in function.get("failures") or ():
        shown = f"--request-id {one['request_id']}" if one.get("request_id") else f"--instance {one.get('instance')}"
        yield f"{age(one['at'])} ago  {one['code']}: {one_line(one['message'])}"
        yield f"  faas logs {name} {shown}"


def written(function: Json) -> list[str]:
    """The last lines of the instance that a deploy tried in vain."""
    tail = str((function.get("failed_deploy") or {}).get("log_tail") or "")
    return [f"| {visible(line)}" for line in tail.rstrip("\n").splitlines()[-TAIL_LINES:]]
