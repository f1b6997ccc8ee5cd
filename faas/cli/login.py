"""`faas login`: remember a server, its token and the user; tell Docker too."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import click

from faas.cli.options import pass_session
from faas.cli.output import at_terminal, note
from faas.cli.registry import described, registry_host, registry_url
from faas.cli.session import Session, Target, config_file
from faas.client import Client
from faas.errors import FaasError, InvalidInput, Unauthenticated
from faas.settings import environment_for

REGISTRY_SECONDS = 10.0


@click.command()
@click.argument("url", required=False)
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option("--user", default="admin", show_default=True, help="The token's name, as Docker sends it.")
@click.option("--no-docker", is_flag=True, help="Leave Docker's configuration alone.")
@pass_session
def login(session: Session, url: str | None, token_stdin: bool, user: str, no_docker: bool) -> None:
    """Check a token with the server at URL (its API listener) and remember both.

    The token comes by prompt or standard input, never as an argument. On the server's own host URL may be left
    out. Of a registry that runs alone URL is its address, and a user's password is the token.
    """
    address = (url or session.target.url).rstrip("/")
    if "://" not in address:
        address = f"http://{address}"
    token = _token(token_stdin)
    info, accepted = session.run(_verify(address, token, user))
    path = config_file(session.settings)
    values = {"url": address, "token": token, "user": user}
    # A JSON text without escaped characters beyond ASCII is a TOML text.
    write_private(path, "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items()))
    note(f"wrote {path}")
    if not no_docker and info.get("registry"):
        _tell_docker(str(info["registry"]), user, token, accepted)
    click.echo(address)


def _token(from_stdin: bool) -> str:
    if from_stdin:
        token = sys.stdin.readline().strip()
    elif at_terminal():
        token = str(click.prompt("Token", hide_input=True, err=True)).strip()
    else:
        raise click.UsageError("nobody is here to ask for the token; pass --token-stdin")
    if not token or not token.isprintable():
        raise InvalidInput("that is no token", hint="the administrator's lies in the data folder: admin-token")
    return token


async def _verify(address: str, token: str, user: str) -> tuple[dict[str, Any], bool | None]:
    """The server's info, and whether its registry takes user and token (None: it could not be asked)."""
    async with Client(address, token) as client:
        info = await described(client, Target(address, token, user))
    if not info.get("registry"):
        return info, None
    timeout = aiohttp.ClientTimeout(total=REGISTRY_SECONDS)
    headers = {"Authorization": "Basic " + basic(user, token)}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as http,
            http.get(registry_url(str(info["registry"]), address) + "/v2/") as answer,
        ):
            if answer.status == 401:
                raise Unauthenticated(
                    f"the API takes the token, but its registry does not take it for the user {user!r}",
                    hint="pass the token's own name: --user NAME",
                )
            return info, answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return info, None


def _tell_docker(registry: str, user: str, token: str, accepted: bool | None) -> None:
    folder = environment_for(("DOCKER_CONFIG",)).get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    host = registry_host(registry)
    try:
        helper = add_docker_login(path, host, user, token)
    except (FaasError, OSError) as error:
        note(f"Docker was not told: {error}; run docker login {host}")
        return
    note(f"wrote {path}: docker push {host}/NAME works" + (f" after docker login {host}" if helper else ""))
    if accepted is None:
        note(f"the registry at {host} could not be reached from here")


def add_docker_login(path: Path, host: str, user: str, token: str) -> str:
    """Merge one registry's credentials into Docker's config.json. Returns the credential helper that would hide them.

    Raises InvalidInput where the file is not what Docker writes; OSError.
    """
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        config = {}
    except ValueError:
        raise InvalidInput(f"{path} is not JSON") from None
    if not isinstance(config, dict) or not isinstance(config.setdefault("auths", {}), dict):
        raise InvalidInput(f"{path} is not Docker's")
    config["auths"][host] = {"auth": basic(user, token)}
    write_private(path, json.dumps(config, indent=2) + "\n")
    helpers = config.get("credHelpers")
    return str((helpers.get(host) if isinstance(helpers, dict) else "") or config.get("credsStore") or "")


def basic(user: str, token: str) -> str:
    """Basic credentials (RFC 7617), as the header and Docker's file have them."""
    return base64.b64encode(f"{user}:{token}".encode()).decode()


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner alone. A link is followed, not replaced."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
