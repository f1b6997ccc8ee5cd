"""`faas doctor` as root on the server's own host: what only root sees of what a server has on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from faas.checkup.disk import RUN_BYTES, room
from faas.checkup.finding import MISSING, NOTE, Finding, finding
from worker.drivers.oci.machine import RUN
from worker.network import programs

ENGINE_SECONDS = 2.0
ANSWER_BYTES = 65_536
CVES_2025 = "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881 (ways out of a container)"
LEAST_ENGINES = ((24, 0, 9), (25, 0, 2))  # the first with a runc without CVE-2024-21626


def runtime_holes(version: str) -> str:
    """What else is known of a runtime that says this to `--version`, beside what the server warns of (pure)."""
    found = re.search(r"runc version (\d+)\.(\d+)\.(\d+)(\S*)", version)
    if found is None:
        return ""
    numbers = tuple(map(int, found.groups()[:3]))
    if numbers >= (1, 3, 3) or (1, 2, 8) <= numbers < (1, 3, 0):
        return ""
    if found.group(4):
        return (
            f"{found.group(0)} is a distribution's build: only its changelog says whether {CVES_2025} are fixed in it"
        )
    return f"{found.group(0)} is open to {CVES_2025}: 1.2.8 and 1.3.3 are not"


def engine_holes(version: str) -> str:
    """The same of a Docker Engine's version (pure)."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return ""
    numbers = tuple(map(int, found.groups()))
    if numbers >= LEAST_ENGINES[1] or LEAST_ENGINES[0] <= numbers < (25, 0, 0):
        return ""
    return f"Docker Engine {version} came with a runc that is open to CVE-2024-21626: update it"


def engine_version(path: str) -> str:
    """Blocking. What the engine at this socket says; "" where it says nothing, or is another program than Docker's."""
    connection = http.client.HTTPConnection("localhost", timeout=ENGINE_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(ENGINE_SECONDS)
        connection.sock.connect(path)
        connection.request("GET", "/version")
        told = json.loads(connection.getresponse().read(ANSWER_BYTES))
        names = [str(part.get("Name", "")) for part in told.get("Components") or ()]
        return str(told.get("Version", "")) if "Podman Engine" not in names else ""
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def is_of(data: Path, url: str) -> bool:
    """Whether the server whose API is at `url` is that of this folder."""
    try:
        with open(os.open(data / "server.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            return bool(json.loads(file.read(ANSWER_BYTES))["api"] == url)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def of_the_server(data: Path, driver: str) -> Iterator[Finding]:
    """Blocking. The firewall table, what a crash left, whose lock the data folder has, and room in /run. `driver`: that
    of the running server; "": it does not run."""
    yield from room("run", RUN.parent, least_bytes=RUN_BYTES)
    server_id, nft = hashlib.sha256(str(data).encode()).hexdigest()[:8], programs.find("nft")
    table = nft and programs.attempt(["nft", "list", "table", "inet", f"faas_{server_id}"])
    if driver:
        if driver != "oci":
            return
        told = f"table faas_{server_id} is {'there' if table else 'not there'}"
        fix = "restart the server: without it functions reach this host"
        yield finding("firewall", bool(table), told, fix, needed=bool(nft))
        yield from _strangers(server_id)
        return
    left = [str(RUN / server_id)] if (RUN / server_id).exists() else []
    left += [f"table faas_{server_id}"] if table else []
    if is_held(data / "lock"):
        fix = f"see who: fuser -v {data}/lock; end it, or wait until it has ended"
        yield Finding("lock", MISSING, f"a process holds {data}, and no server answers", fix)
    elif left:
        yield Finding("leftovers", NOTE, f"of a server that crashed: {', '.join(left)}", "its next start removes them")


def _strangers(server_id: str) -> Iterator[Finding]:
    """Other servers' folders in /run, of which none may be running."""
    with contextlib.suppress(OSError):
        others = sorted(one.name for one in RUN.iterdir() if one.name != server_id)
        if others:
            words = f"{RUN} has also {', '.join(others)}: other servers', or what they left"
            yield Finding(
                "leftovers", NOTE, words, "start and stop `faas serve --data` of each: it removes what is its own"
            )


def is_held(lock: Path) -> bool:
    """Whether a process holds the server's lock. Changes nothing."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
