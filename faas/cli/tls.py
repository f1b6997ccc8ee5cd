"""`faas tls set|off|renew|show`: serving other machines. On the server's own host, by whoever runs the server."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from faas import settings as settings_module
from faas.certificate import Certificate, fingerprint
from faas.cli import own_names, tls_clients
from faas.cli.output import Json, as_json, note, output_option
from faas.config_file import edited
from faas.errors import InvalidInput
from faas.settings import ENV_PREFIX, Address, Settings
from faas.tls_folder import TlsFolder

F = TypeVar("F", bound=Callable[..., Any])

LISTENERS = ("listen", "api_listen", "registry_listen")
OURS = (*LISTENERS, "public_url", "tls_cert", "tls_key")
HTTPS = 443


def data_option(command: F) -> F:
    return click.option(
        "--data", type=click.Path(path_type=Path), metavar="DIR", help="The server's data folder."
    )(command)  # fmt: skip


@click.group()
def tls() -> None:
    """Serve other machines: this server's name and certificate, on its own host."""


@tls.command("set")
@click.argument("name")
@click.option("--cert", type=click.Path(path_type=Path), metavar="FILE", help="A certificate (PEM) with its chain.")
@click.option("--key", type=click.Path(path_type=Path), metavar="FILE", help="Its key (PEM).")
@click.option("--new-ca", is_flag=True, help="Make a new CA, which clients need anew; a given certificate goes.")
@data_option
def tls_set(name: str, cert: Path | None, key: Path | None, new_ca: bool, data: Path | None) -> None:
    """Have the server answer other machines as NAME, with TLS; prints its API's URL.

    Without a certificate it is given one by a CA of its own. Again it changes nothing. A running server takes a new
    certificate at once, and another name at its next start.
    """
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together")
    if cert is not None and new_ca:
        raise click.UsageError("--new-ca makes a certificate, and --cert gives one")
    name = own_names.checked(name)
    folder, settings = _opened(data)
    now = datetime.now(UTC)
    if cert is not None and key is not None:
        outcome = folder.install(cert, key, name, now)
    else:
        outcome = folder.set_own(name, own_names.own(name, settings.domain), now, new_ca=new_ca)
    note(outcome.words)
    if not own_names.resolved(name):
        note(f"warning: {name} does not resolve here; other machines need it in DNS or in their /etc/hosts")
    values = _values(name, folder, settings)
    if _configure(settings.data / "config.toml", values):
        note(f"wrote {settings.data / 'config.toml'}; it counts from the next start of the server")
    click.echo(f"https://{Address(name, settings.api_listen.port)}")


@tls.command("off")
@data_option
def tls_off(data: Path | None) -> None:
    """Serve this machine alone again, from the next start; certificates and CA stay for another `set`."""
    folder, settings = _opened(data)
    file = settings.data / "config.toml"
    if _written(file).get("tls_cert") != str(folder.server_file):
        raise InvalidInput(f"{file} has no certificate of faas tls set", hint="what was written by hand goes by hand")
    values: dict[str, str | None] = dict.fromkeys(OURS)
    for listener in LISTENERS:
        own = Address("127.0.0.1", getattr(settings, listener).port)
        if str(own) != Settings.__dataclass_fields__[listener].metadata["default"]:
            values[listener] = str(own)
    _configure(file, values)
    click.echo(f"http://127.0.0.1:{settings.api_listen.port}")


@tls.command("renew")
@data_option
def tls_renew(data: Path | None) -> None:
    """Issue the own CA's certificate anew where it is due; the server does so by itself, twice a day."""
    folder, settings = _opened(data)
    outcome = folder.renew(own_names.own(folder.name(), settings.domain), datetime.now(UTC))
    note(outcome.words)
    click.echo(folder.server_file)


