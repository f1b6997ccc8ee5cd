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
        runner = web.AppRunner(create_app(registry), access_log=None, auto_decompress=False, shutdown_timeout=30.0)
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
        epilog="Who may log in: python -m registry user --help",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder for blobs and the database")
    parser.add_argument("--listen", default="127.0.0.1:5000", help="HOST:PORT")
    parser.add_argument("--auth", choices=("basic", "token", "none"), default="basic", help="none: on loopback only")
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
        address = Address.parse(arguments.listen)
        if arguments.auth == "none" and not address.is_loopback:
            raise InvalidInput("a registry without login listens on loopback only")
        uvloop.run(run(arguments.data.absolute(), address, arguments.auth, parse(" ".join(arguments.upstream))))
    except (FaasError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
