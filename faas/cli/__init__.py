"""The command line. `main` is the entry point; nothing heavy is imported before a command asks for it."""

from __future__ import annotations

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run one command with `args` (the process's own where None) and return its exit code (contract §4)."""
    from faas.cli.root import run  # late, so that `import faas.cli` costs nothing

    return run(args)
