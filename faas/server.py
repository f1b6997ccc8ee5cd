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
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvloop
from aiohttp import web

from faas import __version__, log
from faas.build.base import Bases
from faas.errors import FaasError, InvalidInput, Unavailable
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.settings import Address, Settings
from gateway.app import api_app, public_app
from gateway.gateway import Gateway, GatewaySettings
from registry.app import create_app as registry_app
from registry.service import Registry
from registry.source import LocalImageSource
from worker.drivers.base import Driver, DriverPaths
from worker.pool import Pool

logger = logging.getLogger("faas.server")

GRACE_SECONDS = 30.0  # what runs at SIGTERM may finish within this
HEAD_SECONDS = 30.0  # a client's request head must be complete within this


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises FaasError where it cannot start."""
    log.configure(settings.log_format)
    _raise_file_limit()
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(settings.data):
        uvloop.run(_run(settings))
    return 0


def _raise_file_limit() -> None:
    """An instance costs about eight descriptors; the soft limit's usual 1,024 would be reached at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _only_one(data: Path):  # type: ignore[no-untyped-def]
    """Hold the data folder: two servers on one would destroy each other's instances."""
    with open(data / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"another server runs on {data}", hint="stop it, or pass another --data"
            ) from None
        yield
