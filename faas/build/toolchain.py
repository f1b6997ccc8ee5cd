"""What a sandbox that builds wheels has beyond a Python base: pip, the headers of the interpreter, and the compilers of
this machine where it has them (Debian's packages). Everything blocks.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faas.build import rootfs
from faas.build.fingerprint import fingerprint
from faas.build.interpreter import Python
from faas.build.layer import Member, ignored, members
from faas.errors import NotFound

FOLDER = "opt/build"
PROGRAM = f"/{FOLDER}/build.py"
# Packages of a C and C++ compiler, and what these need beyond programs' libraries.
_PACKAGES = re.compile(
    r"(gcc|g\+\+|cpp)(-\d+)?(-x86-64-linux-gnu|-aarch64-linux-gnu)?|binutils(-x86-64-linux-gnu|-aarch64-linux-gnu)?"
    r"|libc6-dev|linux-libc-dev|libgcc-\d+-dev|libstdc\+\+-\d+-dev|libcrypt-dev|make"
)
# Of these: what is for other languages, for tests, for people, or for linking what no wheel is linked with.
_LEFT_OUT = (
    "lto1", "lto-wrapper", "*lto-dump*", "g++-mapper-server", "*gcov*", "*-gold", "*ld.gold", "*dwp", "*gp-*",
    "*gprof*", "lib[alt]san*", "libubsan*", "libhwasan*", "libasan*", "libitm*", "libgomp*.a", "libquadmath*", "libc.a",
    "libm-*.a", "libmvec.a", "libstdc++*.a", "libsupc++.a", "*.la",
)  # fmt: skip
_ELF = b"\x7fELF"


def files(python: Python) -> list[Member]:
    """The builder's own program, pip, headers, compilers."""
    rows = [Member(f"{FOLDER}/build.py", source=rootfs.RUNTIMES / "builder" / "build.py")]
    rows += members(_pip(), f"{FOLDER}/pip", ("__pycache__",))
    for place in _headers(python):
        above = f"{rootfs.triplet()}/" if place.parent.name == rootfs.triplet() else ""
        rows += members(place, f"usr/include/{above}{place.name}")
    return rows + _compilers()


def made_of(python: Python) -> str:
    """One hash of the files that `files` gathers."""
    places = [_pip(), rootfs.RUNTIMES / "builder", *_headers(python), *_compiler_files()]
    return fingerprint([place for place in places if not place.is_symlink()], ("__pycache__",))


def _pip() -> Path:
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise NotFound("the server's Python has no pip", hint="install pip beside the server")
    return Path(found.origin).parent


def _headers(python: Python) -> list[Path]:
    """Where the interpreter's own headers are, if they are here."""
    beside = python.stdlib.parent.parent / "include"
    place = beside / f"python{python.version}"
    debians = beside / rootfs.triplet() / place.name  # its pyconfig.h
    return [p for p in (place, debians) if p.is_dir()] if (place / "Python.h").exists() else []


def _compilers() -> list[Member]:
    rows = {}
    programs = []
    for path in _compiler_files():
        inside = _inside(path)
        if path.is_symlink():
            rows[inside] = Member(inside, link=str(path.readlink()))
            continue
        is_program = _is_elf(path)
        rows[inside] = Member(inside, source=path, executable=bool(path.stat().st_mode & 0o111))
        if is_program and path.stat().st_mode & 0o111:
            programs.append(path)
    for name, path in rootfs.linked(programs).items() if programs else ():
        if not name.startswith("ld-"):
            inside = f"usr/lib/{rootfs.triplet()}/{name}"
            rows.setdefault(inside, Member(inside, source=path.resolve(), executable=True))
    return list(rows.values())


def _inside(path: Path) -> str:
    """Debian's /lib, /bin and /lib64 are links to those below /usr."""
    inside = path.as_posix().lstrip("/")
    return inside if inside.startswith("usr/") else f"usr/{inside}"


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ELF


def _compiler_files() -> list[Path]:
    """Files and links of the compilers' packages; none where this machine has no such packages."""
    if shutil.which("dpkg-query") is None or shutil.which("gcc") is None:
        return []
    return [path for path in _packaged() if path.is_file()]  # no folders, and no /lib, which is a link to one


def _query(*arguments: str) -> list[str]:
    done = subprocess.run(["dpkg-query", *arguments], capture_output=True, text=True, timeout=rootfs.TOOL_SECONDS)
    return done.stdout.splitlines()


def _packaged() -> Iterator[Path]:
    rows = (row.partition(" ") for row in _query("--show", "--showformat", "${binary:Package} ${db:Status-Abbrev}\n"))
    names = [name for name, _, state in rows if _PACKAGES.fullmatch(name.partition(":")[0]) and state.startswith("ii")]
    listed = _query("--listfiles", *names) if names else []
    for text in sorted({row for row in listed if row.startswith("/")}):
        if not text.startswith("/usr/share/") and not ignored(text.lstrip("/"), _LEFT_OUT):
            yield Path(text)
