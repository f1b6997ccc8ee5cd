"""Why a function is not ready: from observations to conditions, purely."""

from __future__ import annotations

from typing import Any

import pytest

from faas.protocol import Failure, Health, RevisionStats
from gateway.conditions import Deploy, Observed, Severity, Status, conditions, worst
from tests.support.data_path import revision

NOW = 1_800_000_000.0
IDLE = RevisionStats(idle=1)
FAILED = Failure(NOW, 1, "i1", "Runtime.InitError", "No module named 'x'", "add it to requirements.txt")
LOST = Failure(NOW, 1, "i1", "Sandbox.Timedout", "Task timed out", request_id="r-1")
NO_MEMORY = Failure(NOW, 1, "i1", "Throttled", "no memory was free")
LOOP = Health(10, 9, NOW - 60, FAILED, 0, (FAILED,))


def seen(**changes: Any) -> Observed:
    spec = {key: changes.pop(key) for key in ("memory", "scale", "follow") if key in changes}
    return Observed("hello", revision(**spec), NOW - 3600)._replace(**changes)


CASES: dict[str, tuple[dict[str, Any], bool, str, str, float | None]] = {
    # name: what is seen, whether it is ready, the worst reason, a part of what to do, since when
    "maintenance": ({"maintenance": (NOW - 9, "soon back")}, False, "Maintenance", "maintenance off hello", NOW - 9),
    "of all": (
        {"maintenance": (NOW, "x"), "maintenance_of_all": True}, False, "Maintenance", "maintenance off --all", NOW,
    ),
    "image gone": ({"image_problem": "there is no image"}, False, "ImageGone", "faas rollback hello", None),
    "secret": ({"missing_secrets": ("db",)}, False, "SecretMissing", "faas secret set db", None),
    "crash loop": ({"health": LOOP}, False, "CrashLoop", "requirements.txt", NOW - 60),
    "a loop beside one that serves": ({"health": LOOP, "stats": IDLE}, True, "CrashLoop", "--instance i1", NOW - 60),
    "one start": ({"health": Health(1, 1, NOW, FAILED)}, True, "Runtime.InitError", "requirements.txt", NOW),
    "two starts": ({"health": Health(2, 2, NOW, FAILED)}, False, "Runtime.InitError", "requirements.txt", NOW),
    "no memory": ({"health": Health(waiting_for_memory=2)}, False, "NoMemory", "memory_budget", None),
    "no memory for a check": ({"health": Health(1, 1, NOW, NO_MEMORY)}, False, "NoMemory", "memory_budget", NOW),
    "no memory for more": ({"health": Health(waiting_for_memory=2), "stats": IDLE}, True, "NoMemory", "faas top", None),
    "never fits": ({"memory": 2048, "memory_budget_bytes": 1 << 30}, False, "NeverFits", "lower memory", None),
    "circuit open": (
        {"circuit": "open", "health": Health(failures=(LOST,))}, False, "CircuitOpen", "--request-id r-1", None,
    ),
    "circuit half-open": ({"circuit": "half-open"}, True, "CircuitHalfOpen", "", None),
    "budget": ({"budget": ("team", NOW + 9)}, False, "BudgetReached", "faas budget set team", None),
    "min": ({"scale": {"min": 2}, "stats": IDLE}, True, "MinimumNotReached", "faas top", None),
    "failed deploy": (
        {"failed_deploy": Deploy(NOW - 5, "InitFailed", "no handler", "name it"), "stats": IDLE},
        True, "DeployFailed", "name it", NOW - 5,
    ),
    "not reserved": ({"scale": {"reserved": 2}, "reservation_missing": True}, True, "NotReserved", "memory_", None),
    "folder": ({"folder_problems": ("/srv/x is not there",)}, True, "FolderProblem", "trigger ls", None),
    "follow": ({"follow": "prod", "follow_error": (NOW, "no entry point")}, True, "FollowFailed", "push", NOW),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_thing_that_is_wrong_is_named_with_its_beginning_and_what_to_do(name: str) -> None:
    changes, is_ready, reason, action, since = CASES[name]
    ready, *others = conditions(seen(**changes))
    assert (ready.type, ready.status) == ("Ready", Status.TRUE if is_ready else Status.FALSE)
    bad = worst(others)
    assert bad is not None
    assert (bad.reason, bad.since) == (reason, since)
    assert action in bad.action
    assert bad.message
    assert is_ready or (ready.reason, ready.since, ready.action) == (bad.reason, bad.since, bad.action)


def test_a_function_without_instances_is_ready_and_says_that_this_is_fine() -> None:
    ready, *others = conditions(seen())
    assert (ready.status, worst(others)) == (Status.TRUE, None)
    active = next(one for one in others if one.type == "Active")
    assert (active.status, active.reason, active.severity) == (Status.FALSE, "ScaledToZero", Severity.INFO)
    assert "the next call starts one" in active.message


def test_errors_come_before_warnings_and_both_before_what_is_well() -> None:
    both = seen(budget=("team", NOW), failed_deploy=Deploy(NOW, "InitFailed", "x"), stats=IDLE)
    found = conditions(both)[1:]
    assert [one.reason for one in found[:2]] == ["BudgetReached", "DeployFailed"]
    assert all(not one.is_bad for one in found[2:])


def test_a_minimum_that_is_not_there_says_why_the_last_start_failed() -> None:
    found = conditions(seen(scale={"min": 3}, stats=IDLE, health=LOOP))
    row = next(one for one in found if one.reason == "MinimumNotReached")
    assert row.message.startswith("1 of scale.min = 3")
    assert row.action == "add it to requirements.txt"
