"""Names of images on the command line: of which registry, what is not there, and what the shell completes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from faas.cli.image_policy import policy
from faas.cli.image_quota import quota
from faas.cli.image_retention import retention
from faas.cli.session import Session
from tests.support.cli import CommandLine
from tests.support.image_cli import at, tags
from tests.support.registry import RegistryProcess, registry_process


def test_what_is_not_there_is_said_by_its_name_with_where_to_look(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    source.push_image("known", "v1")
    for command in (("describe",), ("rm", "-y")):
        done = faas("image", *command, "known:v2", code=3)
        assert done.err == "error: there is no image known:v2\n  see faas image ls known\n"
    assert "there is no image known:v2" in faas("image", "export", "known:v2", tmp_path / "x.tar", code=3).err
    done = faas("image", "ls", "unknown", code=3)
    assert done.err == "error: there is no repository unknown\n  faas image ls lists all of them\n"
    assert "faas image describe known:v1" in faas("image", "ls", "known:v1", code=2).err
    assert "known:TAG" in faas("image", "rm", "-y", "known", code=2).err


def test_a_host_in_a_name_is_this_registry_or_an_upstream(faas: CommandLine, source: RegistryProcess) -> None:
    source.push_image("hosted", "v1")
    assert faas("image", "ls", f"{source.host}/hosted", "-o", "name").out == "hosted:v1\n"
    faas("image", "rm", "-y", "other.example:5000/hosted:v1", code=3)
    assert tags(source, "hosted") == ["v1"], "another registry's image was meant"
    assert faas("image", "rm", "-y", f"{source.host}/hosted:v1").out == "hosted:v1\n"
    assert tags(source, "hosted") == []


def test_a_list_of_copies_holds_what_is_here_and_fetches_nothing(faas: CommandLine, tmp_path: Path) -> None:
    name = "up.example:5000"
    with (
        registry_process(tmp_path / "upstream") as upstream,
        registry_process(tmp_path / "copies", flags=("--upstream", f"{name}=http://{upstream.host}")) as copies,
    ):
        for tag in ("v1", "v2"):
            upstream.push_image("copied", tag, tag.encode())
        at(faas, copies)
        faas("image", "describe", f"{name}/copied:v1")
        assert faas("image", "ls", "-o", "name").out == "up.example-5000/copied:v1\n"
        upstream.stop()
        assert faas("image", "ls", f"{name}/copied", "-o", "name").out == "up.example-5000/copied:v1\n"


def test_an_export_of_an_image_that_lacks_a_blob_says_what_mends_it(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    _, raw = source.push_image("lacking", "v1", b"a layer of its own")
    layer = json.loads(raw)["layers"][0]["digest"].partition(":")[2]
    file = source.data / "blobs" / "sha256" / layer[:2] / layer
    file.rename(tmp_path / "aside")
    try:
        done = faas("image", "export", "lacking:v1", tmp_path / "x", code=3)
    finally:
        (tmp_path / "aside").rename(file)
    assert "push the image again" in done.err


@pytest.mark.parametrize("group", [policy, retention, quota], ids=lambda group: str(group.name))
def test_the_shell_completes_patterns_and_namespaces(
    faas: CommandLine, source: RegistryProcess, monkeypatch: pytest.MonkeyPatch, group: click.Group
) -> None:
    """`set`: what has a row, and what could get one; `rm`: only the former."""
    source.push_image("zoo/fresh", "v1")
    wide = "zebra" if group is quota else "zebra/*"
    said = {"policy": "--public", "retention": "--immutable", "quota": "--logical=1G"}[str(group.name)]
    faas("image", str(group.name), "set", wide, said)
    for name, value in faas.env.items():
        monkeypatch.setenv(name, value)

    def completed(verb: str) -> list[str]:
        command = group.commands[verb]
        found = command.params[0].shell_complete(click.Context(command, obj=Session()), "z")
        return [item.value for item in found]

    assert completed("set") == [wide, "zoo" if group is quota else "zoo/fresh"]
    assert completed("rm") == [wide]
