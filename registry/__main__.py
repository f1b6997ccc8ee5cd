"""The registry alone: `python -m registry --data DIR --listen ADDR --auth basic|token|none`, and who may log in there:
`python -m registry user add|rm|ls`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
import sys
from contextlib import closing
from pathlib import Path

import uvloop

from faas import __version__, log
from faas.auth import TokenFile, token_in
from faas.doors import Doors, raise_file_limit
from faas.errors import FaasError, InvalidInput
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.passwords import Passwords
from faas.settings import Address
from faas.tls import Certificates
from registry import user
from registry.app import create_app
from registry.service import Registry
from registry.upstream.upstream import Upstreams, parse
from registry.users import FILE, Users

GRACE_SECONDS = 30.0  # what runs at SIGTERM may finish within this


async def run(data: Path, address: Address, auth: str, upstreams: Upstreams, tls: ssl.SSLContext | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    with listen(address) as listener, closing(Passwords()) as passwords:
        users: Users | None = None
        if auth != "none":
            users = Users(data / FILE, TokenFile(token_in(data / "admin-token")), passwords)
            await users.load()
        url = f"sqlite+aiosqlite:///{data / 'registry.db'}"
        registry = await Registry.open(
            data,
            url,
            accounts=users,
            metrics=Metrics(__version__),
            upstreams=upstreams,
            token_flow=auth == "token",
        )
        doors = Doors({"registry": create_app(registry)}, tls)
        try:
            await doors.open({"registry": listener})
            stopped = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopped.set)
            print(f"registry at {bound(listener)}", flush=True)  # noqa: T201 - the program's only output
            await stopped.wait()
            await doors.refuse()
            await doors.finish("registry", GRACE_SECONDS)
        finally:
            await doors.close()
            await registry.close()


def main() -> int:
    if sys.argv[1:2] == ["user"]:
        return user.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m registry",
        description="An OCI registry on its own.",
        epilog="Who may log in: python -m registry user --help. Quotas, garbage and the rest: faas image --help, with "
        "FAAS_URL for this registry's address and FAAS_TOKEN for what DIR/admin-token holds.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder for blobs and the database")
    parser.add_argument("--listen", default="127.0.0.1:5000", metavar="HOST:PORT", help="default 127.0.0.1:5000")
    parser.add_argument(
        "--auth",
        choices=("basic", "token", "none"),
        default="basic",
        help="default basic; token: Docker's token flow; none: on loopback only",
    )
    parser.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME=URL[,KEY=VALUE...]",
        help="a registry to keep copies of, as in faas serve's --registry-upstreams; may be given several times",
    )
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="certificate (PEM)")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key (PEM)")
    parser.add_argument("--insecure", action="store_true", help="listen beyond loopback without TLS")
    arguments = parser.parse_args()
    log.configure("text")
    try:
        address = _address(arguments.listen)
        tls = Certificates(arguments.tls_cert, arguments.tls_key).context if arguments.tls_cert else None
        if not address.is_loopback:
            _beyond_loopback(arguments.auth, tls is not None or arguments.insecure)
        raise_file_limit()
        uvloop.run(run(arguments.data.absolute(), address, arguments.auth, parse(" ".join(arguments.upstream)), tls))
    except FaasError as error:
        user.complain(error)
        return 1
    return 0


def _beyond_loopback(auth: str, guarded: bool) -> None:
    """Others can hear, and come. Raises InvalidInput where nothing guards against that."""
    if auth == "none":
        raise InvalidInput("a registry without login listens on loopback only", hint="--auth basic or token")
    if not guarded:
        hint = "pass --tls-cert and --tls-key, or --insecure if the network is yours alone"
        raise InvalidInput("there is no TLS, and passwords would be heard beyond loopback", hint=hint)


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError:
        raise InvalidInput(f"--listen must be HOST:PORT, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
