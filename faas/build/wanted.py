"""What a build on the server is told of a function's requirements: lists in which nothing of this machine stands.

Indexes become those that the sandbox knows (`faas.build.relay`), addresses become paths there, and what lies on this
machine is sent along. Everything blocks.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from faas.build import messages, requirements
from faas.build.layer import ALWAYS_IGNORED, members
from faas.build.relay import Relay
from faas.errors import InvalidInput

_OPTION = re.compile(r"(?:--([a-z-]+)|-([a-z]))(?:[\s=]+|(?<=^-[a-z]))?(.*)")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_DIRECT = re.compile(r"([A-Za-z0-9._-]+\s*(?:\[[^\]]*\])?)\s*@\s*(\S+)")
_REST = re.compile(r"\s+--|\s*;\s|\s+;")
_EXTRAS = re.compile(r"\[[^\]]*\]$")
_VCS = re.compile(r"(git|hg|svn|bzr)\+")
_PASSED_ON = ("pre", "prefer-binary", "no-binary", "only-binary", "require-hashes", "use-feature")


@dataclass
class Wanted:
    """`files`: path below the sandbox's input folder → where it is here."""

    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


class Reader:
    """Reads lists for one build. `work` gets archives of folders; `folder` is where relative paths begin."""

    def __init__(self, folder: Path, relay: Relay, variables: Mapping[str, str], work: Path) -> None:
        self.wanted = Wanted()
        self._folder = folder
        self.relay = relay
        self._variables = variables
        self._work = work
        self._read: set[tuple[Path, bool]] = set()

    def read(self, path: Path, *, constraints: bool = False) -> None:
        """A list and what it includes. Raises InvalidInput for what is not offered."""
        if (path, constraints) in self._read:
            return
        self._read.add((path, constraints))
        target = self.wanted.constraints if constraints else self.wanted.requirements
        for written in requirements.whole_lines(path):
            line = _VARIABLE.sub(lambda found: self._variables.get(found[1], found[0]), written)
            if not line.startswith("-"):
                target.append(self._requirement(line))
                continue
            option = _OPTION.fullmatch(line)
            name, value = ((option[1] or option[2]), option[3].strip("\"' ")) if option else ("", "")
            if name in ("r", "requirement", "c", "constraint"):
                if "://" in value:
                    raise InvalidInput(f"{path.name}: {_shown(line)}: a list is a file", hint="download it")
                self.read(path.parent / value, constraints=constraints or name[0] == "c")
            elif name in ("e", "editable"):
                raise InvalidInput(**_editable(path.name, line))
            elif name in _PASSED_ON:
                target.append(line)
            elif not self.relay.settings.option(name, value):
                raise InvalidInput(f"{path.name}: {_shown(line)} is not offered where something is built on the server")

    def add_wheels(self, paths: Iterable[Path]) -> None:
        """What lies in `wheels/`: found first; a source archive there is what its name means."""
        for path in paths:
            self.wanted.files[f"links/{path.name}"] = path
            if path.suffix != ".whl":
                name = path.name.rpartition("-")[0]
                self.wanted.constraints.append(f"{name} @ file://{messages.INPUT}/links/{path.name}")

    def _requirement(self, line: str) -> str:
        rest = _REST.search(line)
        what, after = (line[: rest.start()], line[rest.start() :]) if rest else (line, "")
        direct = _DIRECT.fullmatch(what)
        named = direct[2] if direct else what
        before = f"{direct[1].strip()} @ " if direct else ""
        if _VCS.match(named):
            raise InvalidInput(
                f"{_shown(named)}: there is no {named.partition('+')[0]} where packages are built",
                hint="name an archive (https://…/TAG.tar.gz), or put a wheel into wheels/",
            )
        if named.startswith(("http://", "https://")):
            return f"{before}{messages.INDEX}{self.relay.place(named)}{after}"
        extras = _EXTRAS.search(named)
        text = named[: extras.start()] if extras else named
        place = Path(unquote(urlsplit(text).path)) if text.startswith("file:") else self._folder / text
        if not direct and not text.startswith("file:") and not requirements.is_path(text):
            return line
        sent = f"{messages.INPUT}/{self._sent(place)}"
        return f"{before}file://{sent}{after}" if direct else f"{sent}{extras[0] if extras else ''}{after}"

    def _sent(self, place: Path) -> str:
        """The path in the input folder of a file or folder of this machine."""
        number = len(self.wanted.files)
        if place.is_dir():
            name = re.sub(r"[^A-Za-z0-9._-]", "-", place.resolve().name) or "source"
            inside, place = f"sources/{number}/{name}.tar.gz", _packed(place, self._work / f"{number}.tar.gz")
        elif place.is_file():
            inside = f"sources/{number}/{place.name}"
        else:
            raise InvalidInput(f"cannot read {place}: there is no such file or folder")
        self.wanted.files[inside] = place
        return inside


def _packed(folder: Path, archive: Path) -> Path:
    """A folder of sources as pip takes it: one folder in a .tar.gz."""
    with tarfile.open(archive, "w:gz") as tar:
        for row in members(folder, "source", ALWAYS_IGNORED):
            if row.source is not None:
                tar.add(row.source, row.name, recursive=False, filter=_nobodys)
    return archive


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _editable(name: str, line: str) -> dict[str, str]:
    return {"message": f"{name}: {_shown(line)} is not offered: an image has no folder to edit", "hint": "drop -e"}


def _shown(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)[:200]
