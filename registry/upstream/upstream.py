"""`Upstream`: a registry that this one keeps copies of; `Upstreams`: all that are configured, found by repository.

An upstream's word is the administrator's: where it is, who we are there. What it answers is not trusted.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from yarl import URL

from faas.checks import parse_duration
from faas.errors import InvalidInput

EXPIRE = timedelta(hours=24)  # Docker Hub's images move about daily, and it counts who asks more often
LONGEST = timedelta(days=365)
PASSWORD_BYTES = 4096
KEYS = ("auth", "user", "password-file", "expire")
HINT = "NAME=URL[,auth=URL][,user=U,password-file=FILE][,expire=24h] with blanks between several"
_NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*(:[0-9]{1,5})?")
_DOCKER_HUB = "docker.io"  # where `alpine` means `library/alpine`


@dataclass(frozen=True, slots=True)
class Upstream:
    """`name` is the host in references (`docker.io`); `auth`: where its tokens may come from, beside `url` itself."""

    name: str
    url: URL
    auth: URL | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    expire: timedelta = EXPIRE

    @property
    def prefix(self) -> str:
        """Begins the names of its copies here; a repository's name can hold no colon."""
        return self.name.replace(":", "-") + "/"

    def remote(self, name: str) -> str:
        """The repository's name there, given how it is called behind `prefix`."""
        return f"library/{name}" if self.name == _DOCKER_HUB and "/" not in name else name


@dataclass(frozen=True, slots=True)
class Copied:
    """A repository here that is a copy: `name` is its name at the upstream."""

    upstream: Upstream
    name: str

    @property
    def repository(self) -> str:
        """Its one name here, however it was asked for."""
        return self.upstream.prefix + self.name


class Upstreams:
    """None by default: pulling through is off."""

    def __init__(self, upstreams: Iterable[Upstream] = ()) -> None:
        self._by_prefix = {upstream.prefix: upstream for upstream in upstreams}
        self._by_name = {upstream.name: upstream for upstream in self._by_prefix.values()}

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._by_prefix.values())

    def of(self, repository: str) -> Copied | None:
        """What `repository` is a copy of; None where it is this registry's own."""
        first, slash, rest = repository.partition("/")
        upstream = self._by_prefix.get(first + slash)
        return None if upstream is None or not rest else Copied(upstream, upstream.remote(rest))

    def canonical(self, repository: str) -> str:
        """`docker.io/alpine` and `docker.io/library/alpine` are one."""
        copied = self.of(repository)
        return repository if copied is None else copied.repository

    def meant(self, name: str, source: str | None) -> str | None:
        """The repository here that `?ns=SOURCE` makes of `name` (distribution-spec, "Registry Proxying"); None where
        that names no upstream."""
        upstream = self._by_name.get((source or "").lower())
        return None if upstream is None else upstream.prefix + name


def parse(text: str) -> Upstreams:
    """The setting `registry_upstreams`, password files read. Raises InvalidInput that names the entry, no secret."""
    found: dict[str, Upstream] = {}
    for entry in text.split():
        upstream = _entry(entry)
        if upstream.prefix in found:
            raise InvalidInput(f"registry_upstreams: {upstream.name} stands there twice")
        found[upstream.prefix] = upstream
    return Upstreams(found.values())


def _entry(entry: str) -> Upstream:
    first, *options = entry.split(",")
    name, equals, url = first.partition("=")
    if not equals:
        raise InvalidInput("registry_upstreams: an entry has no =", hint=HINT)
    where = f"registry_upstreams: {name[:80]}"
    if not _NAME.fullmatch(name) or not ("." in name or ":" in name):
        raise InvalidInput(f"{where}: the name must be a host with a dot or a port, such as docker.io", hint=HINT)
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in KEYS or not equals or not value or key in values:
            known = ", ".join(KEYS)
            raise InvalidInput(f"{where}: {key[:20]!r} must be one of {known}, written once with a value", hint=HINT)
        values[key] = value
    if ("user" in values) != ("password-file" in values):
        raise InvalidInput(f"{where}: user and password-file go together", hint=HINT)
    return Upstream(
        name,
        _root(f"{where}: its URL", url),
        _root(f"{where}: auth", values["auth"]) if "auth" in values else None,
        values.get("user", ""),
        _password(f"{where}: password-file", values["password-file"]) if "password-file" in values else "",
        _expire(f"{where}: expire", values["expire"]) if "expire" in values else EXPIRE,
    )


def _root(where: str, text: str) -> URL:
    """The error shows no part of the text: who writes a password into a URL must not find it in a log."""
    try:
        url = URL(text)
        valid = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        valid = False
    if not valid or url.user or url.password or url.path != "/" or url.query_string or url.fragment:
        raise InvalidInput(f"{where} must be http(s)://HOST[:PORT] and nothing more", hint=HINT)
    return url.origin()


def _password(where: str, path: str) -> str:
    file = Path(path)
    if not file.is_absolute():
        raise InvalidInput(f"{where} must be an absolute path")
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > PASSWORD_BYTES:
            raise InvalidInput(f"{where} {path} is no file of at most {PASSWORD_BYTES} bytes")
        if about.st_mode & 0o077:
            raise InvalidInput(f"{where} {path} can be read by others", hint=f"chmod 600 {path}")
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{where} {path} cannot be read: {type(error).__name__}") from None
    if not password or not password.isprintable():
        raise InvalidInput(f"{where} {path} must hold one line of text")
    return password


def _expire(where: str, text: str) -> timedelta:
    try:
        expire = parse_duration(text)
    except ValueError:
        raise InvalidInput(f"{where} must be a duration such as 24h") from None
    if not timedelta() <= expire <= LONGEST:
        raise InvalidInput(f"{where} must be between 0s and {LONGEST.days} days")
    return expire
