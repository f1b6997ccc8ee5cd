"""A client of another Python version, run by a user without any rights, in an environment of its own."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.server import RunningServer

NOBODY = "65534"


@functools.cache
def environment(python: Path, project: Path) -> Path:
    """A virtual environment with the project, readable by everyone."""
    folder = Path(tempfile.mkdtemp(prefix="faas-other-python-"))
    folder.chmod(0o755)
    source = folder / "source"
    source.mkdir()
    names = ("pyproject.toml", "README.md", "LICENSE", "faas", "registry", "gateway", "worker")
    for name in names:
        path = project / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source / name)
    subprocess.run([python, "-m", "venv", "--copies", "--without-pip", folder / "venv"], check=True)
    # By this environment's pip, and not compiled: nobody runs it more than once.
    pip = (sys.executable, "-m", "pip", "--python", folder / "venv/bin/python")
    subprocess.run([*pip, "install", "-q", "--no-compile", source], check=True)
    return folder


def remove_environments() -> None:
    for folder in Path(tempfile.gettempdir()).glob("faas-other-python-*"):
        shutil.rmtree(folder, ignore_errors=True)
    environment.cache_clear()


def push_as_plain_user(python: Path, project: Path, code: Path, server: RunningServer) -> None:
    """`faas push CODE` by nobody. The interpreter may lie where nobody can read (root's home): it is mounted aside."""
    venv = environment(python, project) / "venv"
    home = Path(tempfile.mkdtemp(prefix="faas-nobody-"))
    shutil.copytree(code, home / "code")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
    prefix = python.resolve().parent.parent
    # In a mount namespace of its own: the folders above the interpreter become enterable for nobody there alone.
    script = (
        "mount -t tmpfs -o mode=755 none /mnt && mkdir /mnt/python && "
        'mount --bind "$1" /mnt/python && shift && exec "$@"'
    )
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(prefix)]
    command += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    command += [f"/mnt/python/bin/{python.name}", "-m", "faas.cli", "push", str(home / "code")]
    site = next((venv / "lib").glob("python3.*/site-packages"))
    keep = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "PATH"}
    env = {
        **keep,
        "HOME": str(home),
        "PYTHONPATH": str(site),
        "LD_LIBRARY_PATH": "/mnt/python/lib",
        "FAAS_URL": server.api,
        "FAAS_TOKEN": server.token,
    }
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"faas push by another Python: exit {done.returncode}\n{done.stderr}")
