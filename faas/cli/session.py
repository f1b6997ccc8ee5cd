"""`Session`: what all commands of one run share: the settings, and the server that they talk to."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from faas.errors import FaasError, InvalidInput
from faas.trust import Trust

if TYPE_CHECKING:
    from faas.client import Client
    from faas.settings import ClientSettings

T = TypeVar("T")

FILE_CHARACTERS = 65_536  # of what the server left for this host's command line


@dataclass(frozen=True, slots=True)
class Target:
    """The server that commands talk to. `source` says in words where url and token came from."""

    url: str
    token: str = field(default="", repr=False)
    user: str = "admin"
    url_source: str = ""
    token_source: str = ""
    trust: Trust = field(default_factory=Trust)
    namespace: str = ""  # what `faas login --namespace` said; "" for default


@dataclass
class Session:
    """`target` is looked up when it is first needed."""

    debug: bool = False

    @cached_property
    def settings(self) -> ClientSettings:
        from faas.settings import load_client

        return load_client()

    @cached_property
    def target(self) -> Target:
        """FAAS_URL and FAAS_TOKEN, else what `faas login` wrote, else the server of this host.

        A token is only ever sent to the server that it belongs to. Raises NoServer.
        """
        return find(self.settings)

    def client(self) -> Client:
        from faas.client import Client

        return Client(self.target.url, self.target.token, trust=self.target.trust)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a command's asynchronous part. Raises KeyboardInterrupt when it is interrupted."""
        import asyncio

        try:
            return asyncio.run(work)
        except asyncio.CancelledError:  # by nobody else: between two lines of `run` it forgets that Ctrl-C has come
            raise KeyboardInterrupt from None


def config_file(settings: ClientSettings) -> Path:
    """What `faas login` writes: url, token, user, namespace, ca (the file of the CA that it was given), and docker, the
    registry that Docker was told of."""
    return settings.config_home / "config.toml"


def logged_in(settings: ClientSettings) -> dict[str, str]:
    """The values of `faas login`; empty where there are none."""
    path = config_file(settings)
    try:
        written = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", hint="write it anew with faas login") from None
    return {k: v for k, v in written.items() if isinstance(v, str)}


def _host_server(settings: ClientSettings) -> tuple[str, str, str]:
    """(URL, token, certificate) of the server of this host; "" where it is not there or not ours to read."""
    try:
        told = json.loads(_plain(settings.data / "server.json"))
        url, certificate = str(told["api"]), str(told.get("certificate") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", "", ""
    try:
        return url, _plain(settings.data / "admin-token").strip(), certificate
    except (OSError, ValueError):
        return url, "", certificate


def _plain(path: Path) -> str:
    """What the server wrote there. Never what a link leads to: the folder is open to the server's account, which may
    not read what root may, and hears what is sent to it as a token. Raises OSError, ValueError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no plain file")
        return file.read(FILE_CHARACTERS)


def find(settings: ClientSettings) -> Target:
    """Which server, and which token for it. Raises FaasError (`Unreachable`) where none is known."""
    login, (host_url, host_token, certificate) = logged_in(settings), _host_server(settings)
    candidates = (
        (settings.url, "FAAS_URL"),
        (login.get("url", ""), str(config_file(settings))),
        (host_url, str(settings.data / "server.json")),
    )
    url, url_source = next(((u.rstrip("/"), s) for u, s in candidates if u), ("", ""))
    if not url:
        raise no_server()
    tokens = (
        (settings.token, "", "FAAS_TOKEN"),
        (login.get("token", ""), login.get("url", ""), str(config_file(settings))),
        (host_token, host_url, str(settings.data / "admin-token")),
    )
    trust = Trust()
    if settings.ca or (login.get("ca") and login.get("url", "").rstrip("/") == url):
        trust = Trust(read_ca(Path(settings.ca or login["ca"])))
    elif certificate and host_url == url:
        trust = Trust(certificate, exactly=True)
    for token, belongs_to, source in tokens:
        if token and (not belongs_to or belongs_to.rstrip("/") == url):
            if source != str(config_file(settings)):
                return Target(url, token, "admin", url_source, source, trust)
            return Target(url, token, login.get("user", "admin"), url_source, source, trust, login.get("namespace", ""))
    return Target(url, "", "admin", url_source, "none", trust)


def read_ca(file: Path) -> str:
    """Raises InvalidInput."""
    try:
        pem = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the CA's certificate {file}: {error}", hint="FAAS_CA, or faas login --ca FILE") from None
    Trust(pem).context()
    return pem


def no_server() -> FaasError:
    from faas.client_errors import Unreachable

    return Unreachable(
        "no server is known here",
        hint="set FAAS_URL and FAAS_TOKEN, or run faas login; on the server's own host, start it: faas serve",
    )
