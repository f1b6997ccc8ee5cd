"""`Target`: who is told of what, and which way. Secrets stand in it by their names (`gateway.secret_store`)."""

from __future__ import annotations

import dataclasses
import enum
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from faas import secret
from faas.errors import InvalidInput
from gateway.notify.states import REPEAT_SECONDS
from gateway.notify.subjects import MACHINE, Kind, Observation, Subject

ERRORS = 25  # percent of a function's invocations, where nothing is said
URL_CHARACTERS = 2048
CA_CHARACTERS = 65_536
MOST_RECEIVERS = 10
ADDRESS_CHARACTERS = 254  # RFC 5321, 4.5.3.1.3
REPEATS = (300, 7 * 86_400)  # seconds
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")


class Security(enum.StrEnum):
    """How a mail server is spoken to. STARTTLS is asked for, never merely hoped for."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


PORTS = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


@dataclass(frozen=True, slots=True)
class Webhook:
    """`url`, or `url_secret`, the secret that holds it. `signing_secret`: whose value signs; `own_secret`: it was made
    for this target, and goes with it. `ca`: PEM of who is trusted, "" for whom this machine trusts."""

    url: str = ""
    url_secret: str = ""
    signing_secret: str = ""
    own_secret: bool = False
    ca: str = ""

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(name for name in (self.url_secret, self.signing_secret) if name)


@dataclass(frozen=True, slots=True)
class Mail:
    host: str
    port: int
    security: Security
    sender: str
    to: tuple[str, ...]
    user: str = ""
    password_secret: str = ""
    ca: str = ""

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.password_secret,) if self.password_secret else ()


@dataclass(frozen=True, slots=True)
class Target:
    """`everywhere`: it hears of all namespaces and of the machine, else of its own namespace. `errors`: percent of a
    function's invocations that may fail; `repeat`: seconds."""

    namespace: str
    name: str
    way: Webhook | Mail
    on: frozenset[Kind]
    everywhere: bool = False
    errors: int = ERRORS
    repeat: int = REPEAT_SECONDS

    @property
    def place(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def kind(self) -> str:
        return "webhook" if isinstance(self.way, Webhook) else "mail"

    def hears_of(self, subject: Subject) -> bool:
        return subject.kind in self.on and (self.everywhere or subject.namespace == self.namespace)

    def minds(self, seen: Observation) -> bool:
        """Whether what was seen is bad enough for it."""
        return seen.subject.kind is not Kind.FUNCTION or 100 * seen.share >= self.errors


def definition(target: Target) -> dict[str, Any]:
    """As it is stored, and read by `stored`."""
    way = dataclasses.asdict(target.way)
    return {
        target.kind: way,
        "on": sorted(target.on),
        "everywhere": target.everywhere,
        "errors": target.errors,
        "repeat": target.repeat,
    }


def stored(namespace: str, name: str, value: Mapping[str, Any]) -> Target:
    """Raises ValueError, KeyError, TypeError on what `definition` has not written."""
    way: Webhook | Mail
    if "webhook" in value:
        way = Webhook(**value["webhook"])
    else:
        found = value["mail"]
        way = Mail(**{**found, "security": Security(found["security"]), "to": tuple(found["to"])})
    on = frozenset(Kind(one) for one in value["on"])
    return Target(namespace, name, way, on, value["everywhere"], value["errors"], value["repeat"])


@dataclass(frozen=True, slots=True)
class Reading:
    """A request's body, read key by key. `allow_private`: receivers may be on this machine and its networks, and there
    without TLS."""

    body: Mapping[str, Any]
    allow_private: bool
    within: str = field(default="")

    def only(self, *keys: str) -> None:
        """Raises InvalidInput on a key that nobody reads."""
        if unknown := [key for key in self.body if key not in keys]:
            raise InvalidInput(f"unknown key {self._named(unknown[0][:80])}", hint="known: " + ", ".join(keys))

    def part(self, key: str) -> Reading:
        value = self.body.get(key)
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{key} must be an object")
        return Reading(value, self.allow_private, key)

    def text(self, key: str, most: int = 1024) -> str:
        """One line of ASCII."""
        value = self.body.get(key, "")
        if (
            not isinstance(value, str)
            or len(value) > most
            or not value.isascii()
            or (value and not value.isprintable())
        ):
            raise InvalidInput(f"{self._named(key)} must be one line of at most {most} ASCII characters")
        return value

    def secret(self, key: str) -> str:
        """A stored secret's name. Nothing of what stands at its place is shown: it may be a value."""
        value = self.body.get(key, "")
        if value and (not isinstance(value, str) or not secret.NAME_PATTERN.fullmatch(value)):
            raise InvalidInput(
                f"{self._named(key)} must be the name of a stored secret: {secret.NAME_WORDS}",
                hint="not its value: faas secret set NAME stores that",
            )
        return str(value or "")

    def flag(self, key: str) -> bool:
        value = self.body.get(key, False)
        if not isinstance(value, bool):
            raise InvalidInput(f"{self._named(key)} must be true or false")
        return value

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self.body.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidInput(f"{self._named(key)} must be a whole number from {low} to {high}")
        return value

    def ca(self) -> str:
        value = self.body.get("ca", "")
        if not isinstance(value, str) or len(value) > CA_CHARACTERS:
            raise InvalidInput(f"{self._named('ca')} must be certificates as PEM, at most {CA_CHARACTERS} characters")
        if value:
            trusting(value)
        return value

    def _named(self, key: str) -> str:
        return f"{self.within}.{key}" if self.within else key


def parse(namespace: str, name: str, body: Mapping[str, Any], *, allow_private: bool) -> Target:
    """What `PUT /v1/notifications/{name}` was sent. Raises InvalidInput."""
    reading = Reading(body, allow_private)
    reading.only("webhook", "mail", "on", "everywhere", "errors", "repeat")
    if ("webhook" in body) == ("mail" in body):
        raise InvalidInput("a target is a webhook or mail, one of them")
    way = _webhook(reading.part("webhook")) if "webhook" in body else _mail(reading.part("mail"))
    everywhere = reading.flag("everywhere")
    return Target(
        namespace,
        name,
        way,
        _kinds(body.get("on"), everywhere),
        everywhere,
        reading.number("errors", ERRORS, 1, 100),
        reading.number("repeat", REPEAT_SECONDS, *REPEATS),
    )


def _kinds(value: Any, everywhere: bool) -> frozenset[Kind]:
    allowed = frozenset(Kind) if everywhere else frozenset(Kind) - MACHINE
    if value is None:
        return allowed
    known = {kind.value for kind in Kind}
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one in known for one in value):
        raise InvalidInput("on must be a list of " + ", ".join(Kind))
    wanted = frozenset(Kind(one) for one in value)
    if beyond := sorted(wanted - allowed):
        raise InvalidInput(
            f"on: {beyond[0]} is the machine's, and this target is a namespace's",
            hint="everywhere (--everywhere), by an administrator of everything",
        )
    return wanted


