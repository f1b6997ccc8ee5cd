"""The all-in-one composition root: registry, gateway and worker as objects of one event loop (`faas serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from faas import __version__, log
from faas.access_log import AccessLog
from faas.build.base import Bases
from faas.doors import Doors, raise_file_limit
from faas.errors import InvalidInput, Unavailable
from faas.handover import Successor, listening
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.oci.client import RegistryClient
from faas.oci.source import ImageSource
from faas.processes import of_one_client
from faas.redirect import redirect_app
from faas.remote import PROXIES
from faas.server.lanes.fleet import Fleet
from faas.server.stopping import Grace, Loss
from faas.server_file import Addresses
from faas.settings import Address, Settings
from faas.state.session import Database
from faas.tls import Certificates
from gateway import prices
from gateway.app import api_app, public_app, public_lane, public_place
from gateway.backup import Backups
from gateway.control.backups import BACKUPS
from gateway.dev_images import DevImages
from gateway.edge.spans import Spans
from gateway.edge.spans import check as check_spans
from gateway.edge.websocket.pushes import Pushes
from gateway.events.roots import TriggerRoots
from gateway.gateway import Gateway, ServerInfo
from gateway.lanes.desk import Desk
from gateway.lanes.living import LIVING
from registry.app import create_app as registry_app
from registry.backup import BackupSource
from registry.outbox import Outbox
from registry.service import Registry
from registry.source import LocalImageSource
from registry.upstream import upstream
from worker.drivers.base import Driver, DriverPaths
from worker.drivers.oci import machine
from worker.launcher import data_folder as ownership
from worker.launcher import privileges, view
from worker.launcher import process as launcher
from worker.launcher.client import LaunchedDriver
from worker.launcher.process import Launched
from worker.launcher.renewal import Renewal
from worker.lending import LendingPool
from worker.memory.budget import budget, machine_memory
from worker.pool import Pool

logger = logging.getLogger("faas.server")

SWITCH_SECONDS = 0.0005  # a thread that computes keeps the loop waiting for so long, not for Python's 5 ms
YOUNG_OBJECTS = 20_000  # more than before, until the garbage collector looks at what is young


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises FaasError where it cannot start."""
    log.configure(settings.log_format)
    raise_file_limit()
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    upstreams = upstream.parse(settings.registry_upstreams)  # names files that only root may be able to read
    tls = Certificates(settings.tls_cert, settings.tls_key, settings.tls_certs) if settings.tls else None
    if settings.otlp_endpoint:
        check_spans()
    successor = Successor()
    with _held(settings.data), listening(settings) as sockets, _confined(settings) as launched:
        return uvloop.run(_run(Start(settings, sockets, successor, upstreams, tls, launched)))


@dataclass(frozen=True, slots=True)
class Start:
    """What was done while the server still had root."""

    settings: Settings
    sockets: dict[str, socket.socket]
    successor: Successor
    upstreams: upstream.Upstreams
    tls: Certificates | None
    launched: Launched | None  # None: the driver runs in this process


@contextlib.contextmanager
def _held(data: Path) -> Iterator[None]:
    """Hold the data folder: two servers on one would destroy each other's instances."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(data / "lock", flags, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"another server runs on {data}", hint="stop it, or pass another --data") from None
        yield


def _oci_options(settings: Settings) -> dict[str, Any]:
    """`OciDriver`'s own, plain values: they go to the launcher."""
    return {
        "runtime": settings.oci_runtime,
        "subnet": settings.subnet,
        "stems": settings.stems,
        "bandwidth": settings.bandwidth,
    }


def _check_database(settings: Settings, account: privileges.Account) -> None:
    folder = Path(settings.database.partition(":///")[2]).parent
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise InvalidInput(
            f"the user {account.name}, whom the server runs as, may not write in {folder}, the database's folder",
            hint=f"chown {account.name} {folder}",
        )


def _reasons_against_oci(settings: Settings) -> list[str]:
    """Why the oci driver does not run the functions: it was not asked for, or it cannot run here; empty where it does.

    Raises Unavailable where it was asked for and cannot run.
    """
    if settings.driver == "docker":
        return ["the docker driver was asked for"]
    reasons = machine.missing(settings.oci_runtime)
    if reasons and settings.driver == "oci":
        raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
    return reasons


