"""`TlsFolder`: DIR/tls, where a server that serves other machines has its certificate, and its own CA where it has one.

| file | mode | what |
|---|---|---|
| `ca.pem` | 0600 | the CA's key and certificate: root's alone, the server's account never reads it |
| `ca.crt` | 0644 | the CA's certificate, for other machines |
| `server.pem` | 0640 | key and certificate that the listeners show: the server's account reads them, renewed ones too |

Each file is replaced at once: whoever reads meanwhile finds the old one, whole. Everything here is blocking.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from faas.errors import InvalidInput
from faas.local_ca import LocalCa, holds_for, is_due, names_of, same_key

MOST_BYTES = 1_048_576  # of a file that is given


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to: in words for people."""

    changed: bool
    words: str


@dataclass(frozen=True, slots=True)
class TlsFolder:
    """`group`: that of the server's account; None: the files are of whoever runs this."""

    path: Path
    group: int | None = None

    @property
    def server_file(self) -> Path:
        return self.path / "server.pem"

    @property
    def ca_file(self) -> Path:
        return self.path / "ca.crt"

    def make(self) -> None:
        """Raises InvalidInput where it is not our own: the data folder is open to the server's account."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o755)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise InvalidInput(f"{self.path} is not ours", hint="look at what it is, and remove it")

    def ca(self) -> LocalCa | None:
        """None where there is none."""
        try:
            return LocalCa.load((self.path / "ca.pem").read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"{self.path / 'ca.pem'} cannot be used: {error}", hint="restore it, or remove it"
            ) from None

    def certificate(self) -> x509.Certificate | None:
        """What the listeners show; None where there is nothing yet."""
        try:
            return x509.load_pem_x509_certificate(self.server_file.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InvalidInput(f"{self.server_file} cannot be used: {error}", hint="remove it") from None

    def is_given(self) -> bool:
        """Whether somebody else issued what is shown."""
        ca, shown = self.ca(), self.certificate()
        return shown is not None and (ca is None or not ca.has_issued(shown))

    def name(self) -> str:
        """The host that what is shown was made for; "" where there is nothing."""
        shown = self.certificate()
        return next(iter(names_of(shown)), "") if shown else ""

    def set_own(self, name: str, others: Iterable[str], now: datetime, *, new_ca: bool = False) -> Outcome:
        """Have `name` and, where the CA may vouch for them, `others` in a certificate of our own."""
        self.make()
        others = tuple(others)
        ca, shown, made = self.ca(), self.certificate(), False
        if shown and not new_ca and self.is_given() and holds_for(shown, name) and shown.not_valid_after_utc > now:
            return Outcome(False, f"the certificate that was given holds for {name} and stays")
        if new_ca or ca is None or not ca.may_name(name) or ca.certificate.not_valid_after_utc <= now:
            ca, made = LocalCa.make(name, others, now), True
            self._write("ca.pem", ca.dump(), 0o600)
        if not self.ca_file.exists() or self.ca_file.read_bytes() != ca.pem:
            self._write("ca.crt", ca.pem, 0o644)
        names = [name, *(one for one in dict.fromkeys(others) if one != name and ca.may_name(one))]
        if shown and ca.has_issued(shown) and not is_due(shown, now) and _is_enough(shown, names):
            return Outcome(False, "the certificate stays")
        self._write("server.pem", ca.issue(names, now), 0o640)
        words = f"a certificate for {name}"
        words = f"made a CA, and {words}: clients need the new ca.crt" if made else f"issued {words}"
        out = ", ".join(one for one in others if one not in names)
        return Outcome(True, f"{words}; without {out}, which the CA was not made for" if out else words)

    def renew(self, others: Iterable[str], now: datetime) -> Outcome:
        """Issue anew what is ours, where it is due or addresses have come, for whoever reads it now."""
        self.make()
        if self.is_given() or not self.name():
            return Outcome(False, "there is no certificate of an own CA here")
        same = replace(self, group=self.server_file.stat().st_gid if self.group is not None else None)
        return same.set_own(self.name(), others, now)

    def install(self, cert: Path, key: Path, name: str, now: datetime) -> Outcome:
        """Have a certificate that somebody else issued, with its chain. Raises InvalidInput that says what is wrong."""
        chain, private = _read(cert), _read(key)
        _check(cert, chain, key, private, name, now)
        self.make()
        content = private.rstrip() + b"\n" + chain
        if self.server_file.exists() and self.server_file.read_bytes() == content:
            return Outcome(False, "the certificate stays")
        self._write("server.pem", content, 0o640)
        return Outcome(True, f"installed {cert}")

    def _write(self, name: str, content: bytes, mode: int) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")  # made with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                if self.group is not None and mode & 0o070:
                    os.fchown(file.fileno(), -1, self.group)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise


def _is_enough(shown: x509.Certificate, names: Sequence[str]) -> bool:
    """An address that is gone is no reason for a new one: it may come back."""
    had = names_of(shown)
    return had[:1] == list(names[:1]) and set(names) <= set(had)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", hint="pass the files of a certificate and its key") from None


def _check(cert: Path, chain: bytes, key: Path, private: bytes, name: str, now: datetime) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise InvalidInput(
            f"{cert} is no certificate in PEM", hint="it begins with -----BEGIN CERTIFICATE-----"
        ) from None
    try:
        belongs = same_key(certificate, private)
    except TypeError:
        raise InvalidInput(f"{key} is encrypted", hint=f"openssl pkey -in {key} -out PLAIN.key") from None
    except ValueError:
        raise InvalidInput(f"{key} is no key in PEM", hint="it begins with -----BEGIN PRIVATE KEY-----") from None
    if not belongs:
        raise InvalidInput(f"{key} is not the key of {cert}", hint="pass the two that belong together")
    if certificate.not_valid_after_utc <= now:
        raise InvalidInput(f"{cert} ended on {certificate.not_valid_after_utc:%Y-%m-%d}", hint="renew it first")
    if certificate.not_valid_before_utc > now:
        raise InvalidInput(f"{cert} begins on {certificate.not_valid_before_utc:%Y-%m-%d}", hint="is the clock right?")
    if not holds_for(certificate, name):
        names = ", ".join(names_of(certificate)) or "no name"
        raise InvalidInput(f"{cert} holds for {names}, not for {name}", hint="pass --host with a name that it has")
