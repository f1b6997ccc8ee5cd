"""skopeo against a registry of a test's own: it adds how to reach it and who asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.support.commands import run
from tests.support.recorded_registry import RecordedRegistry


@dataclass(frozen=True)
class Skopeo:
    registry: RecordedRegistry

    def at(self, image: str) -> str:
        """`name:tag` here, as skopeo writes it."""
        return f"docker://{self.registry.host}/{image}"

    def copy(self, source: str, target: str, *options: str) -> str:
        return self("copy", *options, *self.side("src", source), *self.side("dest", target), source, target)

    def read(self, command: str, image: str, *options: str) -> Any:
        """The JSON of `inspect` or `list-tags`."""
        return json.loads(self(command, *self.access(), *options, self.at(image)))

    def side(self, side: str, image: str) -> list[str]:
        """Options for one side of a copy, where that is this registry."""
        if not image.startswith("docker:"):
            return []
        return [option.replace("--", f"--{side}-", 1) for option in self.access()]

    def access(self) -> list[str]:
        credentials = [] if self.registry.auth == "none" else [f"--creds=admin:{self.registry.token}"]
        return ["--tls-verify=false", *credentials]

    def __call__(self, *words: str, check: bool = True) -> str:
        return run("skopeo", "--insecure-policy", *words, check=check)
