"""The command line in this process, and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faas.cli import main
from tests.support.fake_api import TOKEN, FakeApi


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.rstrip("\n").rpartition("\n")[2]


@dataclass
class CommandLine:
    """`faas …` against a fake API, with a home of its own. A call runs in this process, `process` in another one."""

    api: FakeApi
    home: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for module in ("options", "image_reference"):  # what is completed, and not how fast
            self.monkeypatch.setattr(f"faas.cli.{module}.COMPLETION_SECONDS", 30.0)
        self.env = {
            "FAAS_URL": self.api.url,
            "FAAS_TOKEN": TOKEN,
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "DOCKER_CONFIG": str(self.home / "docker"),
            "FAAS_DATA": str(self.home / "data"),
            "TZ": "UTC",
        }

    def __call__(self, *args: object, code: int = 0) -> Done:
        with self.monkeypatch.context() as patch:
            for name, value in self.env.items():
                patch.setenv(name, value)
            for name in {"FAAS_URL", "FAAS_TOKEN", "FAAS_CA", "NO_COLOR"} - self.env.keys():
                patch.delenv(name, raising=False)
            got = main([str(arg) for arg in args])
        out, err = self.capsys.readouterr()
        assert got == code, err
        return Done(got, out, err)

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAAS_", "NO_COLOR"))}
        return {**kept, **self.env, **(extra or {})}

    def command(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "faas.cli", *map(str, args)]

    def process(self, *args: object, stdin: str = "", **env: str) -> Done:
        done = subprocess.run(
            self.command(*args), env=self.environment(env), input=stdin, capture_output=True, text=True, timeout=60
        )
        return Done(done.returncode, done.stdout, done.stderr)
