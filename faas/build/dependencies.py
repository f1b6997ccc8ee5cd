"""A function's dependencies as one layer, resolved for the server's platform and version, whatever runs here.

`requirements.txt` through pip, `package.json` through npm. Nothing of a package runs here: only wheels are taken, and
what has none is built on the server (`faas.build.remote`). A layer is kept by the hash of its inputs, so that a change
of code uploads kilobytes. pip and npm see their own settings; none of these reaches the layer.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faas.build import requirements
from faas.build.layer import Layer, Member, members, pack
from faas.build.requirements import Requirements
from faas.errors import InvalidInput, Unavailable
from faas.oci.digest import Digest
from faas.protocol import RuntimeBase
from faas.settings import environment_for

LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
SOURCES = (".tar.gz", ".zip", ".tgz", ".tar.bz2")
PIP_SECONDS = NPM_SECONDS = 600.0
FORMAT = "2"  # changes when the same inputs would give another layer
# Variables that pip, npm and the libraries below them read: index, proxy, certificates, credentials.
ENV_NAMES = (
    *("SYSTEMROOT", "APPDATA", "LOCALAPPDATA", "USERPROFILE"),  # where Windows' programs look
    *("LD_LIBRARY_PATH", "PYTHONPATH", "NETRC", "NPM_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
ENV_PREFIXES = ("PIP_", "NPM_CONFIG_", "npm_config_", "NODE_", "XDG_")
_NPM_VARIABLE = re.compile(r"\$\{(\w+)\??\}")
_NO_WHEEL = re.compile(
    r"No matching distribution found for (\S+)|Could not find a version that satisfies the requirement (\S+)"
)
_WHEEL = re.compile(r"([^-]+)-([^-]+)(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
# What pip writes beside a package's own files. It differs between machines, and direct_url.json may hold a password.
_PIP_NOTES = tuple(f"/*.dist-info/{name}" for name in ("RECORD", "REQUESTED", "INSTALLER", "direct_url.json"))
_NPM_NOTES = ("/.package-lock.json", "/.bin", "*/node_modules/.bin")
_ELSEWHERE = ("file:", "link:", "workspace:", "./", "../", "/", "~/")


class NeedsBuild(InvalidInput):
    """Something has no wheel that fits the server, and has to be built there."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a folder's packages are, by its list and what lies in `wheels/`, source archives too."""

    needs: Requirements
    wheels: tuple[Path, ...]

    @property
    def sources(self) -> bool:
        """Whether something has to be built, whatever indexes have."""
        return self.needs.sources or any(path.suffix != ".whl" for path in self.wheels)


def listed(folder: Path, work: Path) -> Listed | None:
    """Blocking. None where there is no list, or it names nothing. Raises InvalidInput."""
    path = requirements.found(folder, work)
    needs = requirements.read(path) if path is not None else None
    if needs is None or needs.empty:
        return None
    rows = (folder / "wheels").glob("*")
    return Listed(needs, tuple(sorted(path for path in rows if path.name.endswith((".whl", *SOURCES)))))


def python_layer(
    folder: Path, base: RuntimeBase, cache: Path, work: Path, built: Sequence[Path] | None = None
) -> Layer | None:
    """Blocking. The layer of `requirements.txt`, or of `pyproject.toml`'s dependencies, at /opt/python; None where
    there are none.

    It is kept in `cache` where its inputs are known, else in `work` for this push. `built`: all its wheels, as the
    server made them. Raises NeedsBuild where they are wanted.
    """
    found = listed(folder, work)
    if found is None:
        return None
    key = _key("python", base, [*found.needs.files, *found.wheels])
    place = cache if found.needs.settled else work / "dependencies"
    return _cached(place, key, "dependencies", lambda made: _pip(found, base, made, built))


def node_layer(
    folder: Path, base: RuntimeBase, cache: Path, work: Path, say: Callable[[str], None] = lambda text: None
) -> Layer | None:
    """Blocking. The layer of `package.json`'s dependencies at /opt/nodejs/node_modules; None where it has none.

    `say` gets warnings.
    """
    package = folder / "package.json"
    if not package.exists() or not _named(package):
        return None
    beside = (folder / name for name in (*LOCKS, ".npmrc"))
    sources = [package, *(path for path in beside if path.exists())]
    if not any(path.name in LOCKS for path in sources):
        say("warning: there is no package-lock.json: what is installed changes with the index (npm install makes one)")
    return _cached(cache, _key("node", base, sources), "dependencies", lambda made: _npm(sources, base, made))


def _named(package: Path) -> dict[str, Any]:
    """The dependencies of a package.json. Raises InvalidInput where one is a folder or file of this machine."""
    try:
        written = json.loads(package.read_text(encoding="utf-8-sig"))
        named = {**(written.get("optionalDependencies") or {}), **(written.get("dependencies") or {})}
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(f"package.json: {error}") from None
    for name, wanted in named.items():
        if str(wanted).startswith(_ELSEWHERE):
            hint = "publish it to your index, or put its code beside your own and require('./…')"
            raise InvalidInput(f"package.json: {name} is {wanted}: packages are taken from an index only", hint=hint)
    return named


