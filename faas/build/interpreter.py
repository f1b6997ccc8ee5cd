"""What is known of an interpreter on this machine: asked of itself, in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from faas.errors import InvalidInput, NotFound

ASK_SECONDS = 20.0
_QUESTION = """
import json, sys, sysconfig
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "full": sys.version,
    "executable": sys.executable, "base": sys.base_prefix, "stdlib": sysconfig.get_path("stdlib")}))
"""


@dataclass(frozen=True, slots=True)
class Python:
    """`version` is "3.11"; `full` tells builds apart."""

    version: str
    full: str
    executable: Path
    stdlib: Path


@dataclass(frozen=True, slots=True)
class Node:
    """`version` is the major one, "20"."""

    version: str
    full: str
    executable: Path


def find_python(version: str = "") -> Python:
    """The interpreter of `version` ("3.12"), or the one that runs this server. Raises NotFound.

    A version has one interpreter, whatever else is on PATH: `python` and `python3.11` are one base of one name.
    """
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = sys.executable if version in ("", own) else shutil.which(f"python{version}")
    if found is None:
        raise NotFound(f"this machine has no python{version}", hint=f"apt-get install python{version} on the server")
    told = json.loads(_ask([found, "-I", "-c", _QUESTION]))
    # A virtual environment's interpreter is a link; the base's is the one with the standard library beside it.
    base = Path(told["base"]) / "bin" / f"python{told['version']}"
    executable = base if base.exists() else Path(told["executable"])
    return Python(told["version"], told["full"], executable.resolve(), Path(told["stdlib"]))


def find_node(version: str = "") -> Node:
    """The node on PATH. Raises NotFound where there is none of this major version."""
    found = shutil.which("node")
    if found is None:
        raise NotFound("this machine has no node", hint="apt-get install nodejs on the server")
    full = _ask([found, "--version"]).strip()
    match = re.fullmatch(r"v(\d+)\.\S+", full)
    if match is None or (version and match[1] != version):
        raise NotFound(
            f"this machine's node is {full}, not {version}", hint=f'write runtime = "node{match and match[1]}"'
        )
    # A version manager's shim is a script; node knows where it is itself.
    executable = Path(_ask([found, "-p", "process.execPath"]).strip())
    return Node(match[1], full, executable.resolve())


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise InvalidInput(f"{command[0]} does not run: {done.stderr.strip()[:300]}")
    return done.stdout
