"""Programs of the system by name, also where PATH lacks root's folders (`su` without `-`), and with a deadline."""

from __future__ import annotations

import shutil
import subprocess

from faas.errors import Unavailable

SBIN = "/usr/sbin:/sbin"
TIMEOUT = 10.0  # seconds for one call of ip, nft or modprobe


def find(name: str) -> str | None:
    """The path of a program; None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=SBIN)


def run(command: list[str], text: str = "") -> str:
    """Blocking. Run a network tool with `text` as its input: what it wrote. Raises Unavailable with what it said."""
    try:
        done = _run(command, text)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}", hint="apt-get install iproute2 nftables") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()[:500]}")
    return done.stdout


def attempt(command: list[str]) -> str | None:
    """Blocking. What it wrote; None where it failed or is not installed."""
    try:
        done = _run(command)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    name, *arguments = command
    return subprocess.run([find(name) or name, *arguments], input=text, capture_output=True, text=True, timeout=TIMEOUT)
