"""What a `requirements.txt` names beside packages: other files, and variables (pip, "Requirements File Format").

Read, never resolved: that is pip's.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from faas.errors import InvalidInput

NAME = "requirements.txt"
_CONTINUED = re.compile(r"\\\r?\n")
_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTION = re.compile(r"(-[rcef]|--(?:requirement|constraint|editable|find-links))(?:[\s=]+|(?<=^-[rcef]))(\S.*)")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_DIRECT = re.compile(r"[A-Za-z0-9._-]+\s*(?:\[[^\]]*\])?\s*@\s*(.+)")
_EXTRAS = re.compile(r"\[[^\]]*\]$")
_ARCHIVE = re.compile(r"\.(whl|zip|tar|tgz|tbz|txz|tar\.\w+)$")


@dataclass(frozen=True, slots=True)
class Requirements:
    """`files` are the list itself, those that it includes, and local archives; `lists` are only the former two.

    `settled` is False where the content of something that is named is not known here: a URL, a folder. `sources`: it
    names something that has to be built before it can be installed.
    """

    files: tuple[Path, ...]
    lists: tuple[Path, ...]
    variables: tuple[str, ...]
    settled: bool
    empty: bool
    sources: bool = False


def found(folder: Path, work: Path) -> Path | None:
    """Blocking. A folder's list: `requirements.txt`, else one of `pyproject.toml`'s dependencies, made in `work`.

    Raises InvalidInput where these are not written there, or it makes no sense.
    """
    if (path := folder / NAME).exists():
        return path
    try:
        written = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"pyproject.toml: {error}") from None
    project = written.get("project") or {}
    if "dependencies" in project.get("dynamic", ()) or "dependencies" in written.get("tool", {}).get("poetry", {}):
        raise InvalidInput(
            "pyproject.toml does not list its dependencies in [project]", hint=f"write them into {NAME} (export)"
        )
    rows = project.get("dependencies", [])
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise InvalidInput("pyproject.toml: project.dependencies must be a list of texts")
    made = work / "pyproject.txt"
    made.write_text("".join(f"{' '.join(row.split())}\n" for row in rows), encoding="utf-8")
    return made


def read(path: Path) -> Requirements:
    """Blocking. `path` and what it includes. Raises InvalidInput where a file is missing."""
    lists: dict[Path, None] = {}
    archives: dict[Path, None] = {}
    variables: dict[str, None] = {}
    settled = empty = True
    sources = False
    todo = [path]
    while todo:
        current = todo.pop()
        if current in lists:
            continue
        lists[current] = None
        text = _text(current)
        variables |= dict.fromkeys(_VARIABLE.findall(text))
        for option, value in _lines(text):
            empty = empty and option not in ("", "e")
            known = "://" not in value and "${" not in value
            sources = sources or (not option and is_source(value, path.parent))
            if option in ("r", "c") and known:
                todo.append(current.parent / value)
            elif option == "f":
                settled = settled and "://" in value  # an index is as settled as the default one
            elif option or "://" in value:
                archive = None if option else _local_url(value)
                settled = settled and archive is not None
                archives |= {archive: None} if archive else {}
            elif (named := _local(value, path.parent)) is not None:
                settled = settled and named.is_file()
                archives |= {named: None} if named.is_file() else {}
    return Requirements((*lists, *archives), tuple(lists), tuple(variables), settled, empty, sources)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # an editor of another system may have put a mark there
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from None


def whole_lines(path: Path) -> Iterator[str]:
    """Blocking. Its lines that say something: without comments, continued ones as one. Raises InvalidInput."""
    return _whole(_text(path))


def _whole(text: str) -> Iterator[str]:
    lines = (_COMMENT.sub("", written).strip() for written in _CONTINUED.sub(" ", text).splitlines())
    return filter(None, lines)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Every line that names something: the option's first letter or "", and what it names."""
    for line in _whole(text):
        if option := _OPTION.fullmatch(line):
            yield option[1].lstrip("-")[0], option[2].strip("\"'")
        elif not line.startswith("-"):
            yield "", re.split(r"\s+--|\s*;", line)[0].strip()


def is_source(value: str, folder: Path) -> bool:
    """Whether a requirement names a folder, or an archive that is no wheel."""
    direct = _DIRECT.fullmatch(value)
    named = _EXTRAS.sub("", (direct[1] if direct else value)).partition("#")[0]
    if "://" in named:
        return not urlsplit(named).path.endswith(".whl")
    local = _local(value, folder)
    return local is not None and local.suffix != ".whl"


def _local_url(value: str) -> Path | None:
    """The file of `file:///…` or `name @ file:///…`, where it is one."""
    direct = _DIRECT.fullmatch(value)
    url = urlsplit(direct[1] if direct else value)
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.is_file() else None


def _local(value: str, folder: Path) -> Path | None:
    """What pip takes for a path and not for a package's name; relative ones are seen from where pip runs."""
    direct = _DIRECT.fullmatch(value)
    name = _EXTRAS.sub("", (direct[1] if direct else value).removeprefix("file:"))
    return folder / name if direct or is_path(name) else None


def is_path(name: str) -> bool:
    """What pip takes for a path and not for a package's name."""
    return "/" in name or name.startswith(".") or _ARCHIVE.search(name) is not None
