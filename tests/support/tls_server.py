"""A server that another machine reaches by a name, over TLS with a CA of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from faas.certificate import fingerprint
from faas.tls_folder import TlsFolder
from tests.support.commands import run
from tests.support.machines import Machine, another_machine
from tests.support.ports import free_port
from tests.support.server import RunningServer

NAME = "functions.example.com"
LISTENERS = ("listen", "api_listen", "registry_listen")
FAAS = f"{sys.executable} -m faas.cli"


@dataclass(frozen=True)
class TlsServer:
    server: RunningServer
    there: Machine
    ports: dict[str, int]

    @property
    def folder(self) -> TlsFolder:
        return TlsFolder(self.server.data / "tls")

    @property
    def ca(self) -> str:
        return self.folder.ca_file.read_text()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.ca)

    def at(self, listener: str) -> str:
        """One of `LISTENERS`, as the other machine calls it."""
        return f"{NAME}:{self.ports[listener]}"


@contextmanager
def tls_server(folder: Path, *names: str, before: Callable[[TlsFolder], None] = lambda _: None) -> Iterator[TlsServer]:
    """`names`: further ones of this machine; `before` is called between the making of the CA and the server's start."""
    data = folder / "data"
    data.mkdir()
    ports = {listener: free_port(host="0.0.0.0") for listener in LISTENERS}
    (data / "config.toml").write_text("".join(f'{name} = "127.0.0.1:{port}"\n' for name, port in ports.items()))
    run(*FAAS.split(), "tls", "set", NAME, "--data", data)
    before(TlsFolder(data / "tls"))
    flags = [word for name, port in ports.items() for word in (f"--{name.replace('_', '-')}", f"0.0.0.0:{port}")]
    patch = pytest.MonkeyPatch()
    patch.setenv("SSL_CERT_FILE", str(data / "tls" / "ca.crt"))
    try:
        with (
            another_machine(folder / "there", NAME, *names) as there,
            RunningServer(data, "--driver", "oci", *flags) as server,
        ):
            yield TlsServer(server, there, ports)
    finally:
        patch.undo()
