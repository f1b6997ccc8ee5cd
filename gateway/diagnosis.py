"""What is known of a function now, gathered from those who know it, for `gateway.conditions`; and how it is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faas.errors import FaasError, ImageUnusable
from faas.protocol import Failure, RevisionKey
from gateway.conditions import Condition, Observed, Status, conditions, worst
from gateway.control.operations import FLAG, TEXT, WHOLE, a_list, an_object, stamp
from gateway.gateway import Gateway
from gateway.router import LIVE, FunctionState, function_label
from gateway.spending import State as Spent
from gateway.spending import Watched
from gateway.store.follows import FollowState, Outcome

IMAGE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Troubles:
    """What few functions have, looked up once for all that an answer tells of. `used_up`: budgets, by namespace."""

    used_up: Mapping[str, list[Watched]]
    circuits: Mapping[RevisionKey, str]
    folders: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def now(cls, gateway: Gateway) -> Troubles:
        used_up: dict[str, list[Watched]] = {}
        for watched in gateway.spending.every():
            if watched.budget.throttle and watched.state is Spent.EXCEEDED:
                used_up.setdefault(watched.budget.namespace, []).append(watched)
        circuits = {key: state.word for key, state in gateway.edge.guards.circuits.states().items()}
        return cls(used_up, circuits, gateway.folders.problems())

    def budget(self, namespace: str, function: str) -> Watched | None:
        """The first one that refuses calls of the function."""
        if not self.used_up:
            return None
        scopes = ((namespace, function), (namespace, ""))
        return next((one for one in self.used_up.get(namespace, ()) if one.scope in scopes), None)


def observed(gateway: Gateway, state: FunctionState, live_since: float, troubles: Troubles) -> Observed:
    """Without a wait: what stands in memory."""
    revision, label = state.revisions[state.aliases[LIVE]], function_label(state.namespace, state.name)
    key = revision.key
    notice = gateway.edge.guards.maintenance.notice(label)
    budget = troubles.budget(state.namespace, state.name)
    return Observed(
        name=label,
        revision=revision,
        live_since=live_since,
        stats=gateway.worker.stats(key),
        health=gateway.worker.health(key),
        failed_deploy=gateway.failed_deploys.of(state.namespace, state.name, key.number),
        circuit=troubles.circuits.get(key, "closed"),
        maintenance=None if notice is None else (notice.since, notice.message),
        maintenance_of_all=notice is not None and notice.function == "*",
        budget=None if budget is None else (budget.label, gateway.spending.month_end),
        reservation_missing=not gateway.path.reservations.holds(state.namespace, state.name, revision.spec),
        missing_secrets=gateway.secrets.missing(state.namespace, revision.spec),
        folder_problems=troubles.folders.get((state.namespace, state.name), ()),
    )


async def looked_into(gateway: Gateway, seen: Observed, follow: Outcome | None) -> Observed:
    """With what takes a look: whether its image is there, and how much memory all may have."""
    usage = await gateway.worker.usage()
    failed = follow is not None and follow.state in (FollowState.FAILED, FollowState.RETRYING)
    return seen._replace(
        image_problem=await _image_problem(gateway, seen.revision.image),
        memory_budget_bytes=usage.budget_bytes,
        follow_error=(follow.at, follow.error) if failed and follow is not None else None,
    )


async def _image_problem(gateway: Gateway, image: str) -> str:
    """An upstream that does not answer says nothing."""
    try:
        async with asyncio.timeout(IMAGE_SECONDS):
            await gateway.images.find(image)
    except ImageUnusable as error:
        return error.message
    except (FaasError, TimeoutError):
        pass
    return ""


def summary(seen: Observed) -> dict[str, Any]:
    """For a list: whether it is ready, and what is wrong, in words; "" where nothing is."""
    found = conditions(seen)
    bad = worst(found[1:])
    return {
        "ready": found[0].status is Status.TRUE,
        "reason": "" if bad is None else f"{bad.reason}: {bad.message}",
    }


def shown(condition: Condition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": condition.status.value,
        "severity": condition.severity.value,
        "reason": condition.reason,
        "message": condition.message,
        "since": stamp(condition.since),
        "action": condition.action,
    }


def failure_shown(failure: Failure) -> dict[str, Any]:
    return {
        "at": stamp(failure.at),
        "revision": failure.revision,
        "instance": failure.instance,
        "code": failure.code,
        "message": failure.message,
        "hint": failure.hint,
        "request_id": failure.request_id,
        "log_tail": failure.log_tail,
    }


def page(seen: Observed) -> dict[str, Any]:
    """For one function: its conditions and its last failures, the newest first, and the deploy that failed."""
    told: dict[str, Any] = {
        "conditions": [shown(one) for one in conditions(seen)],
        "failures": [failure_shown(one) for one in reversed(seen.health.failures)],
    }
    if (failed := seen.failed_deploy) is not None:
        told["failed_deploy"] = {
            "at": stamp(failed.at), "code": failed.code, "message": failed.message, "hint": failed.hint,
            "log_tail": failed.log_tail, "image": failed.image, "by": failed.by, "request_id": failed.request_id,
        }  # fmt: skip
    return told


_TIME = {"type": ["string", "null"], "format": "date-time"}
CONDITION = an_object(
    ("type", "status", "severity", "reason", "message", "since", "action"), type=TEXT,
    status={"type": "string", "enum": ["True", "False", "Unknown"]},
    severity={"type": "string", "enum": ["error", "warning", "info"]}, reason=TEXT, message=TEXT, since=_TIME,
    action=TEXT,
)  # fmt: skip
FAILURE = an_object(
    ("at", "code", "message"), at=_TIME, revision=WHOLE, instance=TEXT, code=TEXT, message=TEXT, hint=TEXT,
    request_id=TEXT, log_tail=TEXT,
)  # fmt: skip
FAILED_DEPLOY = an_object(
    ("at", "code", "message"), at=_TIME, code=TEXT, message=TEXT, hint=TEXT, log_tail=TEXT, image=TEXT, by=TEXT,
    request_id=TEXT,
)  # fmt: skip
PROPERTIES = {
    "ready": FLAG, "conditions": a_list(CONDITION), "failures": a_list(FAILURE), "failed_deploy": FAILED_DEPLOY,
}  # fmt: skip
