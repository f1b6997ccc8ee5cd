"""`Reserves`: memory that is kept for one function's instances, by the function's label; how much of it is in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from worker.memory.eviction import C, label_of


class Reserves:
    """Bytes, by label. In use is what is charged and not on its way out: what is ending is kept for the next one."""

    def __init__(self, reserved: Mapping[str, int] | None = None, used: Mapping[str, int] | None = None) -> None:
        self._reserved = dict(reserved or {})
        self._used = dict(used or {})
        self.unused_bytes = sum(map(self.unused, self._reserved))

    def copy(self) -> Reserves:
        return Reserves(self._reserved, self._used)

    def set(self, label: str, size: int) -> None:
        """Keep `size` bytes for it from here on; 0: none."""
        self.unused_bytes -= self.unused(label)
        self._reserved.pop(label, None)
        if size:
            self._reserved[label] = size
        self.unused_bytes += self.unused(label)

    def take(self, label: str, size: int) -> None:
        """So much more is in use; less than 0: it is free again, or will be."""
        self.unused_bytes -= self.unused(label)
        used = self._used[label] = self._used.get(label, 0) + size
        if not used:
            del self._used[label]
        self.unused_bytes += self.unused(label)

    def unused(self, label: str) -> int:
        """What it may have at once, whatever others want."""
        reserved = self._reserved.get(label, 0)
        return max(0, reserved - self._used.get(label, 0)) if reserved else 0

    def kept_from(self, label: str) -> int:
        """What is kept for all others and not in use."""
        return self.unused_bytes - self.unused(label)

    def others(self, label: str) -> int:
        """What is kept for all others, in use or not."""
        return sum(self._reserved.values()) - self._reserved.get(label, 0)

    def beside(self, pinned: Mapping[str, int]) -> int:
        """What stays reserved where only `pinned`, by label, is in use."""
        return sum(max(0, size - pinned.get(label, 0)) for label, size in self._reserved.items())

    def beyond(self, resting: Iterable[C]) -> list[C]:
        """Those that lie beyond what is reserved for their function, the longest unused first: only they make room for
        others."""
        spare = {label: self._used.get(label, 0) - size for label, size in self._reserved.items()}
        found: list[C] = []
        for charge in sorted(resting, key=lambda charge: charge.rested_at):
            label = label_of(charge.owner)
            if label in spare:
                if spare[label] < charge.size:
                    continue
                spare[label] -= charge.size
            found.append(charge)
        return found