def _webhook(reading: Reading) -> Webhook:
    reading.only("url", "url_secret", "signing_secret", "ca")
    url, url_secret = reading.text("url", URL_CHARACTERS), reading.secret("url_secret")
    if bool(url) == bool(url_secret):
        raise InvalidInput("a webhook has one of url and url_secret")
    if url:
        check_url(url, allow_private=reading.allow_private)
    return Webhook(url, url_secret, reading.secret("signing_secret"), ca=reading.ca())


def check_url(url: str, *, allow_private: bool) -> None:
    """Raises InvalidInput that shows nothing of it: a hook's path is often all that guards it."""
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0) and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not valid or len(url) > URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput(f"a webhook's URL is https, without a user in it, of at most {URL_CHARACTERS} characters")
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise InvalidInput(
            "a webhook's URL is https", hint="http is for this machine and its networks: private_notifications"
        )


def _mail(reading: Reading) -> Mail:
    reading.only("server", "security", "sender", "to", "user", "password_secret", "ca")
    written = reading.text("security") or Security.STARTTLS.value
    if written not in list(Security):
        raise InvalidInput("mail.security must be one of " + ", ".join(Security))
    security = Security(written)
    host, port = _server(reading.text("server"), PORTS[security])
    receivers = reading.body.get("to")
    if not isinstance(receivers, list) or not 1 <= len(receivers) <= MOST_RECEIVERS:
        raise InvalidInput(f"mail.to must be a list of 1 to {MOST_RECEIVERS} addresses")
    to = tuple(_address(one, "mail.to") for one in receivers)
    user, password = reading.text("user", 256), reading.secret("password_secret")
    if bool(user) != bool(password):
        raise InvalidInput("mail.user and mail.password_secret go together")
    if security is Security.NONE and (user or not reading.allow_private):
        raise InvalidInput(
            "mail.security none is for a server of this machine and its networks that asks for no password",
            hint="starttls or tls; or the setting private_notifications",
        )
    sender = _address(reading.body.get("sender"), "mail.sender")
    return Mail(host, port, security, sender, to, user, password, reading.ca())


def _server(text: str, port: int) -> tuple[str, int]:
    host, colon, written = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    elif written.isdecimal() and len(written) <= 5 and 0 < int(written) < 65_536:
        port = int(written)
    else:
        host = ""
    if not _HOST.fullmatch(host):
        raise InvalidInput("mail.server must be HOST or HOST:PORT")
    return host.strip("[]"), port


def _address(value: Any, key: str) -> str:
    if not isinstance(value, str) or len(value) > ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(value):
        raise InvalidInput(f"{key} must be an address such as ops@example.com")
    return value


def trusting(ca: str) -> ssl.SSLContext:
    """For clients. `ca`: PEM, "" for whom this machine trusts. Raises InvalidInput."""
    try:
        return ssl.create_default_context(cadata=ca or None)
    except (ssl.SSLError, ValueError):
        raise InvalidInput("ca must be certificates as PEM") from None
