"""A folder as an image layer: the same files give the same bytes, whoever packs them, wherever and whenever.

Names are sorted, times and owners are zero, modes are 0644 or 0755. The archive is not compressed: what a compressor
writes changes with its version, a function's code is kilobytes, and a layer on this machine's disk is unpacked faster.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import stat
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faas.errors import InvalidInput, StorageFull
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest

IGNORE_FILE = ".faasignore"
# Where programs keep index addresses, tokens and passwords: an image is read by everyone who may pull it.
CREDENTIALS = (".npmrc", ".netrc", ".pypirc", "pip.conf", ".env", ".env.*")
ALWAYS_IGNORED = (
    *CREDENTIALS,
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "*.pyc",
    ".venv",
    "venv",
    "node_modules",
    ".DS_Store",
    ".faasignore",
)
LAYER_BYTES = 1 << 30
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer in a file. Uncompressed, so that its digest is its diff id too."""

    path: Path
    digest: Digest
    size: int
    description: str

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_types.OCI_LAYER, self.digest, self.size)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: `name` is its path in the image; one of `source`, `content`, `link` is set, none for a folder."""

    name: str
    source: Path | None = None
    content: bytes | None = None
    link: str | None = None
    executable: bool = False
    mode: int | None = None


def patterns(folder: Path) -> tuple[str, ...]:
    """What is left out: always credentials and litter, and what `.faasignore` names (shell patterns, # comments).

    Raises InvalidInput for a rule that would be taken for another one.
    """
    try:
        lines = (folder / IGNORE_FILE).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return ALWAYS_IGNORED
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {IGNORE_FILE}: {error}") from None
    written = [line.strip().rstrip("/") for line in lines]
    rules = [line for line in written if line and not line.startswith("#")]
    for rule in rules:
        if rule.startswith("!") or "\\" in rule:
            raise InvalidInput(
                f"{IGNORE_FILE}: {rule!r}: there is neither ! nor \\",
                hint="name what is left out, / between folders",
            )
    return (*ALWAYS_IGNORED, *rules)


def ignored(relative: str, rules: Iterable[str]) -> bool:
    """A rule that begins with / is matched from the top, part by part; any other one everywhere, on name or path."""
    name = relative.rpartition("/")[2]
    return any(
        _at_top(relative, rule[1:])
        if rule.startswith("/")
        else fnmatch.fnmatchcase(name, rule) or fnmatch.fnmatchcase(relative, rule)
        for rule in rules
    )


def _at_top(relative: str, rule: str) -> bool:
    parts, wanted = relative.split("/"), rule.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def members(folder: Path, target: str, rules: tuple[str, ...] = ()) -> Iterator[Member]:
    """Everything below `folder`, as entries below `target`. Raises InvalidInput on what cannot be packed safely."""
    root = folder.resolve()
    for current, folders, files in os.walk(folder, onerror=_unreadable):
        base = Path(current).relative_to(folder)
        folders[:] = sorted(name for name in folders if not ignored((base / name).as_posix(), rules))
        links = [name for name in folders if (Path(current) / name).is_symlink()]
        yield from (Member(f"{target}/{composed((base / n).as_posix())}") for n in folders if n not in links)
        for file in sorted(files) + links:
            path, relative = Path(current) / file, (base / file).as_posix()
            if ignored(relative, rules):
                continue
            try:
                relative.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"the file name {os.fsencode(relative)!r} is not UTF-8", hint="rename it") from None
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                yield Member(f"{target}/{composed(relative)}", link=_link(path, relative, root))
            elif stat.S_ISREG(status.st_mode):
                name = f"{target}/{composed(relative)}"
                yield Member(name, source=path, executable=is_executable(path, status.st_mode))


def composed(name: str, *, decomposes: bool = sys.platform == "darwin") -> str:
    """Where the system takes names apart (é as e and an accent): as everybody else writes them, git too."""
    return unicodedata.normalize("NFC", name) if decomposes else name


def is_executable(path: Path, mode: int, *, has_modes: bool = os.name != "nt") -> bool:
    """Where the system keeps no modes: a program by how it begins."""
    if has_modes:
        return bool(mode & 0o111)
    with path.open("rb") as file:
        return file.read(4).startswith((b"#!", b"\x7fELF"))


def _unreadable(error: OSError) -> None:
    """`os.walk` would leave the folder out and say nothing."""
    raise InvalidInput(
        f"cannot read {error.filename}: {error.strerror}", hint=f"make it readable, or name it in {IGNORE_FILE}"
    ) from None


def _link(path: Path, relative: str, root: Path) -> str:
    """What a link says in the image: as written where that leads to the same place there, else relative."""
    try:
        end = path.resolve()
    except RuntimeError:
        raise InvalidInput(f"the link {relative} leads in a circle") from None
    if not end.is_relative_to(root):
        raise InvalidInput(f"the link {relative} leaves the folder", hint="copy what it points to")
    written = str(path.readlink())
    stays = not os.path.normpath(f"{relative}/../{written}").startswith("..")
    return written if stays and not written.startswith("/") else os.path.relpath(end, path.parent.resolve())


def check_size(rows: Iterable[Member]) -> None:
    """Raises InvalidInput, with what is largest, where the files are more than a layer holds; before any is read."""
    sizes = sorted(((row.source.stat().st_size, row.name) for row in rows if row.source is not None), reverse=True)
    if (total := sum(size for size, _ in sizes)) > LAYER_BYTES:
        largest = ", ".join(f"{name.rpartition('/')[2]} ({size >> 20} MiB)" for size, name in sizes[:3])
        raise InvalidInput(
            f"the folder has {total >> 20} MiB; {LAYER_BYTES >> 20} MiB are taken. The largest: {largest}",
            hint=f"list what is not needed in {IGNORE_FILE}",
        )


class _Hashing(io.RawIOBase):
    """Writes through to a file, hashing; refuses past the limit."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.size += len(data)
        if self.size > LAYER_BYTES:
            raise InvalidInput(f"the layer is larger than {LAYER_BYTES >> 20} MiB", hint=f"list files in {IGNORE_FILE}")
        self.hash.update(data)
        return self._file.write(data)


def pack(entries: Iterable[Member], path: Path, description: str) -> Layer:
    """Blocking. Write the layer to `path`."""
    rows = sorted(entries, key=lambda member: member.name)
    known = {member.name for member in rows}
    parents = {parent for member in rows for parent in _parents(member.name)} - known
    with open(path, "wb") as file:
        out = _Hashing(file)
        # GNU's format has no times, host names or locale in extended headers.
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
            for member in sorted([*rows, *map(Member, parents)], key=lambda m: m.name):
                _add(archive, member)
        return Layer(path, Digest("sha256", out.hash.hexdigest()), out.size, description)


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _add(archive: tarfile.TarFile, member: Member) -> None:
    entry = tarfile.TarInfo(member.name)
    if member.link is not None:
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, member.link, 0o777
        archive.addfile(entry)
    elif member.source is not None:
        entry.mode = member.mode or (0o755 if member.executable else 0o644)
        try:
            with open(member.source, "rb") as file:
                entry.size = os.fstat(file.fileno()).st_size
                archive.addfile(entry, file)
        except OSError as error:  # also where it has become shorter meanwhile
            if error.errno == errno.ENOSPC:
                raise StorageFull(f"there is no room for a layer in {tempfile.gettempdir()}") from None
            raise InvalidInput(
                f"cannot read {member.source}: {error.strerror or error}",
                hint=f"make it readable, or name it in {IGNORE_FILE}",
            ) from None
    elif member.content is not None:
        entry.mode = member.mode or (0o755 if member.executable else 0o644)
        entry.size = len(member.content)
        archive.addfile(entry, io.BytesIO(member.content))
    else:
        entry.type, entry.mode = tarfile.DIRTYPE, member.mode or 0o755
        archive.addfile(entry)
