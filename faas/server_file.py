"""`Addresses`: where the listeners are, for this host's command line (`server.json`) and for others (`/v1/info`)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from faas import __version__
from faas.listener import bound
from faas.settings import Address, Settings
from faas.tls import Certificates

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - no address that a client could use


class Addresses:
    """`urls` are for this host; `public`, `api` and `registry` (host:port) for others, by the name of `public_url`.

    `everywhere`: API and registry answer at every address of this machine, and so by every name of it.
    """

    def __init__(self, settings: Settings, sockets: Mapping[str, socket.socket], tls: Certificates | None) -> None:
        scheme = "https" if settings.tls else "http"
        self._tls = tls
        self.bound = {name: bound(listener) for name, listener in sockets.items()}
        self.urls = {name: f"{scheme}://{_reachable(address)}" for name, address in self.bound.items()}
        if "redirect" in self.bound:
            self.urls["redirect"] = f"http://{_reachable(self.bound['redirect'])}"
        self.public = settings.public_url.rstrip("/") or self.urls["public"]
        self.everywhere = all(self.bound[name].host in _EVERYWHERE for name in ("api", "registry"))
        name = urlsplit(settings.public_url).hostname if self.everywhere else None
        self.api = f"{scheme}://{self._outside('api', name)}"
        self.registry = str(self._outside("registry", name))

    def _outside(self, listener: str, name: str | None) -> Address:
        address = self.bound[listener]
        return Address(name, address.port) if name else _reachable(address)

    def write(self, file: Path, data: Path) -> None:
        """For the command line on this host; whole or not there."""
        told = {**self.urls, "pid": os.getpid(), "version": __version__, "data": str(data), "public_url": self.public}
        if self._tls is not None:
            told |= {"certificate": self._tls.shown.pem, "pin": self._tls.shown.pin}
        temporary = file.with_suffix(".new")
        temporary.unlink(missing_ok=True)  # a link there must not be followed by a server that keeps root
        with temporary.open("x") as written:
            written.write(json.dumps(told) + "\n")
        temporary.rename(file)


def _reachable(address: Address) -> Address:
    """An address that a client on this host can use: "all interfaces" is none."""
    return Address(_EVERYWHERE.get(address.host, address.host), address.port)
