"""What `faas dev` looks at in a folder: which files count, in which state they are, and when to look again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faas import spec_file
from faas.build import requirements
from faas.build.layer import IGNORE_FILE, members, patterns
from faas.build.push import code_members
from faas.errors import InvalidInput
from faas.spec import FunctionSpec

QUIET_MS, LONGEST_MS = 20, 250  # files that are saved together are taken together
AGAIN_MS = 2000  # looked at without being told, too: some file systems tell nobody
# At the top of the folder: what makes the image, and not its code.
SETUP = (
    *(spec_file.NAME, IGNORE_FILE, "Dockerfile"),
    *("package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"),
)

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Look:
    """Files by their path from the folder, each with its state. `setup` says how the image below the code is made."""

    code: Mapping[str, Stamp]
    setup: Mapping[str, Stamp]


@dataclass(frozen=True, slots=True)
class Change:
    """Names of files that are new, gone or other ones."""

    code: tuple[str, ...]
    setup: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.code or self.setup)

    def __str__(self) -> str:
        """`app.py`, `app.py, util.py and 3 more`."""
        names = list(dict.fromkeys((*self.setup, *self.code)))
        more = len(names) - 2
        return ", ".join(names) if more <= 0 else f"{', '.join(names[:2])} and {more} more"


def look(folder: Path, spec: FunctionSpec) -> Look:
    """Blocking. Raises InvalidInput on what cannot be packed."""
    if not spec.runtime:  # all of it goes into the image's build
        found = [member.source for member in members(folder, "", patterns(folder)) if member.source]
        archive = folder / spec.image
        return Look({}, _stamps(folder, [*found, *_setup(folder), *([archive] if spec.image else [])]))
    code = [
        path
        for member in code_members(folder, spec)
        if (path := member.source or _link(folder, member.name)) is not None
    ]
    return Look(_stamps(folder, code), _stamps(folder, _setup(folder)))


def _link(folder: Path, name: str) -> Path | None:
    path = folder / name.removeprefix("var/task/")
    return path if path.is_symlink() else None


def _setup(folder: Path) -> list[Path]:
    found = [folder / name for name in SETUP]
    listed = folder / requirements.NAME
    try:
        found += requirements.read(listed).files if listed.exists() else ()
    except InvalidInput:  # a list that is half written, or includes one that is not there
        found.append(listed)
    return [*found, *(folder / "wheels").glob("*.whl")]


def _stamps(folder: Path, paths: Iterable[Path]) -> dict[str, Stamp]:
    found: dict[str, Stamp] = {}
    for path in paths:
        try:
            status = path.lstat()
        except OSError:
            continue
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        found[name] = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
    return found


def change(before: Look, after: Look) -> Change:
    """What is another file now than it was. Pure."""
    return Change(_other(before.code, after.code), _other(before.setup, after.setup))


def _other(before: Mapping[str, Stamp], after: Mapping[str, Stamp]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


async def moments(folder: Path) -> AsyncGenerator[None, None]:
    """When to look: soon after something in the folder changed, and every two seconds."""
    from watchfiles import awatch

    async for _ in awatch(
        folder,
        watch_filter=None,
        debounce=LONGEST_MS,
        step=QUIET_MS,
        rust_timeout=AGAIN_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    ):
        yield
