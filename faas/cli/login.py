"""`faas login`: remember a server, its token and the user; tell Docker too."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click

from faas.auth import ROOT
from faas.cli import authority
from faas.cli.options import pass_session
from faas.cli.output import at_terminal, note
from faas.cli.registry import described, registry_host, registry_url
from faas.cli.session import Session, Target, config_file, find, logged_in, read_ca
from faas.client import Client
from faas.errors import FaasError, InvalidInput, Unauthenticated
from faas.settings import Address, environment_for
from faas.spec import NAME_PATTERN
from faas.trust import Trust, Untrusted

REGISTRY_SECONDS = 10.0


@click.command()
@click.argument("url", required=False)
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option("--user", default="", show_default="as the server says", help="The name that Docker sends with it.")
@click.option("--namespace", "-n", default="", help="Where names are looked for that say no namespace; else default.")
@click.option("--no-docker", is_flag=True, help="Leave Docker's configuration alone.")
@click.option("--ca", type=click.Path(path_type=Path), metavar="FILE", help="The CA (PEM) to know the server by.")
@click.option("--ca-fingerprint", metavar="sha256:…", help="Take the server's own CA, if this is what it hashes to.")
@pass_session
def login(
    session: Session,
    url: str | None,
    token_stdin: bool,
    user: str,
    namespace: str,
    no_docker: bool,
    ca: Path | None,
    ca_fingerprint: str | None,
) -> None:
    """Check a token with the server at URL (its API listener) and remember both.

    The token comes by prompt or standard input, never as an argument. On the server's own host URL may be left
    out. Of a registry that runs alone URL is its address, and a user's password is the token.

    A server with a CA of its own is known by --ca or --ca-fingerprint, which `faas tls show` prints there. The CA is
    remembered too: every command asks for it.
    """
    if namespace and not NAME_PATTERN.fullmatch(namespace):
        raise click.BadParameter(f"{namespace!r} is no namespace: a-z, 0-9 and -", param_hint="--namespace")
    address = _address(url or session.target.url)
    pem = session.run(_authority(session, address, ca, ca_fingerprint))
    token = _token(token_stdin)
    target = Target(address, token, user or ROOT.name, trust=Trust(pem) if pem else _usual(session, address))
    info, user, accepted = session.run(_verify(target, user))
    path = config_file(session.settings)
    values = {"url": address, "token": token, "user": user}
    if namespace:
        values["namespace"] = namespace
    if not no_docker and info.get("registry"):
        values["docker"] = registry_host(str(info["registry"]))  # for faas logout
    if pem:
        values["ca"] = str(session.settings.config_home / "ca.crt")
        write_private(Path(values["ca"]), pem)
    # A JSON text without escaped characters beyond ASCII is a TOML text.
    write_private(path, "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items()))
    note(f"wrote {path}")
    if not no_docker and info.get("registry"):
        _tell_docker(str(info["registry"]), user, token, accepted)
        if pem:
            host = registry_host(str(info["registry"]))
            note(f"Docker needs the CA: sudo install -Dm644 {values['ca']} /etc/docker/certs.d/{host}/ca.crt")
    click.echo(address)


def _address(text: str) -> str:
    """With its scheme: what is beyond this machine has TLS."""
    text = text.rstrip("/")
    if "://" in text:
        return text
    host = urlsplit(f"//{text}").hostname or ""
    return f"{'http' if Address(host, 0).is_loopback else 'https'}://{text}"


async def _authority(session: Session, address: str, ca: Path | None, given: str | None) -> str:
    """The CA's certificate that this login is with; "": none was given, and none remembered for that address."""
    if ca and given:
        raise click.UsageError("--ca and --ca-fingerprint are two ways to say the same; pass one")
    if (ca or given) and not address.startswith("https://"):
        raise click.UsageError(f"{address} has no certificate; pass https://…")
    if ca:
        return read_ca(ca)
    if given:
        return await authority.by_fingerprint(address, given)
    remembered = logged_in(session.settings)
    if remembered.get("ca") and remembered.get("url") == address:
        return read_ca(Path(remembered["ca"]))
    return ""


def _usual(session: Session, address: str) -> Trust:
    """As for every command: FAAS_CA, or on the server's own host what the server left."""
    return find(replace(session.settings, url=address)).trust


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


async def _verify(target: Target, user: str) -> tuple[dict[str, Any], str, bool | None]:
    """The server's info, the name that goes with the token, `user` where that is given, and whether the server's
    registry takes both (None: it could not be asked)."""
    try:
        async with Client(target.url, target.token, trust=target.trust) as client:
            info = await described(client, target)
    except Untrusted as error:
        raise await authority.explained(error, target.url) from None
    user = user or str(info.get("user") or target.user)
    if not info.get("registry"):
        return info, user, None
    timeout = aiohttp.ClientTimeout(total=REGISTRY_SECONDS)
    headers = {"Authorization": "Basic " + basic(user, target.token)}
    connector = aiohttp.TCPConnector(ssl=target.trust.context())
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as http,
            http.get(registry_url(str(info["registry"]), target.url) + "/v2/") as answer,
        ):
            if answer.status == 401:
                raise Unauthenticated(
                    f"the API takes the token, but its registry does not take it for the user {user!r}",
                    hint="pass the token's own name: --user NAME",
                )
            return info, user, answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return info, user, None


def docker_config() -> Path:
    folder = environment_for(("DOCKER_CONFIG",)).get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _tell_docker(registry: str, user: str, token: str, accepted: bool | None) -> None:
    path = docker_config()
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
