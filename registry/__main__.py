"""The registry alone: `python -m registry --data DIR --listen ADDR --auth basic|token|none`, and who may log in there:
`python -m registry user add|rm|ls`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import closing
from pathlib import Path

import uvloop
from aiohttp import web

from faas import __version__, log
from faas.auth import TokenFile, token_in
from faas.errors import FaasError, InvalidInput
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.passwords import Passwords
from faas.settings import Address
from faas.web import RUNNER_OPTIONS
from registry import user
from registry.app import create_app
from registry.service import Registry
from registry.upstream.upstream import Upstreams, parse
from registry.users import FILE, Users


async def run(data: Path, address: Address, auth: str, upstreams: Upstreams) -> None:
    """Serve until SIGTERM or SIGINT."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    with listen(address) as listener, closing(Passwords()) as passwords:
        authenticator = None
        if auth != "none":
            authenticator = Users(data / FILE, TokenFile(token_in(data / "admin-token")), passwords)
            await authenticator.load()
        url = f"sqlite+aiosqlite:///{data / 'registry.db'}"
        registry = await Registry.open(
            data, url, authenticator=authenticator, metrics=Metrics(__version__), upstreams=upstreams
        )
        registry.token_flow = auth == "token"
        runner = web.AppRunner(create_app(registry), shutdown_timeout=30.0, **RUNNER_OPTIONS)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            print(f"registry at {bound(listener)}", flush=True)  # noqa: T201 - the program's only output
            stopped = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopped.set)
            await stopped.wait()
        finally:
            await runner.cleanup()
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
    arguments = parser.parse_args()
    log.configure("text")
    try:
        address = _address(arguments.listen)
        if arguments.auth == "none" and not address.is_loopback:
            raise InvalidInput("a registry without login listens on loopback only", hint="--auth basic or token")
        uvloop.run(run(arguments.data.absolute(), address, arguments.auth, parse(" ".join(arguments.upstream))))
    except FaasError as error:
        user.complain(error)
        return 1
    return 0


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError:
        raise InvalidInput(f"--listen must be HOST:PORT, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
