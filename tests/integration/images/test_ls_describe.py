"""`faas image ls` and `describe`, what the registry says for them, and completion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faas.oci import media_types
from tests.support.cli import CommandLine
from tests.support.image_cli import (
    at,
    push_index,
    push_signature,
)
from tests.support.registry import RegistryProcess, registry_process
from tests.support.samples import Samples


def test_a_list_shows_indexes_and_artifacts_as_they_are(faas: CommandLine, tmp_path: Path) -> None:
    with registry_process(tmp_path / "listed") as registry:
        at(faas, registry)
        push_index(registry, "listed", "all")
        empty = b"{}"
        blob = {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": registry.push_blob("listed", empty),
            "size": 2,
        }
        artifact = {
            "schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "artifactType": "text/x", "config": blob,
            "layers": [],
        }  # fmt: skip
        headers = {"Content-Type": media_types.OCI_MANIFEST}
        sent = json.dumps(artifact).encode()
        assert registry.call("PUT", "/v2/listed/manifests/artifact", sent, headers).status == 201
        rows = {row["tag"]: row for row in json.loads(faas("image", "ls", "-o", "json").out)}
        assert rows["all"]["platforms"] == ["linux/amd64", "linux/arm64"]
        assert rows["all"]["bytes"] > rows["all-amd64"]["bytes"] > 0
        assert (rows["artifact"]["bytes"], rows["artifact"]["platforms"]) == (2 + len(sent), [])
        described = json.loads(faas("image", "describe", "listed:all", "-o", "json").out)
        assert {key: rows["all"][key] for key in ("bytes", "digest", "created_at")} == {
            key: described[key] for key in ("bytes", "digest", "created_at")
        }
        assert faas("image", "ls", "listed", "-o", "name").out.split() == [
            "listed:all", "listed:all-amd64", "listed:all-arm64", "listed:artifact",
        ]  # fmt: skip
        assert "linux/amd64, linux/arm64" in faas("image", "ls").out
        assert "text/x" in faas("image", "describe", "listed:artifact").out
        done = json.loads(faas("image", "describe", "listed:all", "-o", "json").out)
        assert [row["platform"] for row in done["platforms"]] == ["linux/amd64", "linux/arm64"]
        assert (done["tags"], done["holders"], done["layers"]) == (["all"], [], [])


def test_a_description_has_layers_config_tags_and_signatures(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    samples = Samples()
    image = samples.image(
        samples.layer(), entrypoint=("/bin/run",), cmd=("a b",), env=("LEVEL=high",), user="1000",
        exposed_ports=("80/tcp",), labels={"maker": "\x1b[31mred"}, workdir="/srv",
    )  # fmt: skip
    faas("image", "import", samples.layout(tmp_path / "made", image), "--repository", "told")
    signature = push_signature(source, "told", str(image.digest), image.raw)
    page = faas("image", "describe", "told:v1").out
    for words in (f"told@{image.digest}", "/bin/run", "a b", "LEVEL=high", "1000", "80/tcp", "/srv", signature):
        assert words in page
    assert str(image.layers[0].digest) in page
    assert "\x1b" not in page
    assert faas("image", "describe", "told:v1", "-o", "name").out == f"told@{image.digest}\n"
    told = json.loads(faas("image", "describe", f"told@{image.digest}", "-o", "json").out)
    assert told["bytes"] == len(image.raw) + sum(blob.size for blob in image.blobs)
    assert told["config"]["labels"] == {"maker": "\x1b[31mred"}
    faas("image", "describe", "told:nothing", code=3)
    faas("image", "describe", "told:not/a/tag", code=2)


def test_what_is_known_of_an_image_is_for_those_who_may_pull(tmp_path: Path) -> None:
    with registry_process(tmp_path / "closed", auth="basic") as registry:
        digest, _ = registry.push_image("closed", "v1")
        path = "/v2/_faas/images/closed"
        assert registry.call("GET", f"{path}/v1").json()["digest"] == digest
        assert registry.call("GET", f"{path}/{digest}").json()["tags"] == ["v1"]
        assert registry.call("GET", f"{path}/v1", login=False).status == 401
        for wrong, status in (("v2", 404), ("sha256:12", 400), ("a%20b", 400), ("sha256:" + "0" * 64, 404)):
            assert registry.call("GET", f"{path}/{wrong}").status == status
        assert registry.call("GET", "/v2/_faas/images/No_Name/v1").status == 400


# Completion


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ((), "comp", ["completed"]),
        ((), "completed:v", ["completed:v1", "completed:v2"]),
        ((), "nothing:", []),
        (("completed",), ":", [":v1", ":v2"]),
        (("completed", ":"), "v2", ["v2"]),
    ],
    ids=["a repository", "a tag", "of nothing", "bash, at the colon", "bash, behind it"],
)
def test_the_shell_completes_references(
    faas: CommandLine, source: RegistryProcess, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    incomplete: str, expected: list[str],
) -> None:  # fmt: skip
    import click

    from faas.cli.image import image_rm
    from faas.cli.session import Session

    for tag in ("v1", "v2"):
        source.push_image("completed", tag)
    for name, value in faas.env.items():
        monkeypatch.setenv(name, value)
    context = click.Context(image_rm, obj=Session())
    context.params = {"references": words}
    found = image_rm.params[0].shell_complete(context, incomplete)
    assert [item.value for item in found] == expected
