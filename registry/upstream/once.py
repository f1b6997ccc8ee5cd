"""`Once`: what several want at the same time is fetched once, and goes on when they leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from faas.background import Background
from registry.errors import RegistryError
from registry.upstream.errors import UpstreamError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Failure = UpstreamError | RegistryError  # there, or here: no room


class Once(Generic[K, T]):
    def __init__(self, background: Background) -> None:
        self._background = background
        self._running: dict[K, asyncio.Task[T | Failure]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, or of the one for this key that runs already. Raises Failure to all of them."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = self._background.start(_outcome(work), f"fetching {key}")
            task.add_done_callback(lambda _: self._running.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, UpstreamError | RegistryError):
            raise outcome
        return outcome


async def _outcome(work: Callable[[], Awaitable[T]]) -> T | Failure:
    """A failure is a value here: it is its waiters' to tell, and nobody's to log."""
    try:
        return await work()
    except (UpstreamError, RegistryError) as error:
        return error
