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
from dataclasses import dataclass
from pathlib import Path

import uvloop
from aiohttp import web

from faas import __version__, log
from faas.errors import FaasError, InvalidInput, Unavailable
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.oci.source import ImageSource
from faas.settings import Address, Settings
from worker.drivers.base import Driver, DriverPaths
from worker.drivers.docker import DockerDriver
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
    if settings.driver == "docker" or DockerDriver.available():
        return DockerDriver(paths, source)
    raise Unavailable(
        "no way to run functions: " + "; ".join(reasons) + "; and no Docker Engine answers",
        hint="run as root and apt-get install runc nftables, or start a Docker Engine",
    )
