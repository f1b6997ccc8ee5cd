"""`deploy/data.sh`: what root takes from a folder in which a server writes that may have been taken over."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
from pathlib import Path

import pytest

PAGE = 4096
MAGIC = bytes.fromhex("d9d505f920a163d7")


def shell(project_root: Path, data: Path, command: str) -> subprocess.CompletedProcess[str]:
    sources = "".join(f". '{project_root}/deploy/{name}'; " for name in ("lib.sh", "data.sh"))
    script = f"set -euo pipefail; {sources} data='{data}'; {command}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20)


def database(folder: Path) -> Path:
    """With one row, whole on the disk."""
    folder.mkdir()
    made = folder / "faas.db"
    with sqlite3.connect(made) as connection:
        connection.execute("create table t (n)")
        connection.execute("insert into t values (7)")
    connection.close()
    return made


def journal_that_names(file: Path, pages: int) -> bytes:
    """SQLite takes it for what a crash left, and removes `file` as its super-journal (sqlite.org/fileformat, 3)."""
    name = os.fsencode(file)
    header = (MAGIC + struct.pack(">5I", 0, 1, pages, 512, PAGE)).ljust(512, b"\0")
    return header + struct.pack(">I", (1 << 30) // PAGE + 1) + name + struct.pack(">2I", len(name), sum(name)) + MAGIC


def test_the_journal_of_a_hostile_server_removes_nothing_when_its_databases_are_backed_up(
    project_root: Path, tmp_path: Path
) -> None:
    made, backup, precious = database(tmp_path / "data"), tmp_path / "backup", tmp_path / "precious"
    backup.mkdir()
    precious.write_text("root's")
    hostile = journal_that_names(precious, made.stat().st_size // PAGE)
    (made.parent / "faas.db-journal").write_bytes(hostile)
    done = shell(project_root, made.parent, f"copy_databases '{made.parent}' '{backup}'")
    assert done.returncode == 0, done.stderr
    assert precious.read_text() == "root's"
    assert (backup / "faas.db").read_bytes() == made.read_bytes()
    connection = sqlite3.connect(made)  # so that the journal is one: it does what it says to who obeys it
    assert connection.execute("select n from t").fetchall() == [(7,)]
    connection.close()
    assert not precious.exists()


def test_databases_that_are_put_back_are_what_they_were_without_a_word_of_the_newer_server(
    project_root: Path, tmp_path: Path
) -> None:
    made, backup = database(tmp_path / "data"), tmp_path / "backup"
    backup.mkdir()
    connection = sqlite3.connect(made)
    connection.execute("pragma journal_mode = wal")
    connection.execute("insert into t values (8)")
    connection.commit()  # in the write-ahead log alone
    assert shell(project_root, made.parent, f"copy_databases '{made.parent}' '{backup}'").returncode == 0
    connection.execute("insert into t values (9)")
    connection.commit()
    assert shell(project_root, made.parent, f"copy_databases '{backup}' '{made.parent}'").returncode == 0
    restored = sqlite3.connect(made)
    assert restored.execute("select n from t order by n").fetchall() == [(7,), (8,)]
    restored.close()
    connection.close()


@pytest.mark.parametrize(
    "address",
    ["-K/var/lib/faas/evil", "http://h/../evil", "file:///etc/shadow", "http://a b", "$(id)", ""],
)
def test_a_hostile_servers_address_is_no_option_and_no_path_of_roots_programs(
    project_root: Path, tmp_path: Path, address: str
) -> None:
    (tmp_path / "server.json").write_text('{"api": "' + address + '", "pid": "../1"}\n')
    done = shell(project_root, tmp_path, "told api; told pid")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8081", "https://[::1]:8081"])
def test_what_a_server_leaves_is_told_as_it_is(project_root: Path, tmp_path: Path, address: str) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"public": "http://x:1", "api": address, "pid": 4711}) + "\n")
    (tmp_path / "admin-token").write_text("secret\n")
    done = shell(project_root, tmp_path, "told api; told pid; token; told version")
    assert (done.returncode, done.stdout) == (0, f"{address}\n4711\nsecret\n")


def test_a_token_that_is_a_link_or_no_file_is_not_read_and_not_waited_for(project_root: Path, tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("root's")
    (tmp_path / "admin-token").symlink_to(tmp_path / "shadow")
    os.mkfifo(tmp_path / "server.json")
    done = shell(project_root, tmp_path, "told api; token || echo none")
    assert (done.returncode, done.stdout) == (0, "none\n")
