"""`deploy/bundle`, its archive on a machine without a network, and the how-to about it, command by command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faas.oci.bundle import REF_NAME
from tests.support.airgap import Machine, without_network
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(400)]

DATA = f"/srv/faas-{os.getpid()}"
MISSING = ("runc", "crun", "nftables")  # on the machine, before
FRESH = "a fresh Debian"


@dataclass(frozen=True)
class Offline:
    """The machine, what `up` said there at first, and the how-to's blocks of commands that are left."""

    machine: Machine
    first: subprocess.CompletedProcess[str]
    blocks: list[str]


@pytest.fixture(scope="module")
def howto(project_root: Path) -> list[str]:
    text = (project_root / "deploy" / "howto" / "offline.md").read_text()
    return re.findall(r"```sh\n(.*?)```", text, re.S)


@pytest.fixture(scope="module")
def hand(project_root: Path, tmp_path_factory: pytest.TempPathFactory, howto: list[str]) -> Path:
    """The folder that is carried over, with the archive."""
    folder = tmp_path_factory.mktemp("hand")
    assert howto[0] == "./deploy/bundle faas.tar\n"
    done = subprocess.run([project_root / "deploy/bundle", "faas.tar"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/faas.tar\n"
    return folder


def fresh(folder: Path) -> Path:
    """Debian's smallest system with apt, of this machine's release."""
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    assert release is not None
    made = folder / "root.tar"
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", release[1], str(made)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return made


@pytest.fixture(scope="module", params=["this machine's files", pytest.param(FRESH, marks=pytest.mark.soak)])
def machine(request: pytest.FixtureRequest, hand: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = fresh(tmp_path_factory.mktemp("fresh")) if request.param == FRESH else None
    with none_left(RunningServer(Path(DATA)).id), without_network(hand, {"FAAS_DATA": DATA}, root) as made:
        if root is None:
            made.run(f"apt-get remove -y -qq {' '.join(MISSING)} && rm -rf /opt/faas /usr/local/bin/faas")
        yield made
        made.run("cd faas-*/ && ./deploy/up --down")
    for path in hand.iterdir():  # the next machine's person begins anew
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "faas.tar":
            path.unlink()


@pytest.fixture(scope="module")
def offline(machine: Machine, howto: list[str]) -> Offline:
    install, call = howto[1:3]
    machine.run("cp /mnt/faas.tar .")
    first = machine.run(" && ".join(install.splitlines()))
    assert machine.run(call).stdout == "Hello, world!\n"
    return Offline(machine, first, howto[3:])


def test_a_bundle_that_was_damaged_on_its_way_is_refused_before_anything_is_changed(machine: Machine) -> None:
    machine.run("mkdir damaged && tar xf /mnt/faas.tar -C damaged && mv damaged/faas-*/* damaged")
    machine.run("printf x | dd of=$(echo damaged/wheels/aiohttp-*) bs=1 seek=1000 conv=notrunc status=none")
    done = machine.run("FAAS_PREFIX=/opt/other ./damaged/deploy/up; rm -r damaged; test ! -e /opt/other")
    assert "wheels/aiohttp-" in done.stderr
    assert "the bundle is damaged" in done.stderr


def test_a_machine_without_a_network_gets_its_packages_and_a_server_from_the_bundle(offline: Offline) -> None:
    said = offline.first.stderr
    installed = re.search(r"installing (runc.*nftables.*)", said)
    assert installed is not None, said
    assert "hello answers" in said
    assert "thumbnail made" in said
    assert "http://127.0.0.1:8080/function/hello" in offline.first.stdout
    again = offline.machine.run("cd faas-*/ && ./deploy/up").stderr
    assert "installing" not in again
    assert "bringing" not in again
    assert offline.machine.sent == 0


def test_the_runtime_base_of_a_machine_that_would_make_it_just_so_is_the_bundles(
    offline: Offline, hand: Path, request: pytest.FixtureRequest
) -> None:
    if FRESH in request.node.name:
        pytest.skip("its Debian packages may be newer than this machine's: it makes its own base")
    with tarfile.open(hand / "faas.tar") as bundle:
        (name,) = (name for name in bundle.getnames() if name.endswith("bases/python.tar.gz"))
        with tarfile.open(fileobj=bundle.extractfile(name)) as base:
            index = base.extractfile("index.json")
            assert index is not None
            (row,) = json.load(index)["manifests"]
    described = offline.machine.run(f"faas image describe {row['annotations'][REF_NAME]} -o name")
    assert described.stdout.strip() == f"runtime/python@{row['digest']}"


def test_the_how_to_works_as_written(offline: Offline, server: RunningServer, hand: Path) -> None:
    def here(commands: str) -> None:
        words = re.sub(r"\bfaas (?=\w+ )", f"{sys.executable} -m faas.cli ", commands).replace(
            "python3 ", f"{sys.executable} "
        )
        env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "NO_COLOR": "1"}
        done = subprocess.run(["sh", "-ec", words], cwd=hand, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (words, done.stderr)

    def there(commands: str) -> str:
        return offline.machine.run(" && ".join(commands.splitlines()), folder="/mnt").stdout

    dependencies, push, export, deploy, archive = offline.blocks
    here(dependencies)
    assert "hello" in there(push).lower()
    here(export)
    here("faas image export invoices:v1 payroll.tar")
    there(deploy)
    there(archive)
    for name in ("invoices", "reports", "payroll"):
        assert "hello" in there(f"curl -sS --fail localhost:8080/function/{name}").lower()
    assert offline.machine.sent == 0
