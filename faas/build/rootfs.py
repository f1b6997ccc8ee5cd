"""The files of a runtime base, gathered from this machine: an interpreter, the shared libraries it needs, and the
little that programs expect of a system. Everything blocks: run it in a thread.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faas.build.fingerprint import fingerprint, stamp
from faas.build.interpreter import Node, Python
from faas.build.layer import Member, members
from faas.errors import FaasError, NotFound

RUNTIMES = Path(__file__).resolve().parent.parent / "runtimes"
TOOL_SECONDS = 300.0
# Of the standard library: what only its own tests, a screen, or a compiler needs.
_LEFT_OUT = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3", "config-*",
    "site-packages", "dist-packages", "pydoc_data", "*.a", "_test*.so", "_tkinter*.so", "_xxtest*", "__pycache__",
    "*.pyc",
)  # fmt: skip
_LIBRARY = re.compile(r"(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)")
# What wheels link: C++ (numpy), vector mathematics, and the parts of the C library that are empty since glibc 2.34 but
# still asked for.
_EXTRA_LIBRARIES = (
    "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libm.so.6",
    "libmvec.so.1", "libutil.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2", "libz.so.1",
)  # fmt: skip
_LIBRARY_FOLDERS = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_FOLDERS = ("dev", "etc", "opt", "proc", "root", "run", "sys", "usr/bin", "usr/lib", "usr/lib64", "var", "var/task")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_ZONES = Path("/usr/share/zoneinfo")
_ZONES_LEFT_OUT = ("right", "posix", "*.tab", "leapseconds", "localtime", "posixrules")
_NODE_SHARED = Path("/usr/share/nodejs")  # Debian's node keeps parts of itself there
_NODE_LEFT_OUT = ("/types", "*.d.ts", "*.md")  # undici's types are a link to a package beside it
_NODE_PARTS = ("undici", "cjs-module-lexer", "acorn", "acorn-walk", "busboy", "streamsearch")


def triplet() -> str:
    """The folder of this machine's libraries below /usr/lib, where the loader looks by itself."""
    return f"{os.uname().machine}-linux-gnu"


def system() -> list[Member]:
    """What every base has: folders, users, name service, certificates, zones, a shell."""
    found = [Member(name) for name in _FOLDERS]
    found += [Member("tmp", mode=0o1777)]
    found += [Member(name, link=f"usr/{name}") for name in ("bin", "lib", "lib64")]
    texts = {
        "etc/passwd": _PASSWD,
        "etc/group": _GROUP,
        "etc/nsswitch.conf": b"hosts: files dns\n",
        "etc/hosts": b"127.0.0.1 localhost\n",
        "etc/resolv.conf": b"",
    }
    found += [Member(name, content=content) for name, content in texts.items()]
    if _CERTIFICATES.exists():
        found.append(Member("etc/ssl/certs/ca-certificates.crt", content=_CERTIFICATES.read_bytes()))
    if _ZONES.exists():
        found += members(_ZONES, "usr/share/zoneinfo", _ZONES_LEFT_OUT)
    return found


def linked(binaries: Iterable[Path]) -> dict[str, Path]:
    """Shared libraries, by the name that the loader looks for, of everything in `binaries`; the loader itself too."""
    loader = next(
        (Path(p) for p in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if Path(p).exists()), None
    )
    if loader is None:
        raise NotFound("this machine has no glibc loader")
    found = {loader.name: loader}
    for binary in binaries:
        for name, path in _needed(loader, binary, stamp(binary)):
            found.setdefault(name, path)
    return found


@functools.lru_cache(maxsize=2000)
def _needed(loader: Path, binary: Path, stamped: tuple[int, int, int]) -> list[tuple[str, Path]]:
    """What the loader finds for one file; asked again when the file has changed."""
    done = subprocess.run([str(loader), "--list", str(binary)], capture_output=True, text=True, timeout=TOOL_SECONDS)
    if done.returncode < 0:  # that of a static program exits
        raise FaasError(f"the loader was ended by signal {-done.returncode} at {binary}")
    return [(Path(name or path).name, Path(path)) for name, path in _LIBRARY.findall(done.stdout)]


def extra_libraries() -> dict[str, Path]:
    folders = [Path(f) / triplet() for f in _LIBRARY_FOLDERS] + [Path(f) for f in _LIBRARY_FOLDERS]
    hits = {name: next((f / name for f in folders if (f / name).exists()), None) for name in _EXTRA_LIBRARIES}
    return {name: path for name, path in hits.items() if path is not None}


