"""`faas doctor`: what this machine can do, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from faas.checkup.clock import clock, zones
from faas.checkup.disk import room
from faas.checkup.finding import MISSING, NOTE, Finding
from faas.checkup.limits import open_files
from faas.checkup.own_ca import own_ca
from faas.cli import doctor_host
from faas.cli.options import pass_session
from faas.cli.output import as_json, output_option
from faas.cli.session import Session, Target
from faas.errors import FaasError, Forbidden, NotFound
from faas.settings import Address, default_data, load
from worker.drivers.linux import mounts
from worker.drivers.oci import attachment, runtime
from worker.drivers.oci import id_maps as ownership
from worker.launcher import privileges
from worker.network import programs, shaping

if TYPE_CHECKING:
    from faas.client import Client

DOCKER_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")


def host_findings(data: Path, hosting: bool, running: bool, told: bool = False) -> Iterator[Finding]:
    """What running functions on this machine takes. Where they are not to run here, nothing is missing. `told`: the
    server of this machine says the rest itself."""

    def bounded(findings: Iterable[Finding]) -> Iterator[Finding]:
        """Nothing is missing where no functions are to run."""
        return (one if hosting or one.state != MISSING else replace(one, state=NOTE) for one in findings)

    def finding(check: str, fine: bool, found: str, fix: str, needed: bool = True) -> Finding:
        state = "ok" if fine else "missing" if needed and hosting else "note"
        return Finding(check, state, found, "" if fine else fix)

    version = ".".join(map(str, sys.version_info[:3]))
    yield finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    root = os.geteuid() == 0
    program = runtime.find() or ""
    engine = next((path for path in DOCKER_SOCKETS if _answers(path)), "")
    oci = root and bool(program) and sys.platform == "linux"
    yield finding("root", root, "yes" if root else "no", "run faas serve as root, or use an engine", not engine)
    if root:
        yield _account(data, finding)
    yield finding("oci runtime", bool(program), program or "none", "apt-get install runc", not engine)
    version = (programs.attempt([program, "--version"]) or "") if program else ""
    for old in filter(None, (runtime.outdated(version), doctor_host.runtime_holes(version))):
        yield finding("oci runtime", False, old, "apt-get install --only-upgrade runc", needed=False)
    yield finding("engine", bool(engine), engine or "no Docker Engine answers", "apt-get install docker.io", not oci)
    if engine and (old := doctor_host.engine_holes(doctor_host.engine_version(engine))):
        yield finding("engine", False, old, "apt-get install --only-upgrade docker.io", needed=False)
    needed = oci or not engine  # by the oci driver only
    overlay = sys.platform == "linux" and mounts.known("overlay")
    yield finding("overlayfs", overlay, _there(overlay), "modprobe overlay", needed)
    cgroup = cgroup_version()
    yield finding("cgroup", cgroup != "none", cgroup, "mount cgroups: they are systemd's default", needed)
    for tool, package in (("nft", "nftables"), ("ip", "iproute2"), ("mkfs.ext4", "e2fsprogs")):
        path = programs.find(tool)
        yield finding(tool, bool(path), path or "none", f"apt-get install {package}", needed)
    loop = sys.platform == "linux" and mounts.loop_devices()
    yield finding("loop devices", loop, _there(loop), "modprobe loop", needed)
    if oci:
        yield _stems(program, finding)
        yield _user_namespaces(program, data, finding)
        shaped = shaping.missing()
        yield finding("bandwidth", not shaped, shaped or "follows memory", "modprobe sch_tbf", needed=False)
    if not told:
        yield from bounded(room("disk", data))
        yield from bounded(clock(data.glob("*.db*") if os.access(data, os.R_OK) else ()))
        yield from bounded([zones(), open_files()])
    if not running:
        yield from _ports(finding)


def _there(fine: bool) -> str:
    return "there" if fine else "not there"


def _answers(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(path)
    except OSError:
        return False
    return True


def cgroup_version() -> str:
    """`v2`, `v1` or `none`."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "v2"
    return "v1" if Path("/sys/fs/cgroup/memory").exists() else "none"


def _account(data: Path, finding: Callable[..., Finding]) -> Finding:
    """Whom the server gives root up for."""
    try:
        account = privileges.account(load({"data": data}).user)
    except FaasError as error:
        return finding("account", False, error.message, error.hint)
    if account is None:
        return finding("account", False, "the server keeps root", "leave out user = root", needed=False)
    return finding("account", True, f"{account.name} (uid {account.uid})", "")


