"""`replaced`: one revision's instances are replaced while it goes on serving: another one is ready first, each time.

Nothing of it is the pool's to know: a new instance is one that is started beside those that are wanted, and the old one
leaves in the very step in which the new one is there, so that there is never one too many.
"""

from __future__ import annotations

import asyncio
import logging

from faas.errors import FaasError, Throttled
from worker.instance import Instance, InstanceState
from worker.revision_pool import RevisionPool

log = logging.getLogger("worker.pool")

SERVING = (InstanceState.IDLE, InstanceState.BUSY)


async def replaced(pool: RevisionPool) -> int:
    """How many were replaced. Where the first new one does not become ready its failure is raised, and all others stay.

    Without memory for one more, an old one goes first; what is needed then starts as ever.
    """
    if pool.retired:
        return 0
    for instance in pool.every_instance:
        if instance.state is InstanceState.STARTING:  # with what was known when it began
            instance.when_ready = lambda old=instance: _leave_soon(pool, old)
    old = [instance for instance in pool.every_instance if instance.state in SERVING]
    if not old:
        return 0
    await _replace(pool, old[0])
    rest = await asyncio.gather(*(_replace(pool, instance) for instance in old[1:]), return_exceptions=True)
    for instance, failure in zip(old[1:], rest, strict=True):
        if isinstance(failure, FaasError):  # the first one was ready, so it is not what all of them have
            log.warning("an instance goes before another one is there: %s", failure, extra={"instance": instance.id})
            _leave(pool, instance)
        elif failure is not None:
            raise failure
    return len(old)


async def _replace(pool: RevisionPool, old: Instance) -> None:
    fresh, ready = pool.start(checking=True)  # as a deploy's: it is not called off where it is one more than wanted
    fresh.when_ready = lambda: _leave(pool, old, reconcile=False)
    try:
        await asyncio.shield(ready)
    except Throttled:
        _leave(pool, old)


def _leave(pool: RevisionPool, instance: Instance, *, reconcile: bool = True) -> None:
    """It gets no more invocations, and ends when it has none."""
    instance.is_outdated = True
    pool.destroy(instance, reconcile=reconcile)


def _leave_soon(pool: RevisionPool, instance: Instance) -> None:
    """When the pool has taken it as ready, which is the step after this one."""
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: loop.call_soon(_leave, pool, instance))