def _key(kind: str, base: RuntimeBase, inputs: list[Path]) -> str:
    hasher = hashlib.sha256("\0".join((FORMAT, kind, base.version, base.architecture, *base.platforms)).encode())
    for path in inputs:
        hasher.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()[:32]


def _cached(cache: Path, key: str, description: str, gather: Callable[[Path], list[Member]]) -> Layer:
    """The layer from the cache, or made and put there in one step."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept, note = cache / f"{key}.tar", cache / f"{key}.json"
    if kept.exists() and note.exists():
        told = json.loads(note.read_text())
        if kept.stat().st_size == told["size"]:
            return Layer(kept, Digest.parse(told["digest"]), told["size"], description)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        layer = pack(gather(work), work / "layer.tar", description)
        layer.path.replace(kept)
        note.write_text(json.dumps({"digest": str(layer.digest), "size": layer.size}))
    return Layer(kept, layer.digest, layer.size, description)


def _pip(found: Listed, base: RuntimeBase, work: Path, built: Sequence[Path] | None) -> list[Member]:
    target = work / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(target), "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", base.version]
    command += ["--abi", f"cp{base.version.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    for tag in base.platforms:
        command += ["--platform", tag]
    if built is None:
        _resolve(found, command, work)
    elif built:
        done = _run([*command, "--no-deps", "--no-index", *map(str, built)], work, PIP_SECONDS, "pip", ())
        if done.returncode:
            raise InvalidInput(f"pip does not take what the server built: {_said(done)}")
    if not target.exists():
        return []
    _remove_scripts(target)
    return list(members(target, "opt/python", _PIP_NOTES))


def _resolve(found: Listed, command: list[str], work: Path) -> None:
    """Everything from wheels: those of `wheels/` alone where they are enough. Raises NeedsBuild, InvalidInput."""
    needs, wheels = found.needs, found.wheels
    if found.sources:
        raise NeedsBuild("something that is required has no wheel")
    path = needs.lists[0]
    command += ["--requirement", str(path.resolve())]
    done = None
    if wheels:
        held = work / "constraints.txt"
        held.write_text("".join(f"{row}\n" for row in held_versions(wheels)), encoding="utf-8")
        command += ["--find-links", str(wheels[0].parent.resolve()), "--constraint", str(held)]
        done = _run([*command, "--no-index"], path.parent, PIP_SECONDS, "pip", needs.variables)
    if done is None or done.returncode:
        done = _run(command, path.parent, PIP_SECONDS, "pip", needs.variables)
    if done.returncode:
        raise _pip_failed(done, held=bool(wheels))


def held_versions(wheels: Iterable[Path]) -> list[str]:
    """`name==version` of each package that is there in one version: an index is not to win with a newer one."""
    found: dict[str, set[str]] = {}
    for path in wheels:
        if match := _WHEEL.fullmatch(path.name):
            found.setdefault(match[1].lower(), set()).add(match[2].replace("_", "-"))
    return [f"{name}=={versions.pop()}" for name, versions in sorted(found.items()) if len(versions) == 1]


def _pip_failed(done: subprocess.CompletedProcess[str], *, held: bool) -> InvalidInput:
    text = _said(done)
    hint = "a package that has a wheel in wheels/ is held at that version" if held else ""
    if missing := _NO_WHEEL.search(text):
        more = "check its name and version, or put a wheel into wheels/"
        return NeedsBuild(f"no wheel of {missing[1] or missing[2]} fits the server", hint=f"{more}\n{hint}".strip())
    return InvalidInput(f"pip failed: {text}", hint=hint)


def _remove_scripts(target: Path) -> None:
    """pip puts programs that start this machine's interpreter into `bin`, where packages may have files too."""
    recorded: set[str] = set()
    for record in target.glob("*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8") as file:
            recorded.update(row[0] for row in csv.reader(file) if row)
    for path in recorded:
        if path.startswith("../../bin/") and (name := path.removeprefix("../../")) not in recorded:
            (target / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # packages' own files are in it, or there is none
        (target / "bin").rmdir()


def _npm(sources: list[Path], base: RuntimeBase, work: Path) -> list[Member]:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("package.json has dependencies and there is no npm here", hint="install npm")
    variables: list[str] = []
    for path in sources:
        shutil.copy(path, work / path.name)
        if path.name == ".npmrc":
            variables = _NPM_VARIABLE.findall(path.read_text(errors="replace"))
    cpu = {"amd64": "x64"}.get(base.architecture, base.architecture)
    verb = "ci" if any(path.name in LOCKS for path in sources) else "install"
    # No scripts: a package's install step would run on this machine, for this machine.
    command = [npm, verb, "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = _run([*command, "--os=linux", f"--cpu={cpu}"], work, NPM_SECONDS, "npm", variables)
    if done.returncode:
        raise InvalidInput(f"npm failed: {_said(done)}")
    return list(members(work / "node_modules", "opt/nodejs/node_modules", _NPM_NOTES))


def _run(
    command: list[str], folder: Path, seconds: float, name: str, variables: Iterable[str]
) -> subprocess.CompletedProcess[str]:
    """`variables` are those that the project's own files ask for. Raises Unavailable."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=environment_for((*ENV_NAMES, *variables), ENV_PREFIXES),
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} did not end within {seconds:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{name} cannot be started: {error}") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip())[-1500:]
