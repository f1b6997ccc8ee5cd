"""The how-to about private packages, command by command: an index with a login and a CA of its own, wheels, builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certificates import certify
from tests.support.package_index import PackageIndex, source_archive
from tests.support.server import RunningServer
from tests.unit.test_build_dependencies import wheel

pytestmark = [pytest.mark.root, pytest.mark.oci]

CANARY = "PASSWORD-4b1d"
C = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "fast", 0, -1, methods};
PyMODINIT_FUNC PyInit_fast(void) { return PyModule_Create(&module); }
"""
# What a build can see of others, kept in its wheel: what must not be there would be found in the image.
LOOT = r"""
import glob, os, pathlib
found = [repr((os.getuid(), dict(os.environ)))]
paths = glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/tmp/**", recursive=True)
for path in paths:
    try:
        found.append(path + open(path, encoding="latin-1").read(100_000))
    except OSError:
        pass
pathlib.Path("loot.py").write_text("FOUND = " + repr(found))
"""
APP = """
import importlib.util, json
import ours

def handler(event, context):
    import loot
    import fast
    return {"ours": ours.SAID, "answer": fast.answer(), "uid": loot.FOUND[0].partition(",")[0],
            "saw": any("/opt/build/build.py" in text for text in loot.FOUND)}
"""
FIRST = "import ours\n\ndef handler(event, context):\n    return ours.SAID\n"


def with_text(folder: Path, text: bytes) -> list[Path]:
    """Files that hold it, of a server that makes and removes some meanwhile."""
    found = subprocess.run(["grep", "-rlaF", "-e", text, folder], capture_output=True, timeout=120)
    return [Path(row) for row in found.stdout.decode().splitlines()]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="this machine has no compiler: apt-get install gcc")
def test_the_commands_of_the_how_to_give_functions_and_nobody_learns_the_password(
    server: RunningServer, tmp_path: Path, project_root: Path
) -> None:
    certificate = certify(tmp_path, "company-ca", "localhost")
    (tmp_path / "company-ca.crt").rename(tmp_path / "company-ca.pem")
    private = (tmp_path / "company-ca.pem", certificate[1])
    source_archive(tmp_path / "index" / "ours", "ours", "1.0", {"ours.py": "SAID = 'built'\n"})
    wheel(tmp_path, "ours", "1.0", {"ours.py": "SAID = 'brought'\n"})
    source_archive(tmp_path, "fast", "2.0", {"fast.c": C}, c="fast.c", before=f"exec({LOOT!r})")
    install, brought, built = blocks(project_root / "deploy" / "howto" / "private-packages.md")
    with PackageIndex(tmp_path / "index", login=("me", CANARY), certificate=private) as index:

        def run(block: str) -> str:
            """Its `export`s hold in the next block too."""
            script = "\n".join((exports, block)).replace("packages.example.com", index.host)
            script = script.replace("PASSWORD", CANARY).replace("localhost:8080", server.public.partition("//")[2])
            words = f'faas() {{ {sys.executable} -m faas.cli "$@"; }}\nset -e\n{script}'
            words = words.replace("PIP_NO_INDEX=1 faas", f"PIP_NO_INDEX=1 {sys.executable} -m faas.cli")
            done = subprocess.run(["bash", "-c", words], cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout + done.stderr)
            return done.stdout

        said: list[str] = []
        exports = ""
        env = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {
            "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull,
            "PYTHONPATH": str(project_root), "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }  # fmt: skip
        made, rest = install.split("\n", 1)
        run(made)
        shutil.copy(write(tmp_path / "first.py", FIRST), tmp_path / "orders" / "app.py")
        assert run(rest).splitlines()[-1].strip('"') == "built"
        exports = "\n".join(line for line in install.splitlines() if line.startswith("export"))
        run(brought)
        assert server.get("/function/orders").json() == "brought"
        shutil.copy(write(tmp_path / "second.py", APP), tmp_path / "orders" / "app.py")
        run(built)
    answer = server.get("/function/orders").json()
    assert answer == {"ours": "brought", "answer": 42, "uid": "(65534", "saw": True}
    assert not any(CANARY in text for text in said)
    assert with_text(server.data, CANARY.encode()) == []
    assert with_text(tmp_path / "cache", CANARY.encode()) == []
    assert with_text(server.data, b"SAID = 'brought'") != []  # what is there would be found


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
