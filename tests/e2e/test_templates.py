"""Templates: they are in the wheel, and each one is pushed as it is and answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from faas.cli.new import RUNTIMES, TEMPLATES, write
from tests.support.server import RunningServer

# template → a path, and what its answer has; `container` needs an engine: tests/e2e/test_first_minutes.py
ANSWERS = {
    "python": ("?name=Ada", '"hello": "Ada"'),
    "node": ("?name=Ada", '"hello":"Ada"'),
    "web": ("/there", "hello from /there"),
    "cron": ("", '"done": true'),
    "shell": ("/there", "hello from the shell: GET /there"),
    "provided": ("", "hello from C"),
}


@pytest.mark.root
@pytest.mark.oci
@pytest.mark.parametrize("runtime", ANSWERS)
def test_a_template_is_pushed_as_it_is_and_answers(server: RunningServer, tmp_path: Path, runtime: str) -> None:
    if runtime == "node" and shutil.which("node") is None:
        pytest.skip("needs node")
    if runtime == "provided" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path / f"as-{runtime}"
    write(TEMPLATES / runtime, folder)
    if runtime == "provided":
        subprocess.run(["make", "-s", "-C", folder], check=True, timeout=60)
    url = server.faas("push", folder).stdout.strip().rpartition("\n")[2]
    path, expected = ANSWERS[runtime]
    assert expected in server.get(f"/function/as-{runtime}{path}").text
    assert url.endswith(f"/function/as-{runtime}")


def test_every_template_is_tried() -> None:
    assert {*ANSWERS, "container"} == set(RUNTIMES)


def test_a_wheel_has_all_templates_and_clients_of_runtimes(project_root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("faas", "gateway", "registry", "worker", "pyproject.toml", "README.md", "LICENSE"):
        place = project_root / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=110)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        wanted = {f"faas/cli/templates/{path.relative_to(TEMPLATES).as_posix()}" for path in TEMPLATES.glob("*/*.in")}
        assert len(wanted) > 15
        assert wanted <= names
        assert {"faas/runtimes/node/bootstrap.js", "faas/runtimes/python/bootstrap.py", "faas/py.typed"} <= names
        assert not [name for name in names if name.startswith("tests/")]
        read = wheel.read("faas/cli/templates/python/faas.toml.in").decode()
    assert '"function-name"' in read
