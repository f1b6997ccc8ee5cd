"""`Leaving`: the instances of one revision that are on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from worker.instance import Instance
from worker.janitor import Janitor

UNHEARD_SECONDS = 1.0  # in which a lane process may begin something, and that has its own time limit


class Leaving:
    """`gone` is called when nothing is left of one."""

    def __init__(self, janitor: Janitor, gone: Callable[[], None]) -> None:
        self._janitor = janitor
        self._gone = gone
        self._stopping: dict[Instance, asyncio.TimerHandle | None] = {}  # with when it is killed at the latest
        self._removing: set[Instance] = set()  # of them those that the janitor has

    def __len__(self) -> int:
        return len(self._stopping)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._stopping)

    def stop(self, instance: Instance) -> None:
        """Killed at once, or, where other invocations run in it (of one that is outdated: any), when they have ended or
        their time is over."""
        instance.stop()
        self._stopping[instance] = None
        if instance.executing <= (0 if instance.is_outdated else 1) or instance.outcome is not None:
            self._remove(instance)
        else:  # an upgraded connection has no time limit of its own
            loop, limit = asyncio.get_running_loop(), instance.revision.spec.timeout + UNHEARD_SECONDS
            self._stopping[instance] = loop.call_later(limit, self._remove, instance)

    def released(self, instance: Instance) -> None:
        """A slot of it was given back."""
        if instance.executing == 0 and instance in self._stopping:
            self._remove(instance)

    def remove_all(self) -> None:
        """Whatever runs in them."""
        for instance in list(self._stopping):
            self._remove(instance)

    def _remove(self, instance: Instance) -> None:
        if instance not in self._removing:
            self._removing.add(instance)
            self._janitor.remove(instance, lambda: self._removed(instance))

    def _removed(self, instance: Instance) -> None:
        if (timer := self._stopping.pop(instance, None)) is not None:
            timer.cancel()
        self._removing.discard(instance)
        self._gone()
