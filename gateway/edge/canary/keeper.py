"""`CanaryKeeper`: canaries begin, change and end; those that do worse than they may are taken back.

Each change is committed before calls see it. What was seen of a canary's calls is in memory: a restart looks anew.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from faas.auth import token_in
from faas.background import Background
from faas.errors import Conflict, InvalidInput, NotFound
from faas.metrics import Metrics
from faas.protocol import Revision
from faas.state.session import Transaction
from gateway.deploy import Also, Deployer
from gateway.edge.canary import rule
from gateway.edge.canary.canaries import Canaries, Tripped
from gateway.edge.canary.rule import Canary
from gateway.router import FunctionState, Router
from gateway.store import canaries as store

log = logging.getLogger("faas.canary")

TICK_SECONDS = 1.0


class CanaryKeeper:
    """`clock` gives Unix time."""

    def __init__(
        self,
        deployer: Deployer,
        router: Router,
        canaries: Canaries,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deployer = deployer
        self._router = router
        self._canaries = canaries
        self._metrics = metrics
        self._clock = clock
        self._background = Background()

    async def start(self, key_file: Path) -> None:
        """`key_file`: what signs cookies; made (mode 0600) where it is missing."""
        self._canaries.key = (await asyncio.to_thread(token_in, key_file)).encode()
        self._background.start(self._run(), "canaries")

    async def stop(self) -> None:
        await self._background.cancel()

    async def put(self, namespace: str, name: str, alias: str, wish: Mapping[str, Any]) -> None:
        """Begin, change or (`weights` is `{}`) end the canary of `alias`. `wish`: `weights`, `sticky`, `override`,
        `rollback`; what is left out stays as it is while the same revision goes on. Raises InvalidInput, NotFound."""
        await self._deployer.change(namespace, name, partial(self._decided, alias=alias, wish=wish))

    def promoted(self, namespace: str, name: str, alias: str) -> int:
        """The revision that `alias` is to lead to, whole, when its canary takes over. Raises NotFound, Conflict."""
        canary = self._deployer.known(namespace, name).canaries.get(alias)
        if canary is None:
            raise NotFound(f"{alias} of {name} has one revision, there is nothing to promote", hint="--weight v7=10")
        if not canary.runs:
            raise Conflict(
                f"v{canary.number} was taken back: {canary.reason}",
                hint=f"faas alias set {name} {alias} v{canary.number}",
            )
        return canary.number

    async def tick(self) -> None:
        """Take back what has tripped. What cannot be written now is tried again."""
        running = {
            canary.id for state in self._router.states() for canary in state.canaries.values() if canary.runs
        }  # fmt: skip
        self._canaries.keep(running)
        for tripped in self._canaries.tripped():
            try:
                await self._take_back(tripped)
            except Exception:
                log.exception("a canary of %s could not be taken back", tripped.route.label)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._canaries.watched:
                await self.tick()

    def _decided(self, state: FunctionState, *, alias: str, wish: Mapping[str, Any]) -> Also:
        if alias not in state.aliases:
            raise NotFound(f"{state.name} has no alias {alias}", hint=f"faas alias set {state.name} {alias} REVISION")
        chosen = rule.weight(wish["weights"])
        if chosen is None:
            return partial(_removed, state, alias)
        number, percent = chosen
        if number not in state.revisions:
            raise NotFound(f"{state.name} has no version {number}", hint="see faas versions")
        if number == state.aliases[alias]:
            raise InvalidInput(
                f"{alias} is v{number} already: the weight is of another revision",
                hint=f"faas alias set {state.name} {alias} REVISION moves it",
            )
        _check_asks(state.revisions[state.aliases[alias]], state.revisions[number])
        before = state.canaries.get(alias)
        if before is None or before.number != number or not before.runs:
            before = Canary(secrets.token_hex(8), number, percent, began_at=self._clock())
        return partial(_written, state, alias, dataclasses.replace(before, percent=percent, **_options(wish)))

    async def _take_back(self, tripped: Tripped) -> None:
        key = tripped.route.revision.key
        alias = tripped.route.qualifier
        ended = dataclasses.replace(tripped.canary, ended_at=self._clock(), reason=tripped.reason)

        def decide(state: FunctionState) -> Also:
            now = state.canaries.get(alias)
            if now is None or now.id != ended.id or not now.runs:
                raise _Gone
            return partial(_written, state, alias, ended)

        try:
            await self._deployer.change(key.namespace, key.function, decide)
        except (_Gone, NotFound):
            return
        self._metrics.canary_rollbacks.labels(tripped.route.label).inc()
        log.warning(
            "canary v%d of %s:%s was taken back: %s", ended.number, tripped.route.label, alias, tripped.reason,
        )  # fmt: skip


class _Gone(Exception):
    """The canary ended meanwhile."""


def _check_asks(stable: Revision, canary: Revision) -> None:
    """Who may call is asked before it is known which of the two it will be. Raises Conflict where they differ."""
    ways = stable.spec.rules.auth, canary.spec.rules.auth
    if ways[0] != ways[1] and all(ways):
        raise Conflict(
            f"v{stable.key.number} and v{canary.key.number} ask callers for different things in [auth]",
            hint="deploy the change of [auth] by itself, then weigh",
        )


def _options(wish: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "sticky" in wish:
        found["sticky"] = rule.sticky(wish["sticky"])
    if "rollback" in wish:
        found["limits"] = rule.limits(wish["rollback"])
    if "override" in wish:
        if not isinstance(wish["override"], bool):
            raise InvalidInput("override must be true or false")
        found["override"] = wish["override"]
    return found


async def _written(state: FunctionState, alias: str, canary: Canary, tx: Transaction) -> None:
    await store.put(tx, state.namespace, state.name, alias, canary)


async def _removed(state: FunctionState, alias: str, tx: Transaction) -> None:
    await store.remove(tx, state.namespace, state.name, alias)
