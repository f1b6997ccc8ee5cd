"""`python -m worker.launcher OPTIONS`: started by the server's own start, with one end of a socket pair."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from faas import log
from faas.oci.source import ImageSource
from worker.drivers.base import DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.launcher.figures import Figures
from worker.launcher.lock import Lock
from worker.launcher.process import Options, inherited, options_of
from worker.launcher.renewal import Renewal
from worker.launcher.server import Service
from worker.launcher.wire import GONE

logger = logging.getLogger("worker.launcher")


async def run(descriptor: int, options: Options) -> None:
    """Until the server's end closes, or sends what is no message."""
    gone = asyncio.Event()

    def on_end(why: str) -> None:
        if why != GONE:
            logger.error("what came from the server is no message, so this ends: %s", why)
        gone.set()

    def make(source: ImageSource, figures: Figures) -> OciDriver:
        paths = DriverPaths(Path(options.data), options.server_id)
        return OciDriver(paths, source, metrics=figures.as_metrics, reads=False, **options.driver)

    service = Service(inherited(descriptor), Lock(options.layers, options.scratch), make, on_end)
    renewal = Renewal(Path(options.data))
    renewal.start()
    await gone.wait()
    await renewal.stop()
    await service.close()


def main() -> None:
    descriptor, options = options_of(sys.argv[1:])
    log.configure(options.log_format)
    # Its end is its server's: what is sent to all of them at once must not take it away first. Not SIG_IGN, which would
    # go on in every program that it starts.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    uvloop.run(run(descriptor, options))
    logging.shutdown()
    os._exit(0)  # not after threads that read what never comes, such as a file of a file system of the server's making


if __name__ == "__main__":
    main()
