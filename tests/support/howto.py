"""A how-to's page: its blocks of commands and files, and a shell that runs them against a test's server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import RunningServer

SECONDS = 120


@dataclass(frozen=True)
class HowTo:
    """`deploy/howto/NAME.md`, for the server that its `localhost:8080` is."""

    page: Path
    server: RunningServer

    def blocks(self, language: str = "sh") -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.page.read_text(), re.M | re.S)

    def run(self, block: str, folder: Path) -> str:
        """A block as it is written, in `folder`; what it wrote, both streams. Raises AssertionError where it fails."""
        block = block.replace("localhost:8080", self.server.public.partition("//")[2])
        faas = f'faas() {{ {shlex.quote(sys.executable)} -m faas.cli "$@"; }}'
        env = {**os.environ, "FAAS_URL": self.server.api, "FAAS_TOKEN": self.server.token, "NO_COLOR": "1"}
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", f"{faas}\n{block}"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, (block, done.stdout)
        return done.stdout