@contextlib.contextmanager
def _confined(settings: Settings) -> Iterator[Launched | None]:
    """From here on this process is an unprivileged account's, and the launcher does what needs root; None: as before.

    Nothing of a client has been read yet. With an engine root stays: whoever may use its socket is root anyway.
    """
    given = settings.user if settings.user != privileges.ROOT else ""
    if os.geteuid() != 0:
        if given:
            raise InvalidInput("user: only root can become another", hint="leave it out, or run faas serve as root")
        yield None
        return
    against = _reasons_against_oci(settings)
    if against and given:
        raise InvalidInput(f"user: root is given up with the oci driver alone; {'; '.join(against)}")
    account = None if against else privileges.account(settings.user)
    options = launcher.Options(str(settings.data), settings.server_id, settings.log_format, _oci_options(settings))
    if account is None:
        ownership.keep(settings.data)
        logger.warning("the server keeps root: whoever takes it over has this machine")
        if not against:
            launcher.stand_in(options)
        yield None
        return
    launched = launcher.start(options)
    try:
        ownership.hand_over(settings.data, account)
        view.open_to(account, settings.data, wished=(*settings.trigger_folders, *settings.tls_folders))
        os.chdir("/")
        os.umask(0o022)
        privileges.drop(account)
        _check_database(settings, account)
        yield launched
    finally:
        launched.wait()


def choose_driver(start: Start, source: ImageSource, metrics: Metrics, on_lost: Callable[[], None]) -> Driver:
    """The driver that was asked for; `auto` takes oci where root and a runtime are there, else an engine.

    Raises Unavailable that says what to install.
    """
    if start.launched is not None:
        return LaunchedDriver(start.launched, source, metrics, on_lost)
    settings = start.settings
    paths = DriverPaths(settings.data, settings.server_id)
    reasons = _reasons_against_oci(settings)
    if not reasons:
        from worker.drivers.oci.driver import OciDriver  # late: with a launcher it is there, and not here

        return OciDriver(paths, source, metrics=metrics, **_oci_options(settings))
    from worker.drivers.docker.driver import DockerDriver  # late: the SDK takes a fifth of a second to import

    if settings.driver == "docker" or DockerDriver.available():
        return DockerDriver(paths, source)
    raise Unavailable(
        "no way to run functions: " + "; ".join(reasons) + "; and no Docker Engine answers",
        hint="run as root and apt-get install runc nftables, or start a Docker Engine",
    )


def _shown(settings: Settings) -> dict[str, tuple[Any, str]]:
    """Every setting with where it came from; none of them is a secret."""
    values = {name: getattr(settings, name) for name in settings.sources}
    return {name: ("" if value is None else str(value), settings.sources[name]) for name, value in values.items()}


