"""`Reference`: `[host/]repository[:tag][@digest]` (distribution-spec, "Pulling manifests")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from faas.oci.digest import Digest
from faas.settings import Address

REPOSITORY_PATTERN = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
TAG_PATTERN = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
HOST_PATTERN = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9.-]*|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_COMPANION = re.compile(r"(sha256|sha512)-([0-9a-f]{64})(?:\.[a-z]+)?")
REPOSITORY_LENGTH = 255
BASES = "runtime/"  # begins the repositories of the runtime bases, which belong to no namespace


def is_repository(text: str) -> bool:
    """Whether a repository may be called so."""
    return len(text) <= REPOSITORY_LENGTH and REPOSITORY_PATTERN.fullmatch(text) is not None


def namespace_of(repository: str) -> str:
    """`team/hello` belongs to `team`; one without a slash, and the runtime bases, to `default`."""
    first, slash, _ = repository.partition("/")
    return first if slash and not repository.startswith(BASES) else "default"


@dataclass(frozen=True, slots=True)
class Reference:
    """`host` is "" where none is written; at least one of `tag` and `digest` is set (tag `latest` by default)."""

    host: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ValueError that says which part is wrong."""
        rest, _, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if digest_text else None
        first, slash, after = rest.partition("/")
        host = ""
        if slash and ("." in first or ":" in first or first == "localhost"):
            host, rest = first, after
            if not HOST_PATTERN.fullmatch(host):
                raise ValueError(f"not a host: {host[:160]!r}")
        repository, colon, tag = rest.rpartition(":")
        if not colon:
            repository, tag = rest, ""
        if len(repository) > REPOSITORY_LENGTH or not REPOSITORY_PATTERN.fullmatch(repository):
            raise ValueError(f"not a repository name: {repository[:160]!r}")
        if (colon or not digest) and not TAG_PATTERN.fullmatch(tag or "latest"):
            raise ValueError(f"not a tag: {tag[:160]!r}")
        return cls(host, repository, tag or ("" if digest else "latest"), digest)

    @property
    def target(self) -> str:
        """What stands in a manifest's URL: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag

    @property
    def local(self) -> str:
        """The repository in this server's own registry: a host that is written is the upstream it is copied from, with
        a port behind a `-`, as a repository's name holds no colon."""
        return f"{self.host.replace(':', '-')}/{self.repository}" if self.host else self.repository

    def is_at(self, registry: str) -> bool:
        """Whether its host is `registry` (host:port). This machine has several names: localhost, 127.0.0.1, [::1]."""
        if self.host == registry:
            return True
        try:
            own, other = Address.parse(self.host), Address.parse(registry)
        except ValueError:
            return False
        return own.port == other.port and own.is_loopback and other.is_loopback

    def __str__(self) -> str:
        host = f"{self.host}/" if self.host else ""
        tag = f":{self.tag}" if self.tag else ""
        return f"{host}{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def referrers_tag(subject: Digest) -> str:
    """The tag under which clients keep what refers to a manifest where a registry cannot list it (distribution-spec,
    "Referrers Tag Schema"): the algorithm, and 64 characters of what it encodes."""
    return f"{subject.algorithm}-{subject.hex[:64]}"


def companion_of(tag: str) -> str:
    """The digest, or its beginning, of the image that a tag is about: a referrers tag, or one with an ending that says
    what it holds, as cosign's `.sig`, `.att` and `.sbom`. "" for any other tag."""
    match = _COMPANION.fullmatch(tag)
    return f"{match[1]}:{match[2]}" if match else ""
