"""The all-in-one composition root: registry, gateway and worker as objects of one event loop (`faas serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from faas import __version__, log
from faas.build.base import Bases
from faas.errors import InvalidInput, Unavailable
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.oci.client import RegistryClient
from faas.oci.source import ImageSource
from faas.settings import Address, Settings
from faas.state.session import Database
from gateway.app import api_app, public_app
from gateway.gateway import Gateway, ServerInfo
from gateway.public import RUNNER_OPTIONS
from registry.app import create_app as registry_app
from registry.service import Registry
from registry.source import LocalImageSource
from worker.drivers.base import Driver, DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.pool import Pool

logger = logging.getLogger("faas.server")

GRACE_SECONDS = 30.0  # what runs at SIGTERM may finish within this
LISTENERS = ("public", "api", "registry")


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises FaasError where it cannot start."""
    log.configure(settings.log_format)
    _raise_file_limit()
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(settings.data), _listening(settings) as sockets:
        uvloop.run(_run(settings, sockets))
    return 0


def _raise_file_limit() -> None:
    """An instance costs about eight descriptors; the soft limit's usual 1,024 would be reached at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


def choose_driver(settings: Settings, source: ImageSource) -> Driver:
    """The driver that was asked for; `auto` takes oci where root and a runtime are there, else an engine.

    Raises Unavailable that says what to install.
    """
    paths = DriverPaths(settings.data, settings.server_id)
    reasons = OciDriver.missing(settings.oci_runtime)
    if settings.driver == "oci" or (settings.driver == "auto" and not reasons):
        if reasons:
            raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
        return OciDriver(paths, source, runtime=settings.oci_runtime, subnet=settings.subnet)
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
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics(__version__)
        database = await Database.open(settings.database)
        stack.push_async_callback(database.close)
        registry = await Registry.open(settings.data, settings.registry_database, authenticator=None, metrics=metrics)
        stack.push_async_callback(registry.close)
        images = LocalImageSource(registry)
        driver = choose_driver(settings, images)
        pool = Pool(driver, settings.data / "logs", metrics)
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
        gateway = Gateway.create(database, pool, images, bases, metrics, info, settings.data)
        if settings.registry_auth == "basic":
            registry.authenticator = gateway.tokens
        registry.holders = gateway.deployer
        await pool.open()
        stack.push_async_callback(pool.close, GRACE_SECONDS)
        await gateway.start(settings.admin_token_file)
        async with _serving(settings, sockets, private, gateway, registry):
            addresses.write(settings.server_file, settings.data)
            stack.callback(settings.server_file.unlink, missing_ok=True)
            logger.info("ready", extra={**addresses.urls, "driver": driver.name})
            await stopping.wait()
            logger.info("stopping")
            for listener in sockets.values():
                loop.remove_reader(listener)  # no new connection; those that are open get their answers
            await gateway.stop(GRACE_SECONDS)


def _token(settings: Settings) -> str:
    return settings.admin_token_file.read_text().strip()


@contextlib.asynccontextmanager
async def _serving(
    settings: Settings, sockets: dict[str, socket.socket], private: socket.socket, gateway: Gateway, registry: Registry
) -> AsyncIterator[None]:
    """All listeners answer inside the block."""
    context = None
    if settings.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(f"the certificate cannot be used: {error}", hint="--tls-cert and --tls-key") from None
    apps = {
        "public": public_app(gateway, gateway.tokens),
        "api": api_app(gateway, gateway.tokens, open_metrics=settings.api_listen.is_loopback),
        "registry": registry_app(registry),
    }
    runners = {name: web.AppRunner(app, shutdown_timeout=5.0, **RUNNER_OPTIONS) for name, app in apps.items()}
    try:
        for name, runner in runners.items():
            await runner.setup()
            await web.SockSite(runner, sockets[name], ssl_context=context).start()
        await web.SockSite(runners["registry"], private).start()
        yield
    finally:
        for runner in runners.values():
            await runner.cleanup()