async def _run(start: Start) -> int:
    settings, sockets = start.settings, start.sockets
    stopping, loss = asyncio.Event(), Loss()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    start.successor.listen(sockets, stopping.set)
    addresses = Addresses(settings, sockets, start.tls)
    price_list = prices.load(settings.data / "prices.toml")
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics(__version__)
        database = await Database.open(settings.database)
        stack.push_async_callback(database.close)
        registry = await Registry.open(
            settings.data,
            settings.registry_database,
            accounts=None,
            metrics=metrics,
            upstreams=start.upstreams,
            token_flow=settings.registry_auth == "token",
        )
        stack.push_async_callback(registry.close)
        images = LocalImageSource(registry)
        dev_images = DevImages(images, settings.data / "dev")
        driver = choose_driver(start, dev_images, metrics, lambda: loss.happened(stopping))
        memory = budget(settings.memory_budget, machine_memory())
        kind = LendingPool if settings.processes > 1 else Pool
        pool = kind(driver, settings.data / "logs", metrics, memory_bytes=memory, precreated=settings.precreated)
        info = ServerInfo(
            __version__,
            addresses.public,
            addresses.api,
            addresses.registry,
            driver.name,
            settings.domain,
            bool(settings.public_url) or settings.listen.is_loopback,
            _shown(settings),
            everywhere=addresses.everywhere,
            ca=lambda: start.tls.shown.ca if start.tls else "",
        )
        private = listen(Address("127.0.0.1", 0))  # the build's own way to the registry: plain, whatever others use
        stack.callback(private.close)
        bases = Bases(lambda: RegistryClient(f"http://{bound(private)}", "admin", _token(settings)))
        roots = TriggerRoots(settings.trigger_folders, settings.data)
        changes = Outbox(registry.index)
        gateway = Gateway.create(
            database,
            pool,
            images,
            bases,
            metrics,
            info,
            roots,
            changes,
            dev_images=dev_images,
            prices=price_list,
            max_concurrency=settings.max_concurrency,
            burst=settings.burst,
            key_sets=settings.data / "jwks",
            private_key_sets=settings.private_key_sets,
            private_notifications=settings.private_notifications,
            access_log=await _access_log(settings, metrics, stack),
            spans=await _spans(settings, stack),
        )
        if settings.registry_auth != "none":
            registry.access.accounts = gateway.tokens
        registry.access.attempts.told = gateway.audit.login_refused("registry")
        registry.trail = gateway.audit
        registry.holders = gateway
        pool.push_to(Pushes(gateway.edge.websockets))
        grace = Grace()
        stack.push_async_callback(gateway.ledger.stop)  # what the pool's end has ended
        gateway.notifications.facts.damaged = registry.scrub.damaged
        if start.tls is not None:
            tls = start.tls
            gateway.notifications.facts.certificates = lambda: tls.ends
        await pool.open()
        stack.push_async_callback(lambda: pool.close(grace.left))
        await gateway.start(settings.admin_token_file)
        apps = {
            "public": public_app(gateway, gateway.tokens),
            "api": api_app(gateway, gateway.tokens, open_metrics=settings.api_listen.is_loopback),
            "registry": registry_app(registry),
        }
        for app in apps.values():
            app[PROXIES] = settings.proxies
        backups = Backups(database, BackupSource(registry), settings.data, __version__)
        stack.push_async_callback(backups.close)
        await backups.open()
        apps["api"][BACKUPS] = backups
        gateway.notifications.facts.backup = lambda: backups.last
        lane = public_lane(gateway, gateway.tokens, scheme="https" if start.tls else "http", proxies=settings.proxies)
        per_address = settings.connections_per_address
        if "redirect" in sockets:
            apps["redirect"] = redirect_app(addresses.bound["public"].port)
        shown = start.tls.context if start.tls else None
        fleet = None
        if isinstance(pool, LendingPool):
            fleet = Fleet(settings, Desk(gateway.path, public_place(gateway, gateway.tokens)), pool, metrics)
            apps["api"][LIVING] = fleet
            apps["api"].on_response_prepare.append(fleet.before_answers)
        each = {**dict.fromkeys(apps, per_address), "public": of_one_client(per_address, settings.processes)[1]}
        shared = ("public",) if fleet is not None else ()
        doors = Doors(apps, shown, {"public": lane}, per_address=each, proxies=settings.proxies, shared=shared)
        stack.push_async_callback(doors.close)
        await doors.open({**sockets, "private": private})
        addresses.write(settings.server_file, settings.data)
        stack.callback(settings.server_file.unlink, missing_ok=True)
        if start.tls is not None:
            await _keep_certificates(start.tls, addresses, settings, metrics, stack)
            if start.launched is None:  # else the launcher does it: it has the CA's key
                renewal = Renewal(settings.data)
                renewal.start()
                stack.push_async_callback(renewal.stop)
        if fleet is not None:
            stack.push_async_callback(fleet.close)
            await fleet.start(doors, sockets["public"])
        _settle_interpreter()
        logger.info("ready", extra={**addresses.urls, "driver": driver.name})
        await stopping.wait()
        logger.info("stopping")
        if not loss.is_one:
            grace.begin()
        if fleet is not None:
            await fleet.refuse(hand_over=start.successor.comes)
        await doors.refuse(hand_over=start.successor.comes)
        await asyncio.gather(gateway.stop(grace.left), doors.finish("registry", grace.left))
        if fleet is not None:
            await fleet.finish()
    return loss.exit_code


async def _access_log(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> AccessLog | None:
    if not settings.access_log:
        return None
    made = AccessLog(settings.access_file, settings.access_log, dropped=metrics.access_log_dropped.inc)
    made.start()
    stack.push_async_callback(asyncio.to_thread, made.close)
    return made


def _settle_interpreter() -> None:
    """What there is by now stays. The collector looks at it no more: each of its full rounds would hold up every
    request for about 50 ms; and it looks seldom at what is young, for hardly any of that is in a circle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_SECONDS)


async def _keep_certificates(
    tls: Certificates, addresses: Addresses, settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> None:
    """Take new ones when they come, and tell of them."""

    def changed() -> None:
        metrics.show_certificates(tls.ends)
        try:
            addresses.write(settings.server_file, settings.data)
        except OSError as error:
            logger.error("this host's command line will not trust us: %s: %s", settings.server_file, error)

    metrics.show_certificates(tls.ends)
    await tls.start(changed)
    stack.push_async_callback(tls.stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, tls.hurry)


async def _spans(settings: Settings, stack: contextlib.AsyncExitStack) -> Spans | None:
    if not settings.otlp_endpoint:
        return None
    made = await asyncio.to_thread(Spans, settings.otlp_endpoint, __version__)
    stack.push_async_callback(asyncio.to_thread, made.close)
    return made


def _token(settings: Settings) -> str:
    return settings.admin_token_file.read_text().strip()
