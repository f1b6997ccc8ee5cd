"""`Vault`: seals secrets with a key that is kept beside the database, in a file of its own.

Each value is sealed with AES-256-GCM, a nonce of its own, and namespace, name, version and key as associated data: what
is taken from one row is worth nothing in another one.

The key file (`KEY_FILE` in the data folder, mode 0600, the server's account's) is made when the first secret is set.
Its lines are `ID KEY`, the current one first; others are there only while a rotation is under way, and a crash there
leaves all that is needed to read everything.

What a backup may hold: the database, in which secrets are sealed, always. The key file (`key_file(data)`) only where it
was asked for by name: whoever has both has the values. Without it a restored server shows the secrets by name as
unreadable, and each has to be set anew.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from faas.errors import Unavailable
from faas.secret import Secret
from gateway.store.secrets import Sealed

log = logging.getLogger("faas.secrets")

KEY_FILE = "secrets-key"
KEY_BYTES = 32
NONCE_BYTES = 12  # random, which is good for 2^32 values of one key (NIST SP 800-38D, 8.3)
FILE_BYTES = 65_536
_ABOUT = "# Opens the secrets of functions: without it they are lost, with it whoever has the database reads them.\n"


def key_file(data: Path) -> Path:
    """Where the keys of the server with this data folder are; there is none before its first secret."""
    return data / KEY_FILE


class Vault:
    """Methods that are not `seal` and `open` block. One at a time changes its keys."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys: dict[str, bytes] = {}  # the current one first

    def load(self) -> None:
        """Take the keys that there are. Raises Unavailable where the file is there and cannot be read."""
        for half in self._file.parent.glob(f"{self._file.name}.{'[0-9a-f]' * 8}"):  # a crash was in the middle of it
            with contextlib.suppress(OSError):
                half.unlink()
        try:
            text = _plain(self._file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"the key of the secrets, {self._file}, cannot be read: {error.strerror}") from None
        try:
            rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
            keys = {name: base64.b64decode(key, validate=True) for name, key in rows}
        except (ValueError, binascii.Error):
            keys = {"": b""}
        if not keys or any(len(key) != KEY_BYTES for key in keys.values()):
            raise Unavailable(f"{self._file} holds no key of secrets", hint="put it back from a backup")
        self._keys = keys

    def ensure(self) -> None:
        """Make a key where there is none. Raises Unavailable."""
        if not self._keys:
            self._write(_fresh())

    @property
    def key(self) -> str:
        """The current key's id; "" before there is one."""
        return next(iter(self._keys), "")

    @property
    def is_rotating(self) -> bool:
        return len(self._keys) > 1

    def knows(self, row: Sealed) -> bool:
        """Whether its key is here."""
        return row.key in self._keys

    def begin_rotation(self) -> None:
        """From here on a new key seals, and the old ones still open. Raises Unavailable."""
        self._write({**_fresh(), **self._keys})

    def end_rotation(self) -> None:
        """Nothing is sealed with the old ones any more, and that is on disk: forget them. Raises Unavailable."""
        self._write({self.key: self._keys[self.key]})

    def seal(self, row: Sealed, value: Secret) -> Sealed:
        """`row` with this value, by the current key."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(self._keys[self.key]).encrypt(nonce, value.reveal().encode(), _bound(row, self.key))
        return Sealed(
            row.namespace, row.name, row.version, self.key, nonce + sealed, value.size, row.set_at, row.set_by
        )

    def open(self, row: Sealed) -> Secret:
        """Raises Unavailable where its key is not here, or the row is not what was sealed."""
        if (key := self._keys.get(row.key)) is None:
            log.error(
                "the secret %s of %s was sealed with a key that is not in %s", row.name, row.namespace, self._file
            )
            raise Unavailable("a secret cannot be read: its key is not here", hint="set it anew: faas secret set")
        nonce, sealed = row.data[:NONCE_BYTES], row.data[NONCE_BYTES:]
        try:
            return Secret(AESGCM(key).decrypt(nonce, sealed, _bound(row, row.key)).decode())
        except (InvalidTag, ValueError):
            log.error("the secret %s of %s is not what was stored", row.name, row.namespace)
            raise Unavailable("a secret cannot be read: it is damaged", hint="set it anew: faas secret set") from None

    def _write(self, keys: dict[str, bytes]) -> None:
        """All of them, whole and on disk, or as before."""
        text = _ABOUT + "".join(f"{name} {base64.b64encode(key).decode()}\n" for name, key in keys.items())
        try:
            _replace(self._file, text.encode())
        except OSError as error:
            raise Unavailable(f"the key of the secrets cannot be written to {self._file}: {error.strerror}") from None
        self._keys = keys


def _fresh() -> dict[str, bytes]:
    return {secrets.token_hex(8): secrets.token_bytes(KEY_BYTES)}


def _bound(row: Sealed, key: str) -> bytes:
    """The associated data. No part holds the character that is between them."""
    return "\0".join(("faas secret", row.namespace, row.name, str(row.version), key)).encode()


def _plain(file: Path) -> str:
    """Never what a link leads to. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, encoding="ascii", errors="replace") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no plain file")
        if found.st_mode & 0o077:
            log.warning("%s is open to others: it is closed to them now", file)
            os.fchmod(descriptor, 0o600)
        return opened.read(FILE_BYTES)


def _replace(file: Path, content: bytes) -> None:
    """Raises OSError."""
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())
        temporary.rename(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
