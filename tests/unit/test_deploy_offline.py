"""`deploy/offline.sh`: a bundle that is not for this machine, or not whole, is refused with its reason."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("dpkg") is None, reason="bundles are Debian's and Ubuntu's")

SCRIPTS = ("lib.sh", "offline.sh")
FILES = {"wheels/ownfaas-1-py3-none-any.whl": "wheel", "packages/Packages": "", "bases/python.tar.gz": "base"}
PYTHON = "{}.{}".format(*sys.version_info)


def shell(folder: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    script = f"set -euo pipefail; . '{folder}/deploy/lib.sh'; . '{folder}/deploy/offline.sh'; {command}"
    given = {**os.environ, "FAAS_PYTHON": sys.executable, **env}
    return subprocess.run(["bash", "-c", script], env=given, capture_output=True, text=True, timeout=20)


@pytest.fixture
def bundle(project_root: Path, tmp_path: Path) -> Path:
    """A small one, for this machine."""
    made = tmp_path / "bundle"
    for name in SCRIPTS:
        (made / "deploy").mkdir(parents=True, exist_ok=True)
        shutil.copy(project_root / "deploy" / name, made / "deploy" / name)
    for name, text in FILES.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(text)
    system = shell(made, "this_system").stdout
    machine = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    files = sorted(path for path in made.rglob("*") if path.is_file())
    sums = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(made)}\n" for p in files)
    (made / "manifest").write_text(f"faas 1\nsystem {system}architecture {machine}python {PYTHON}\n\n{sums}")
    return made


def says(key: str, value: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        rows = (bundle / "manifest").read_text().splitlines(keepends=True)
        (bundle / "manifest").write_text("".join(f"{key} {value}\n" if r.startswith(f"{key} ") else r for r in rows))

    return change


def test_a_bundle_for_this_machine_makes_apt_and_pip_know_nothing_else(bundle: Path) -> None:
    done = shell(bundle, 'check_bundle; cat "$offline/sources.list"; printf "%s\\n" "${apt_from[@]}" "${pip_env[@]}"')
    assert done.returncode == 0, done.stderr
    source, *rest = done.stdout.splitlines()
    assert source == f"deb [trusted=yes] file:{bundle}/packages ./"
    assert {"-oDir::Etc::sourceparts=-", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={bundle}/wheels"} <= set(rest)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another release": (says("system", "debian 99"), "for the system debian 99, and this machine's is "),
    "another architecture": (says("architecture", "s390x"), "for the architecture s390x, and this machine's is "),
    "another Python": (says("python", "3.99"), f"for Python 3.99, and {sys.executable} is {PYTHON}"),
    "a byte of a wheel": (lambda b: next((b / "wheels").iterdir()).write_text("wheeL"), "py3-none-any.whl: FAILED"),
    "a missing base": (lambda b: (b / "bases/python.tar.gz").unlink(), "bases/python.tar.gz: FAILED"),
    "one wheel more": (lambda b: (b / "wheels/evil-9.whl").write_text(""), "wheels/evil-9.whl: not of the bundle"),
    "a space in its path": (lambda b: b.rename(b.with_name("my bundle")), "has a space in it"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_bundle_that_does_not_fit_or_is_not_whole_is_refused(bundle: Path, kind: str) -> None:
    change, words = WRONG[kind]
    change(bundle)
    moved = next(bundle.parent.iterdir())
    done = shell(moved, "check_bundle; echo changed")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert "  try: " in done.stderr


def test_a_python_that_is_neither_here_nor_in_the_bundle_is_said(bundle: Path) -> None:
    done = shell(bundle, "check_bundle; echo changed", FAAS_PYTHON="python9.9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "neither here nor in it" in done.stderr


def test_a_release_has_another_name_when_a_wheel_of_somebody_else_is_another_one(bundle: Path) -> None:
    before = shell(bundle, "bundle_stamp").stdout
    manifest = bundle / "manifest"
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  wheels/aiohttp-9-py3-none-any.whl\n")
    assert len(before.strip()) == 32
    assert shell(bundle, "bundle_stamp").stdout != before
