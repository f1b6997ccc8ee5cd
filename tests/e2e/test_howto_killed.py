"""`deploy/howto/why-was-my-function-killed.md`: its function and its commands, and what its table says of them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from faas.cli import main
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]
EXIT_CODES = {"time": 6, "log": 0}  # else 7: the function failed


def test_the_how_to_shows_each_end_as_its_table_says(
    server: RunningServer,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (project_root / "deploy" / "howto" / "why-was-my-function-killed.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    rows = re.findall(r"^\| (\w+) \| ([^|]*) \| ([^|]*) \|", text, re.M)[1:]
    assert code is not None
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "app.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAAS_URL", server.api)
    monkeypatch.setenv("FAAS_TOKEN", server.token)
    said: dict[str, str] = {}

    def faas(line: str) -> str:
        """In this process: a command's own start costs more than most of these."""
        words = shlex.split(line)
        assert words[0] == "faas"
        how = re.search(r'"how": "(\w+)"', line)
        expected = EXIT_CODES.get(how[1], 7) if how else 0
        returned = main(words[1:])
        out, err = capsys.readouterr()
        assert returned == expected, (line, err)
        if how:
            said[how[1]] = out + err
        return out + err

    first, *blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    for block in blocks:
        for line in block.splitlines():
            if line.startswith("faas "):
                page = faas(line)
            else:  # a pipe
                there = line.replace("faas ", f"{sys.executable} -m faas.cli ")
                done = subprocess.run(["bash", "-c", there], capture_output=True, text=True, timeout=60)
                assert "memory: 128" in done.stdout, done.stderr
                assert "/tmp can be written" in done.stdout
            if line == "faas describe killed":
                assert "Runtime.OutOfMemory" in page or "Runtime.ExitError" in page
    assert [how for how, _, _ in rows] == list(said)
    for how, _, log in rows:
        for words in re.findall(r"`([^`]*)`", log):
            assert words.removeprefix("… ") in said[how], (how, words, said[how])
    request_id = re.search(r"--request-id (\S+)", said["memory"])
    assert request_id is not None
    for line in first.splitlines():
        assert "killed" in faas(line.replace("ID", request_id[1]))
