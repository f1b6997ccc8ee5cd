"""Where pip looks on this machine, and with what: its configuration files, its variables, the options of a list.

pip itself merges its files and variables (`pip config list`); a list's own options win, as with pip.
"""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faas.errors import Unavailable
from faas.settings import environment_for

ASK_SECONDS = 60.0
PYPI = "https://pypi.org/simple"
_ORDER = ("global.", "install.", ":env:.")  # the later wins
_TRUE = ("1", "true", "yes", "on", "t", "y")


@dataclass(slots=True)
class PipSettings:
    """`arguments` are what pip in another place should be given as they are; the rest says how to reach indexes."""

    index: str = PYPI
    extra: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    no_index: bool = False
    trusted: set[str] = field(default_factory=set)
    cert: str = ""
    client_cert: str = ""
    proxy: str = ""
    seconds: float = 15.0
    constraints: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    @property
    def indexes(self) -> list[str]:
        return [] if self.no_index else [self.index, *self.extra]

    def option(self, name: str, value: str) -> bool:
        """An option of a requirements file, without its dashes; whether it was one of where to look."""
        if name in ("i", "index-url", "pypi-url"):
            self.index = value
        elif name == "extra-index-url":
            self.extra.append(value)
        elif name in ("f", "find-links"):
            self.links.append(value)
        elif name == "no-index":
            self.no_index = True
        elif name == "trusted-host":
            self.trusted.add(value)
        else:
            return False
        return True


def ask(folder: Path, names: tuple[str, ...], prefixes: tuple[str, ...]) -> PipSettings:
    """Blocking. pip's settings as it sees them in `folder`, with these variables. Raises Unavailable."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    env = environment_for(names, prefixes)
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=ASK_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"pip does not tell its settings: {error}") from None
    if done.returncode:
        raise Unavailable(f"pip does not tell its settings: {done.stderr.strip()[-500:]}")
    return parse(done.stdout.splitlines())


def parse(lines: Sequence[str]) -> PipSettings:
    """Lines such as `global.index-url='https://…'`."""
    rows: dict[str, dict[str, str]] = {section: {} for section in _ORDER}
    for line in lines:
        key, _, value = line.partition("=")
        section = next((section for section in _ORDER if key.startswith(section)), None)
        if section is not None:
            rows[section][key.removeprefix(section)] = str(ast.literal_eval(value))
    merged: dict[str, str] = {}
    for section in _ORDER:
        merged.update(rows[section])
    return _settings(merged)


def _settings(said: Mapping[str, str]) -> PipSettings:
    made = PipSettings(
        index=said.get("index-url") or said.get("index_url") or PYPI,
        extra=said.get("extra-index-url", "").split(),
        links=said.get("find-links", "").split(),
        no_index=said.get("no-index", "").lower() in _TRUE,
        trusted=set(said.get("trusted-host", "").split()),
        cert=said.get("cert", ""),
        client_cert=said.get("client-cert", ""),
        proxy=said.get("proxy", ""),
        constraints=shlex.split(said.get("constraint", "")),
    )
    seconds = said.get("default-timeout") or said.get("timeout") or ""
    if seconds.replace(".", "", 1).isdigit():
        made.seconds = float(seconds)
    for name in ("no-binary", "only-binary"):
        for value in said.get(name, "").split():
            made.arguments += [f"--{name}", value]
    for name in ("pre", "prefer-binary", "require-hashes"):
        if said.get(name, "").lower() in _TRUE:
            made.arguments.append(f"--{name}")
    return made
