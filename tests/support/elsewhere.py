"""Work in a thread of its own that ends with it: what it unshares or enters dies with the thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_throwaway_thread(work: Callable[[], T]) -> T:
    """Blocking. What `work` returned; what it raised is raised."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # carried to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="elsewhere", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
