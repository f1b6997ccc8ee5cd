"""Programs that tests run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

SECONDS = 60


def run(
    *command: str | Path,
    check: bool = True,
    stdin: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """What it printed, on both streams. Raises AssertionError, with that, where it fails."""
    words = [str(word) for word in command]
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        words, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, env=env, cwd=cwd
    )
    text = done.stdout.decode("utf-8", "replace")
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}\nanswers {done.returncode}: {text}")
    return text
