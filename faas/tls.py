"""`Certificates`: what TLS listeners show, by the name that a client asks for (SNI); read anew when the files change.

`tls_cert` and `tls_key` are for whoever names no other host; the folder `tls_certs` has a pair NAME.crt, NAME.key for
each further one, `*.example.com.crt` (or `_.example.com.crt`) for all names one level below. TLS 1.2 and 1.3.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from faas.background import Background
from faas.certificate import Certificate
from faas.errors import InvalidInput

log = logging.getLogger("faas.tls")

HANDSHAKE_SECONDS = 10.0  # a connection that has no TLS by then is cut
LOOK_SECONDS = 2.0
MOST = 1000  # pairs
WILD = "*."

State = tuple[tuple[int, int, int], ...]  # of a pair's files: mtime, size, inode
Read = tuple[ssl.SSLContext, Certificate]


@dataclass(frozen=True, slots=True)
class Pair:
    """One certificate's files. `name`: a host, `*.` and a domain, or "" for everybody else."""

    name: str
    cert: Path
    key: Path

    def state(self) -> State | None:
        """Blocking. None where one of the files is missing."""
        try:
            found = [file.stat() for file in (self.cert, self.key)]
        except OSError:
            return None
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)

    def read(self) -> Read:
        """Blocking. Raises ValueError that says what is wrong with it."""
        context = server_context()
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
            pem = self.cert.read_bytes()
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ValueError(str(error)) from None
        if self.name and not any(covers(name, self.name) for name in names(pem)):
            raise ValueError(f"the certificate is not {self.name}'s")
        return context, Certificate.read(pem)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def names(pem: bytes) -> list[str]:
    """The host names of the first certificate, in lower case. Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return []
    value = extension.value
    assert isinstance(value, x509.SubjectAlternativeName)
    return [name.lower() for name in value.get_values_for_type(x509.DNSName)]


def covers(pattern: str, name: str) -> bool:
    """Whether a certificate's `pattern` holds for `name` (RFC 6125, 6.4.3): `*` is one whole label, the first."""
    if pattern == name:
        return True
    return pattern.startswith(WILD) and not name.startswith(WILD) and pattern[1:] == "." + name.partition(".")[2]


class Certificates:
    """`context` is for listeners. Raises InvalidInput where the pair for everybody, or one in `folder`, is unusable."""

    def __init__(self, cert: str, key: str, folder: str = "", *, look_seconds: float = LOOK_SECONDS) -> None:
        self._fallback = Pair("", Path(cert), Path(key))
        self._folder = Path(folder) if folder else None
        self._look_seconds = look_seconds
        self._states: dict[Pair, State | None] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._shown: dict[str, Certificate] = {}
        self._on_change: Callable[[], None] = lambda: None
        self._looked: dict[Pair, State | None] = {}
        self._background = Background()
        self._now = asyncio.Lock()
        for pair, state in self._look().items():
            try:
                self._contexts[pair.name], self._shown[pair.name] = pair.read()
            except ValueError as error:
                hint = "--tls-certs" if pair.name else "--tls-cert and --tls-key"
                raise InvalidInput(f"the certificate cannot be used: {error}: {pair.cert}", hint=hint) from None
            self._states[pair] = state
        self.context = server_context()
        self.context.load_cert_chain(cert, key, password=_no_password)
        self.context.sni_callback = self._choose

    @property
    def names(self) -> list[str]:
        """Those that have a certificate of their own."""
        return sorted(name for name in self._contexts if name)

    @property
    def shown(self) -> Certificate:
        """What whoever asks for no other name is shown."""
        return self._shown[""]

    @property
    def ends(self) -> dict[str, float]:
        """Name ("" for everybody else's) → Unix seconds."""
        return {name: certificate.until for name, certificate in self._shown.items()}

    async def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` hears of every certificate that came or went."""
        self._on_change = on_change
        self._background.start(self._run(), "certificates")

    async def stop(self) -> None:
        await self._background.cancel()

    async def reload(self) -> None:
        """Read what has changed now, without waiting for it to rest (SIGHUP)."""
        async with self._now:
            self._take(*await asyncio.to_thread(self._changed, False))

    def hurry(self) -> None:
        """`reload`, for a signal's handler."""
        self._background.start(self.reload(), "reading certificates")

    async def _run(self) -> None:
        for pair in self._states:
            if not os.access(pair.key, os.R_OK):
                log.warning("the server's account may not read %s: a new one is taken at the next start", pair.key)
        while True:
            await asyncio.sleep(self._look_seconds)
            async with self._now:
                self._take(*await asyncio.to_thread(self._changed, True))

    def _look(self) -> dict[Pair, State | None]:
        """Blocking. The pairs that are there. Raises InvalidInput for a folder that cannot be read."""
        found = [self._fallback]
        if self._folder is not None:
            try:
                files = sorted(file for file in self._folder.iterdir() if file.suffix == ".crt")
            except OSError as error:
                raise InvalidInput(f"tls_certs: {self._folder}: {error.strerror}") from None
            if len(files) > MOST:
                raise InvalidInput(f"tls_certs: {self._folder} has more than {MOST} certificates")
            found += [Pair(_name(file), file, file.with_suffix(".key")) for file in files]
        return {pair: pair.state() for pair in found}

    def _changed(self, rested: bool) -> tuple[dict[Pair, State | None], dict[Pair, Read | ValueError]]:
        """Blocking. What is there now, and what came of the pairs that are not as they were. `rested`: only those that
        look as they did the last time: who writes two files is not read between them."""
        now = self._look()
        read: dict[Pair, Read | ValueError] = {}
        for pair, state in now.items():
            if self._states.get(pair, ()) == state or (rested and self._looked.get(pair, ()) != state):
                continue
            try:
                read[pair] = pair.read()
            except (ValueError, OSError) as error:
                read[pair] = ValueError(str(error))
        self._looked = now
        return now, read

    def _take(self, now: Mapping[Pair, State | None], read: Mapping[Pair, Read | ValueError]) -> None:
        gone = self._states.keys() - now.keys()
        for pair, found in read.items():
            self._states[pair] = now[pair]
            if isinstance(found, ValueError):
                old = "the old one stays" if pair.name in self._contexts else "it is not shown"
                log.error("the certificate %s cannot be used: %s; %s", pair.cert, found, old)
                continue
            self._contexts[pair.name], self._shown[pair.name] = found
            log.info("the certificate %s was read anew", pair.cert)
        for pair in gone:
            del self._states[pair]
            self._shown.pop(pair.name, None)
            if self._contexts.pop(pair.name, None) is not None:
                log.info("the certificate %s is gone", pair.cert)
        if read or gone:
            self._on_change()

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        """OpenSSL's question, for each handshake: `name` is None where the client names no host."""
        connection.context = self.of(name or "")

    def of(self, name: str) -> ssl.SSLContext:
        """For the host `name`: its own, that of all names beside it, or everybody's."""
        name = name.lower().removesuffix(".")
        for known in (name, WILD + name.partition(".")[2]):
            if known and (context := self._contexts.get(known)) is not None:
                return context
        return self._contexts[""]


def _name(file: Path) -> str:
    name = file.stem.lower()
    return WILD + name[2:] if name.startswith(("_.", WILD)) else name
