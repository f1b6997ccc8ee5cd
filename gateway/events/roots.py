"""Which folders of the server's machine functions may be given: those below the setting `trigger_roots`, and no others.

Files are read, and written, as the server's user: whatever lies there is every deployer's to see and to replace.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from faas.errors import InvalidInput

_CODE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class TriggerRoots:
    """`allowed`: what the administrator opened. `data`: the server's own folder; it and the installation never are."""

    allowed: tuple[Path, ...]
    data: Path

    def check(self, watch: str) -> None:
        """Raises InvalidInput that says why `watch` may not be watched. Whether it is there is another question."""
        if watch != os.path.normpath(watch) or not watch.startswith("/") or watch.startswith("//"):
            raise InvalidInput(f"trigger.watch must be a plain absolute path without .. or trailing /, not {watch!r}")
        paths, allowed = _both(watch), _both(*self.allowed)
        own = _both(self.data, sys.prefix, sys.base_prefix, _CODE)
        for path in sorted(paths):
            if not any(path.is_relative_to(root) for root in allowed):
                opened = ":".join(map(str, self.allowed)) or "empty"
                raise InvalidInput(
                    f"the folder {path} must not be watched: it is not below trigger_roots, which is {opened}",
                    hint="the server's administrator may add it: "
                    f"trigger_roots in {self.data}/config.toml, FAAS_TRIGGER_ROOTS or --trigger-roots",
                )
            if any(path.is_relative_to(mine) or mine.is_relative_to(path) for mine in own):
                raise InvalidInput(f"the folder {path} must not be watched: the server itself lies there")
            if any(part.startswith(".") for part in path.parts):
                raise InvalidInput(f"the folder {path} must not be watched: it is hidden")


def _both(*paths: str | Path) -> set[Path]:
    """Each path as it is written and as it is, symlinks resolved."""
    return {Path(path) for path in paths} | {Path(os.path.realpath(path)) for path in paths}