def with_libraries(binaries: dict[str, Path], work: Path) -> list[Member]:
    """Programs and modules (name inside → file here) with every library they need, stripped where `strip` is there."""
    libraries = linked([*binaries.values(), *extra_libraries().values()]) | extra_libraries()
    rows = []
    for name, path in binaries.items():
        rows.append(Member(name, source=_stripped(path, work), executable=True))
    for name, path in libraries.items():
        folder = (
            "usr/lib64"
            if name.startswith("ld-linux-x86")
            else "usr/lib"
            if name.startswith("ld-")
            else f"usr/lib/{triplet()}"
        )
        rows.append(Member(f"{folder}/{name}", source=_stripped(path.resolve(), work), executable=True))
    return rows


def _stripped(path: Path, work: Path) -> Path:
    """A copy without symbols: half the size for self-built interpreters. The file as it is where strip fails."""
    if shutil.which("strip") is None:
        return path
    handle, name = tempfile.mkstemp(dir=work)
    os.close(handle)
    command = ["strip", "--strip-unneeded", "-o", name, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=TOOL_SECONDS)
    return Path(name) if done.returncode == 0 else path


def shell() -> dict[str, Path]:
    path = shutil.which("dash") or shutil.which("sh")
    return {"usr/bin/sh": Path(path).resolve()} if path else {}


@contextmanager
def work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faas-base-") as name:
        yield Path(name)


def python_files(python: Python, work: Path) -> list[Member]:
    """The interpreter at /usr/bin, its trimmed and byte-compiled standard library, its libraries."""
    inside = f"usr/lib/python{python.version}"
    copy = work / "root" / inside
    shutil.copytree(python.stdlib, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=False)
    compile_python(python.executable, copy, work / "root")
    binaries = {f"usr/bin/python{python.version}": python.executable, **shell()}
    for module in sorted((copy / "lib-dynload").glob("*.so")):
        binaries[f"{inside}/lib-dynload/{module.name}"] = module
    rules = ("lib-dynload/*.so",)
    rows = list(members(copy, inside, rules))
    rows += [Member(f"usr/bin/{name}", link=f"python{python.version}") for name in ("python3", "python")]
    rows.append(Member("opt/python"))  # where dependencies are mounted into a runtime that runs already
    return rows + with_libraries(binaries, work)


def node_files(node: Node, work: Path) -> list[Member]:
    rows = with_libraries({"usr/bin/node": node.executable, **shell()}, work)
    rows.append(Member("opt/nodejs"))  # as `opt/python`
    for part in _node_parts(node):
        rows += members(part, f"usr/share/nodejs/{part.name}", _NODE_LEFT_OUT)
    return rows


def _node_parts(node: Node) -> list[Path]:
    if not str(node.executable).startswith("/usr/bin"):
        return []
    return [_NODE_SHARED / name for name in _NODE_PARTS if (_NODE_SHARED / name).exists()]


def provided_files(work: Path) -> list[Member]:
    return with_libraries(shell(), work)


def client_files(language: str, work: Path, python: Python | None = None) -> list[Member]:
    """The runtime client, at /opt/faas/<language>."""
    target = f"opt/faas/{language}"
    copy = work / "client" / target
    shutil.copytree(RUNTIMES / language, copy, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    if python is not None:
        compile_python(python.executable, copy, work / "client")
    return list(members(copy, target, ("*.md",)))


def made_of(interpreter: Python | Node | None) -> str:
    """One hash of every file here that a base of `interpreter` (None: of a shell alone) is gathered from."""
    binaries = list(shell().values())
    folders: list[Path] = []
    if isinstance(interpreter, Python):
        binaries += [interpreter.executable, *(interpreter.stdlib / "lib-dynload").glob("*.so")]
        folders = [interpreter.stdlib]
    elif interpreter is not None:
        binaries.append(interpreter.executable)
        folders = _node_parts(interpreter)
    libraries = (linked([*binaries, *extra_libraries().values()]) | extra_libraries()).values()
    system_wide = [path for path in (_CERTIFICATES,) if path.exists()]
    parts = (
        fingerprint([*binaries, *(path.resolve() for path in libraries), *system_wide]),
        fingerprint(folders, (*_LEFT_OUT, *_NODE_LEFT_OUT)),
        fingerprint([_ZONES] if _ZONES.exists() else [], _ZONES_LEFT_OUT),
    )
    return " ".join(parts)


def compile_python(executable: Path, folder: Path, root: Path) -> None:
    """Byte-compile for a root file system that cannot be written: valid whatever the sources' times are."""
    command = [str(executable), "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(root), "-p", "/", str(folder)]
    env = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS, env=env)
    if not any(folder.rglob("*.pyc")):
        raise FaasError(f"the standard library cannot be compiled: {done.stdout[-300:]}{done.stderr[-300:]}")
