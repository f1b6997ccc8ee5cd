"""What a server can say of itself and its machine: `GET /v1/doctor`, for an administrator of everything.

`faas doctor` looks at what only root sees of the machine, and asks here for the rest: also from another machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.checkup.certificates import certificates
from faas.checkup.clock import clock, zones
from faas.checkup.disk import room
from faas.checkup.finding import NOTE, Finding, finding
from faas.checkup.limits import memory, open_files
from faas.errors import FaasError, NotOffered
from faas.oci.reference import Reference
from faas.protocol import Kind, Revision, RevisionKey, RuntimeBase
from faas.spec import Interface, parse
from faas.web import access
from gateway.control.operations import TEXT, Operation, a_list, allow, an_object, answer
from gateway.gateway import GATEWAY, Gateway
from gateway.lanes import living

NAME = "faas-doctor"  # of the function that the look from inside pretends to be
PROBE_SECONDS = 20.0
WAIT_SECONDS = 5.0  # for memory
OUTPUT_BYTES = 65_536
OUTSIDE = "example.com"  # a name for trying names (RFC 2606), and a host that answers
METADATA = "169.254.169.254"  # what clouds tell their machines' secrets at

# Runs inside, where nothing of ours is: what it finds is one line of JSON.
PROBE = r"""
import json, socket, struct, sys
outside, metadata, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def connects(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        return True
    except OSError:
        return False
def answers(server):
    try:
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asking.settimeout(2)
        asking.sendto(struct.pack('>6HBHH', 7, 256, 1, 0, 0, 0, 0, 2, 1), (server, 53))
        return len(asking.recv(4096)) >= 12
    except OSError:
        return False
def lines(path):
    try:
        return open(path).read().splitlines()
    except OSError:
        return []
servers = [line.split()[1] for line in lines('/etc/resolv.conf') if line.startswith('nameserver ')]
routes = [line.split() for line in lines('/proc/net/route')[1:]]
gateways = [socket.inet_ntoa(struct.pack('<L', int(row[2], 16))) for row in routes if row[1] == '00000000']
try:
    found = socket.gethostbyname(outside)
except OSError:
    found = ''
print(json.dumps({
    'servers': servers, 'answering': [server for server in servers if answers(server)], 'resolved': found,
    'outside': bool(found) and connects(found, 443), 'metadata': connects(metadata, 80),
    'host': [gateway for gateway in gateways if connects(gateway, port)],
}))
"""


class Doctor:
    """One look from inside at a time: each takes memory, and a few seconds."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def findings(self, gateway: Gateway) -> list[Finding]:
        settings = {name: str(value) for name, (value, _) in gateway.info.settings.items()}
        usage = await gateway.worker.usage()
        ready = finding("ready", gateway.ready, "it takes work" if gateway.ready else "it starts or stops", "wait")
        inside = await self._inside(gateway)
        own = await asyncio.to_thread(lambda: list(_own(settings)))
        return [ready, *own, memory(usage.budget_bytes), *inside]

    async def _inside(self, gateway: Gateway) -> list[Finding]:
        """What an instance sees of the network."""
        base = next((one for one in await gateway.runtimes.list() if one.reference and one.platforms), None)
        if base is None:
            words = "there is no Python base yet, so nothing to look from"
            return [Finding("sandbox", NOTE, words, "push a function with runtime = python")]
        try:
            async with self._turn, asyncio.timeout(PROBE_SECONDS):
                return list(judged(await _probe(gateway, base)))
        except NotOffered as error:
            return [Finding("sandbox", NOTE, error.message, error.hint)]
        except TimeoutError:
            return [finding("sandbox", False, f"it did not end within {PROBE_SECONDS:g} s", "see the server's log")]
        except FaasError as error:
            return [finding("sandbox", False, error.message, error.hint)]


def _own(settings: dict[str, str]) -> Iterator[Finding]:
    """Blocking: of the server's process and its folder."""
    data = Path(settings.get("data", "."))
    yield from room("disk", data)
    yield from clock(data.glob("*.db*"))
    yield zones()
    yield open_files()
    name = urlsplit(settings.get("public_url", "")).hostname or ""
    cert, key, folder = (settings.get(setting, "") for setting in ("tls_cert", "tls_key", "tls_certs"))
    yield from certificates(cert, key, folder, name)


async def _probe(gateway: Gateway, base: RuntimeBase) -> dict[str, Any]:
    """Raises FaasError."""
    port = str(urlsplit(f"//{gateway.info.api.rpartition('//')[2]}").port or 0)
    reference = Reference.parse(base.reference)
    program = f"/usr/bin/{base.name}"
    entrypoint = [program, "-I", "-S", "-c", PROBE, OUTSIDE, METADATA, port]
    spec = parse({"name": NAME, "entrypoint": entrypoint, "timeout": int(PROBE_SECONDS)})
    image = f"{reference.repository}@{reference.digest}"
    revision = Revision(RevisionKey("default", NAME, 1), spec, image, Interface.HTTP)
    async with gateway.worker.run(revision, Kind.JOB, wait_seconds=WAIT_SECONDS, terminal=True) as running:
        assert running.terminal is not None
        running.terminal.plain()
        said = b""
        while len(said) < OUTPUT_BYTES and (data := await running.terminal.read()):
            said += data
    try:
        found = json.loads(said)
    except ValueError:
        words = said.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise FaasError(f"a look from inside an instance failed: {words[-1][:200]}") from None
    return dict(found)


def judged(seen: dict[str, Any]) -> Iterator[Finding]:
    """What the look from inside means. Pure. No network outside is no fault: some machines are to have none."""
    yield finding("sandbox", True, "an instance starts and runs", "")
    servers, answering = seen["servers"], seen["answering"]
    words = f"{', '.join(servers) or 'no name server'}"
    if servers:
        words += " answers" if answering == servers else f", of which {', '.join(answering) or 'none'} answers"
    fix = "name a server in /etc/resolv.conf that is reached from other addresses than 127.0.0.1"
    yield finding("sandbox dns", bool(answering), words, fix, needed=False)
    way = f"{OUTSIDE} is reached" if seen["outside"] else f"{OUTSIDE} is not reached"
    if not seen["resolved"]:
        way += ": its name is not resolved"
    fix = "functions use no proxy by themselves: set HTTPS_PROXY in [env], or open the way"
    yield finding("sandbox out", bool(seen["outside"]), way, fix, needed=False)
    reached = [*(["cloud metadata"] if seen["metadata"] else []), *(f"this host at {one}" for one in seen["host"])]
    told = (
        f"instances reach {', '.join(reached)}" if reached else "instances reach neither this host nor cloud metadata"
    )
    yield finding("sandbox walls", not reached, told, "restart the server: it writes its firewall table anew")


DOCTOR = web.AppKey("doctor", Doctor)


@access(Permission.ADMIN)
async def looked(request: web.Request) -> web.Response:
    allow(request, Permission.ADMIN, ALL_NAMESPACES)
    findings = [*await request.app[DOCTOR].findings(request.app[GATEWAY]), *living.findings(request.app)]
    return answer({"findings": [asdict(one) for one in findings]})


_FINDING = an_object(
    ("check", "state", "found", "fix"), check=TEXT, state={"type": "string", "enum": ["ok", "missing", "note"]},
    found=TEXT, fix=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/doctor", looked, "How the server and its machine are, and what to do",
        {200: an_object(("findings",), findings=a_list(_FINDING))},
    ),
)  # fmt: skip