def _stems(program: str, finding: Callable[..., Finding]) -> Finding:
    """Whether runtimes can wait for their function."""
    with tempfile.TemporaryDirectory(prefix="faas-doctor-") as work:
        missing = attachment.missing(program, Path(work))
    return finding("stems", not missing, missing or "possible", "Linux 5.8 or newer, with runc or crun", needed=False)


def _user_namespaces(program: str, data: Path, finding: Callable[..., Finding]) -> Finding:
    """Whether each instance has one, with ids of its own, or an id alone."""
    folder = next(folder for folder in (data, *data.parents) if folder.exists())
    with tempfile.TemporaryDirectory(prefix="faas-doctor-") as work, tempfile.TemporaryDirectory(dir=folder) as layers:
        missing = ownership.missing_namespaces(program) or ownership.missing_views(Path(layers), Path(work) / "probe")
    found = f"users: {missing}; an id of its own for each instance" if missing else "users: one for each instance"
    return finding("namespaces", not missing, found, "Linux 5.19 or newer, with runc or crun", needed=False)


def _ports(finding: Callable[..., Finding]) -> Iterator[Finding]:
    """The usual ports, where no server of ours runs."""
    from faas.listener import AddressTaken, holder, listen

    for port, name in ((8080, "public"), (8081, "api"), (5000, "registry")):
        try:
            listen(Address("127.0.0.1", port)).close()
            yield finding(f"port {port}", True, "free", "")
        except AddressTaken:
            yield finding(
                f"port {port}", False, f"taken{holder(port)}", f"stop it, or choose another {name} port", needed=False
            )
        except FaasError as error:
            yield finding(f"port {port}", False, error.message, "", needed=False)


async def server_findings(session: Session, target: Target) -> tuple[str, list[Finding]]:
    """Whether the server answers, and takes the token; with its driver, "" where it does not."""
    try:
        async with session.client() as client:
            info = await client.info()
            own = await _asked(client)
    except FaasError as error:
        fix = error.hint if error.code != "Unreachable" else "start it: faas serve (or ./deploy/up)"
        return "", [Finding("server", "missing", error.message, fix)]
    return str(info.get("driver")), [
        Finding("server", "ok", f"{target.url}, version {info.get('version')}, driver {info.get('driver')}"),
        *own,
    ]


async def _asked(client: Client) -> list[Finding]:
    """What the server says of itself and its machine, to an administrator."""
    try:
        return [Finding(**row) for row in await client.doctor()]
    except (Forbidden, NotFound) as error:
        words = f"the server tells no more: {error.message}"
        return [Finding("server itself", NOTE, words, "ask with an administrator's token")]


@click.command()
@output_option
@pass_session
@click.pass_context
def doctor(ctx: click.Context, session: Session, output: str) -> None:
    """Check this machine and the connection, one line each, with what to do.

    Exit code 1: something that is needed is missing.
    """
    target: Target | None
    try:
        target = session.target
    except FaasError:
        target = None
    here = target is None or Address.parse(f"{urlsplit(target.url).hostname or 'localhost'}:0").is_loopback
    driver, answers = session.run(server_findings(session, target)) if target else ("", [])
    running = bool(driver)
    data = session.settings.data or default_data()
    is_ours = not running or (target is not None and doctor_host.is_of(data, target.url))
    root = doctor_host.of_the_server(data, driver) if here and is_ours and os.geteuid() == 0 else ()
    told = here and any(finding.check == "ready" for finding in answers)
    findings = [*host_findings(data, here, running and here, told), *root, *own_ca(data), *answers]
    if target is None:
        findings.append(Finding("server", "note", "none is known here", "faas serve, or faas login URL"))
    if output == "json":
        click.echo(as_json([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(finding.check if output == "name" else line(finding))
    ctx.exit(1 if any(finding.state == "missing" for finding in findings) else 0)


def line(finding: Finding) -> str:
    colour = {"ok": "green", "missing": "red", "note": "yellow"}[finding.state]
    fix = f": {finding.fix}" if finding.fix else ""
    return f"{click.style(f'{finding.state:<8}', fg=colour)}{finding.check:<14}{finding.found}{fix}"
