"""The all-in-one composition root: registry, gateway and worker as objects of one event loop (`faas serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from faas import __version__, log
from faas.build.base import Bases
from faas.doors import Doors, certificate, raise_file_limit
from faas.errors import InvalidInput, Unavailable
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.oci.client import RegistryClient
from faas.oci.source import ImageSource
from faas.settings import Address, Settings
from faas.state.session import Database
from gateway import prices
from gateway.app import api_app, public_app
from gateway.events.roots import TriggerRoots
from gateway.gateway import Gateway, ServerInfo
from registry.app import create_app as registry_app
from registry.outbox import Outbox
from registry.service import Registry
from registry.source import LocalImageSource
from registry.upstream import upstream
from worker.budget import budget, machine_memory
from worker.drivers.base import Driver, DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.pool import Pool

logger = logging.getLogger("faas.server")

GRACE_SECONDS = 30.0  # what runs at SIGTERM may finish within this, all of it together
LISTENERS = ("public", "api", "registry")


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises FaasError where it cannot start."""
    log.configure(settings.log_format)
    raise_file_limit()
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(settings.data), _listening(settings) as sockets:
        uvloop.run(_run(settings, sockets))
    return 0


@contextlib.contextmanager
def _held(data: Path) -> Iterator[None]:
    """Hold the data folder: two servers on one would destroy each other's instances."""
    with open(data / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"another server runs on {data}", hint="stop it, or pass another --data") from None
        yield


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[dict[str, socket.socket]]:
    """All three sockets, bound before anything is started: a taken port costs nothing."""
    with contextlib.ExitStack() as stack:
        addresses = zip(LISTENERS, (settings.listen, settings.api_listen, settings.registry_listen), strict=True)
        yield {name: stack.enter_context(listen(address)) for name, address in addresses}


def choose_driver(settings: Settings, source: ImageSource, metrics: Metrics) -> Driver:
    """The driver that was asked for; `auto` takes oci where root and a runtime are there, else an engine.

    Raises Unavailable that says what to install.
    """
    paths = DriverPaths(settings.data, settings.server_id)
    reasons = OciDriver.missing(settings.oci_runtime)
    if settings.driver == "oci" or (settings.driver == "auto" and not reasons):
        if reasons:
            raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
        return OciDriver(
            paths,
            source,
            runtime=settings.oci_runtime,
            subnet=settings.subnet,
            stems=settings.stems,
            metrics=metrics,
        )
    from worker.drivers.docker import DockerDriver  # late: the SDK takes a fifth of a second to import

    if settings.driver == "docker" or DockerDriver.available():
        return DockerDriver(paths, source)
    raise Unavailable(
        "no way to run functions: " + "; ".join(reasons) + "; and no Docker Engine answers",
        hint="run as root and apt-get install runc nftables, or start a Docker Engine",
    )


class Addresses:
    """The real addresses of the listeners, as URLs: what `server.json` and `/v1/info` tell."""

    def __init__(self, settings: Settings, sockets: dict[str, socket.socket]) -> None:
        scheme = "https" if settings.tls else "http"
        self.bound = {name: bound(listener) for name, listener in sockets.items()}
        self.urls = {name: f"{scheme}://{_reachable(address)}" for name, address in self.bound.items()}
        self.public = settings.public_url.rstrip("/") or self.urls["public"]
        self.registry = str(_reachable(self.bound["registry"]))

    def write(self, file: Path, data: Path) -> None:
        """For the command line on this host; whole or not there."""
        told = {**self.urls, "pid": os.getpid(), "version": __version__, "data": str(data)}
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps(told) + "\n")
        temporary.rename(file)


def _reachable(address: Address) -> Address:
    """An address that a client on this host can use: "all interfaces" is none."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return Address(host, address.port)


def _shown(settings: Settings) -> dict[str, tuple[Any, str]]:
    """Every setting with where it came from; none of them is a secret."""
    return {name: (str(getattr(settings, name)), source) for name, source in settings.sources.items()}


async def _run(settings: Settings, sockets: dict[str, socket.socket]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    addresses = Addresses(settings, sockets)
    upstreams = upstream.parse(settings.registry_upstreams)
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
            upstreams=upstreams,
            token_flow=settings.registry_auth == "token",
        )
        stack.push_async_callback(registry.close)
        images = LocalImageSource(registry)
        driver = choose_driver(settings, images, metrics)
        memory = budget(settings.memory_budget, machine_memory())
        pool = Pool(driver, settings.data / "logs", metrics, memory_bytes=memory)
        info = ServerInfo(
            __version__,
            addresses.public,
            addresses.urls["api"],
            addresses.registry,
            driver.name,
            settings.domain,
            _shown(settings),
        )
        private = listen(Address("127.0.0.1", 0))  # the build's own way to the registry: plain, whatever others use
        stack.callback(private.close)
        bases = Bases(lambda: RegistryClient(f"http://{bound(private)}", "admin", _token(settings)))
        roots = TriggerRoots(settings.trigger_folders, settings.data)
        changes = Outbox(registry.index)
        gateway = Gateway.create(database, pool, images, bases, metrics, info, roots, changes, prices=price_list)
        if settings.registry_auth != "none":
            registry.access.accounts = gateway.tokens
        registry.holders = gateway
        grace = Grace()
        stack.push_async_callback(gateway.ledger.stop)  # what the pool's end has ended
        await pool.open()
        stack.push_async_callback(lambda: pool.close(grace.left))
        await gateway.start(settings.admin_token_file)
        apps = {
            "public": public_app(gateway, gateway.tokens),
            "api": api_app(gateway, gateway.tokens, open_metrics=settings.api_listen.is_loopback),
            "registry": registry_app(registry),
        }
        doors = Doors(apps, certificate(settings.tls_cert, settings.tls_key))
        stack.push_async_callback(doors.close)
        await doors.open({**sockets, "private": private})
        addresses.write(settings.server_file, settings.data)
        stack.callback(settings.server_file.unlink, missing_ok=True)
        logger.info("ready", extra={**addresses.urls, "driver": driver.name})
        await stopping.wait()
        logger.info("stopping")
        grace.begin()
        await doors.refuse()
        await asyncio.gather(gateway.stop(grace.left), doors.finish("registry", grace.left))


def _token(settings: Settings) -> str:
    return settings.admin_token_file.read_text().strip()


class Grace:
    """One deadline for everything that may finish: whoever comes later in the stop gets what is left of it."""

    def __init__(self) -> None:
        self._until: float | None = None

    def begin(self) -> None:
        self._until = time.monotonic() + GRACE_SECONDS

    @property
    def left(self) -> float:
        """Seconds; none before `begin`: a start that failed has nothing to finish."""
        return 0.0 if self._until is None else max(0.0, self._until - time.monotonic())
