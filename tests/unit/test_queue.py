"""Files that runs of pytest share: each test is run once, and what is wrong in any is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = """
import pytest
from pathlib import Path
from tests.support.queue import Queue

def pytest_configure(config):
    config.pluginmanager.register(Queue(Path("shared")))

@pytest.fixture(scope="session")
def one():
    print("BEGUN")
    yield
    print("ENDED")
"""
FILES = {
    "test_own.py": "def test_own(one): print('RAN own')\n",
    "good/test_good.py": "def test_a(one): print('RAN a')\ndef test_b(one): print('RAN b')\n",
    "good/test_taken.py": "def test_t(one): print('RAN t')\n",  # by a third run
    "bad/test_bad.py": "def test_c(one):\n    print('RAN c')\n    assert False\n",
    "none/test_none.py": "",
    "wrong/test_wrong.py": "def test_(:\n",
    "last/test_last.py": "def test_d(one): print('RAN d')\n",
}


def test_two_runs_share_the_tests_of_a_queue_and_each_keeps_what_lives_as_long_as_it(tmp_path: Path) -> None:
    for name, text in {"conftest.py": CONFTEST, **FILES}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "shared" / "taken").mkdir(parents=True)
    (tmp_path / "shared" / "taken" / "-".join((tmp_path / "good" / "test_taken.py").parts[1:])).touch()
    shared = [name for name in FILES if name != "test_own.py"]
    (tmp_path / "shared" / "queue").write_text("".join(f"{tmp_path}/{name}\n" for name in shared))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "test_own.py",
        *shared,
    ]
    env = {k: v for k, v in os.environ.items() if k != "FAAS_TESTS_SHARED"} | {"PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=60)[0] for run in runs]
    ran = [name for text in said for name in re.findall(r"RAN (\w+)$", text, re.M)]
    assert sorted(ran) == ["a", "b", "c", "d", "own", "own"]
    assert [(text.count("BEGUN"), text.count("ENDED")) for text in said] == [(1, 1), (1, 1)]
    assert sum("FAILED bad/test_bad.py::test_c" in text for text in said) == 1
    assert sum("ERROR wrong/test_wrong.py" in text for text in said) == 1
    assert max(run.returncode for run in runs) == 1