@tls.command("show")
@data_option
@output_option
def tls_show(data: Path | None, output: str) -> None:
    """The certificate, its CA's fingerprint, and what other machines need: exact lines."""
    shown = _described(settings_module.load({"data": data}))
    if output == "json":
        click.echo(as_json(shown))
    elif output == "name":
        click.echo(shown["name"])
    else:
        for key in ("names", "issuer", "ends", "ca", "ca_fingerprint", "ca_ends"):
            if shown[key]:
                click.echo(f"{key.replace('_', ' '):<16}{shown[key] if key != 'names' else ', '.join(shown[key])}")
        click.echo("\non other machines:")
        for line in tls_clients.lines(shown["api"], shown["public"], shown["registry"], shown["ca_fingerprint"]):
            click.echo(line)


def _opened(data: Path | None) -> tuple[TlsFolder, Settings]:
    """The settings as they are once the certificate is there: what is refused without one must not stand in its way."""
    place = settings_module.load({"data": data, "tls_cert": "-", "tls_key": "-"}).data / "tls"
    file = str(TlsFolder(place).server_file)
    settings = settings_module.load({"data": data, "tls_cert": file, "tls_key": file})
    return TlsFolder(place, _group(settings)), settings


def _group(settings: Settings) -> int | None:
    """The account's that the server gives root up for."""
    if os.geteuid() != 0:
        return None
    from worker.launcher import privileges

    account = privileges.account(settings.user)
    return account.gid if account else None


def _values(name: str, folder: TlsFolder, settings: Settings) -> dict[str, str | None]:
    """The settings of a server that others reach as `name`. Ports stay, and listeners that were beyond loopback."""
    addresses = own_names.resolved(name)
    everywhere = "::" if addresses and all(":" in one for one in addresses) else "0.0.0.0"  # noqa: S104
    values: dict[str, str | None] = {"tls_cert": str(folder.server_file), "tls_key": str(folder.server_file)}
    for listener in LISTENERS:
        address: Address = getattr(settings, listener)
        if settings.sources[listener].startswith(ENV_PREFIX):
            if address.is_loopback:
                note(f"warning: {settings.sources[listener]} keeps that listener on {address}")
        elif address.is_loopback:
            values[listener] = str(Address(everywhere, address.port))
    if urlsplit(settings.public_url).scheme != "https" or urlsplit(settings.public_url).hostname != name:
        values["public_url"] = f"https://{_at(name, settings.listen.port)}"
    return values


def _at(name: str, port: int) -> str:
    text = str(Address(name, port))
    return text.removesuffix(f":{HTTPS}") if port == HTTPS else text


def _written(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text()) if file.exists() else {}


def _configure(file: Path, values: Mapping[str, str | None]) -> bool:
    """Whether the file changed."""
    text = file.read_text() if file.exists() else ""
    changed = edited(text, {key: value for key, value in values.items() if _written(file).get(key) != value})
    if changed == text:
        return False
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(descriptor, "w") as new:
        os.fchmod(new.fileno(), file.stat().st_mode & 0o777 if file.exists() else 0o644)
        new.write(changed)
    Path(temporary).replace(file)
    return True


def _described(settings: Settings) -> Json:
    if not settings.tls:
        raise InvalidInput("this server has no certificate", hint="faas tls set NAME, or ./deploy/up --host NAME")
    from cryptography import x509

    from faas.local_ca import names_of

    try:
        pem = Path(settings.tls_cert).read_bytes()
        shown, read = Certificate.read(pem), x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InvalidInput(f"{settings.tls_cert} cannot be used: {error}") from None
    folder = TlsFolder(settings.data / "tls")
    ca = x509.load_pem_x509_certificate(shown.ca.encode()) if shown.ca else None
    name = urlsplit(settings.public_url).hostname or next(iter(names_of(read)), "localhost")
    return {
        "name": name,
        "names": names_of(read),
        "issuer": read.issuer.rfc4514_string(),
        "ends": f"{read.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "ca": str(folder.ca_file) if ca and folder.ca_file.exists() else "",
        "ca_fingerprint": fingerprint(shown.ca) if ca else "",
        "ca_ends": f"{ca.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}" if ca else "",
        "api": f"https://{Address(name, settings.api_listen.port)}",
        "public": settings.public_url.rstrip("/") or f"https://{_at(name, settings.listen.port)}",
        "registry": str(Address(name, settings.registry_listen.port)),
    }
