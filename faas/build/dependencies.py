"""A function's dependencies as one layer, resolved for the server's platform and version, whatever runs here.

`requirements.txt` through pip (wheels only), `package.json` through npm. A layer is kept by the hash of its inputs, so
that a change of code uploads kilobytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from faas.build.layer import Layer, Member, members, pack
from faas.errors import InvalidInput, Unavailable
from faas.oci.digest import Digest
from faas.protocol import RuntimeBase
from faas.settings import environment_for

PIP_SECONDS = NPM_SECONDS = 600.0
FORMAT = "1"  # changes when the same inputs would give another layer
# Prefixes of variables that pip, npm and the libraries below them read: index, proxy, certificates, credentials.
_ENV_PREFIXES = (
    "PIP_",
    "NPM_CONFIG_",
    "npm_config_",
    "HTTP_",
    "HTTPS_",
    "http_",
    "https_",
    "NO_",
    "no_",
    "SSL_",
    "NODE_",
    "REQUESTS_",
    "XDG_",
    "NETRC",
)
_NO_WHEEL = re.compile(
    r"No matching distribution found for (\S+)|Could not find a version that satisfies the requirement (\S+)"
)
_LITTER = ("__pycache__", "*.pyc", "bin", "direct_url.json", "REQUESTED", "INSTALLER", "RECORD")


def python_layer(folder: Path, base: RuntimeBase, cache: Path) -> Layer | None:
    """Blocking. The layer of `requirements.txt` at /opt/python; None where there is none or it names nothing."""
    requirements = folder / "requirements.txt"
    if not requirements.exists() or not _names_something(requirements):
        return None
    wheels = folder / "wheels"
    key = _key("python", base, [requirements, *(sorted(wheels.glob("*.whl")) if wheels.is_dir() else ())])
    return _cached(cache, key, "dependencies", lambda work: _pip(requirements, wheels, base, work))


def node_layer(folder: Path, base: RuntimeBase, cache: Path) -> Layer | None:
    """Blocking. The layer of `package.json`'s dependencies at /opt/nodejs/node_modules; None where it has none."""
    package = folder / "package.json"
    if not package.exists():
        return None
    try:
        written = json.loads(package.read_text())
    except ValueError as error:
        raise InvalidInput(f"package.json: {error}") from None
    if not written.get("dependencies"):
        return None
    sources = [package] + [p for p in (folder / "package-lock.json",) if p.exists()]
    return _cached(cache, _key("node", base, sources), "dependencies", lambda work: _npm(sources, base, work))


def _names_something(requirements: Path) -> bool:
    lines = (line.strip() for line in requirements.read_text().splitlines())
    return any(line and not line.startswith("#") for line in lines)


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
        layer.path.rename(kept)
        note.write_text(json.dumps({"digest": str(layer.digest), "size": layer.size}))
    return Layer(kept, layer.digest, layer.size, description)


def _pip(requirements: Path, wheels: Path, base: RuntimeBase, work: Path) -> list[Member]:
    target = work / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(target), "--requirement", str(requirements.resolve()), "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", base.version]
    command += ["--abi", f"cp{base.version.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    for tag in base.platforms:
        command += ["--platform", tag]
    if wheels.is_dir():
        command += ["--find-links", str(wheels.resolve())]
    _run(command, requirements.parent, PIP_SECONDS, "pip")
    return list(members(target, "opt/python", _LITTER)) if target.exists() else []


def _npm(sources: list[Path], base: RuntimeBase, work: Path) -> list[Member]:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("package.json has dependencies and there is no npm here", hint="install npm, or vendor them")
    for path in sources:
        shutil.copy(path, work / path.name)
    cpu = {"amd64": "x64"}.get(base.architecture, base.architecture)
    verb = "ci" if any(path.name == "package-lock.json" for path in sources) else "install"
    # No scripts: a package's install step would run on this machine, for this machine.
    command = [npm, verb, "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    _run([*command, "--os=linux", f"--cpu={cpu}"], work, NPM_SECONDS, "npm")
    modules = work / "node_modules"
    rows: Iterator[Member] = members(modules, "opt/nodejs/node_modules", (".package-lock.json", ".bin"))
    return list(rows)


def _run(command: list[str], folder: Path, seconds: float, name: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=environment_for(("LD_LIBRARY_PATH", "PYTHONPATH"), _ENV_PREFIXES),
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} did not end within {seconds:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{name} cannot be started: {error}") from None
    if done.returncode:
        text = done.stderr.strip() or done.stdout.strip()
        missing = _NO_WHEEL.search(text)
        if missing:
            package = missing[1] or missing[2]
            hint = "check its name and version; what has no wheel for the server is not built yet: put one into wheels/"
            raise InvalidInput(f"no wheel of {package} fits the server", hint=hint)
        raise InvalidInput(f"{name} failed: {text[-1500:]}")
