"""`deploy/howto/backup-and-restore.md` and `upgrade.md`, each command, against a real server that has all of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.build.rebase import rebase
from faas.oci import labels, media_types
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.reference import Reference
from faas.protocol import RuntimeBase
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'kept %s'}\n"
SCHEDULE = '[[schedule]]\nname = "nightly"\ncron = "0 3 29 2 *"\n'


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with functions, a schedule and a token, which a test may copy and look through whole."""
    folder = tmp_path_factory.mktemp("keeping")
    with RunningServer(folder / "data", "--driver", "oci", "--stems", "0", "--precreated", "0") as server:
        server.push_code(folder, "kept", CODE % "one")
        server.push_code(folder, "kept", CODE % "two", SCHEDULE)
        server.faas("token", "create", "reader", "--role", "viewer")
        yield server


def page(project_root: Path, name: str) -> list[str]:
    """The commands of a how-to, in order."""
    text = (project_root / "deploy" / "howto" / name).read_text()
    return "".join(re.findall(r"```sh\n(.*?)```", text, re.S)).strip().splitlines()


def run(server: RunningServer, line: str, folder: Path) -> str:
    words = line.replace("/srv/", f"{folder}/").replace("faas ", f"{sys.executable} -m faas.cli ", 1)
    env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "NO_COLOR": "1"}
    done = subprocess.run(["sh", "-c", words], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout.strip()


def rows(data: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of a server's functions, as it is on the disk."""
    found: dict[str, list[tuple[object, ...]]] = {}
    with contextlib.closing(sqlite3.connect(f"file:{data / 'faas.db'}?mode=ro", uri=True)) as database:
        for table in ("functions", "revisions", "aliases", "schedules", "tokens", "invocations", "dead_letters"):
            found[table] = sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
    return found


def test_the_how_tos_backup_of_a_server_under_load_restores_to_one_whose_functions_answer(
    keeping: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    enough, answers = threading.Event(), set()

    def call() -> None:
        while not enough.is_set():
            answers.add(keeping.get("/function/kept").status)

    calling = threading.Thread(target=call)
    calling.start()
    try:
        *backups, restore = page(project_root, "backup-and-restore.md")
        made = [run(keeping, line, tmp_path) for line in backups]
        data = Path(run(keeping, restore, tmp_path))
    finally:
        enough.set()
        calling.join()
    assert answers == {200}
    assert made == [str(next((tmp_path / "backups").glob("2*"))), str(tmp_path / "backups.tar")]
    assert rows(data) == rows(keeping.data)
    with RunningServer(data, "--driver", "oci", "--stems", "0", "--precreated", "0") as restored:
        assert restored.get("/function/kept").text == "kept two"
        assert restored.get("/function/kept:v1").text == "kept one"
        assert restored.token != keeping.token


def older_base(server: RunningServer, image: str) -> str:
    """`image` on a base as an earlier state of this machine would have made it; the new image."""

    async def make() -> str:
        async with RegistryClient(server.registry, "admin", server.token) as client:
            name = Reference.parse(image)
            manifest = await client.get_manifest(name.repository, name.target)
            assert manifest.config is not None
            config = ImageConfig.parse(await client.read_blob(name.repository, manifest.config.digest, CONFIG_BYTES))
            base = Reference.parse(config.labels[labels.BASE])
            now = await client.get_manifest(base.repository, base.target)
            assert now.config is not None
            raw = await client.read_blob(base.repository, now.config.digest, CONFIG_BYTES)
            old = raw.replace(b"LANG=C.UTF-8", b"LANG=C.utf8")
            await client.upload_blob(base.repository, old, Digest.of(old))
            made = Manifest.image(Descriptor(media_types.OCI_CONFIG, Digest.of(old), len(old)), list(now.layers))
            await client.put_manifest(base.repository, str(made.digest), made)
            reference = f"{base.repository}:{base.tag}@{made.digest}"
            return (await rebase(client, image, RuntimeBase("", reference, "", "", ()))).reference

    return asyncio.run(make())


def test_the_how_tos_rebase_puts_a_stale_function_on_the_base_as_it_is_and_rollback_goes_back(
    keeping: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    fresh = keeping.get("/v1/functions/kept", api=True).json()
    assert fresh["stale"] == ""
    body = {"spec": fresh["spec"], "image": older_base(keeping, fresh["image"])}
    assert keeping.send("PUT", "/v1/functions/kept", body).status == 200
    assert "base sha256:" in keeping.get("/v1/functions/kept", api=True).json()["stale"]
    backup, listed, dry_run, everything = page(project_root, "upgrade.md")
    run(keeping, backup, tmp_path)
    assert "stale" in run(keeping, listed, tmp_path)
    assert "older" in run(keeping, dry_run, tmp_path)
    assert "rebased" in run(keeping, everything, tmp_path)
    after = keeping.get("/v1/functions/kept", api=True).json()
    assert (after["stale"], after["revision"]) == ("", 4)
    assert after["image"] == fresh["image"], "the same layers and the same base are the same image"
    assert keeping.get("/function/kept").text == "kept two"
    keeping.faas("rollback", "kept")
    assert keeping.get("/function/kept").text == "kept two"
    assert keeping.get("/v1/functions/kept", api=True).json()["revision"] == 3


def test_one_function_that_cannot_be_rebased_does_not_stop_the_others(keeping: RunningServer, tmp_path: Path) -> None:
    broken = keeping.push_code(tmp_path, "brittle", CODE % "brittle")
    assert broken
    function = keeping.get("/v1/functions/brittle", api=True).json()
    spec = {**function["spec"], "handler": "app.nothing"}
    old = older_base(keeping, function["image"])
    kept = keeping.get("/v1/functions/kept", api=True).json()
    assert keeping.send("PUT", "/v1/functions/brittle", {"spec": spec, "image": old, "check": False}).status == 200
    stale = older_base(keeping, kept["image"])
    assert keeping.send("PUT", "/v1/functions/kept", {"spec": kept["spec"], "image": stale}).status == 200
    done = keeping.faas("rebase", "--all", check=False)
    assert done.returncode == 1
    assert re.search(r"brittle +- +failed: ", done.stdout)
    assert re.search(r"kept +v\d+ +rebased", done.stdout)
    assert keeping.get("/v1/functions/brittle", api=True).json()["image"] == old
